"""Tests run in several processes at once: one thread each, or their OpenMP barriers wait for one another."""

import torch

torch.set_num_threads(1)

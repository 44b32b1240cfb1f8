"""Steps that people train with: adaptive gradient clipping, SGD in one pass over memory, sharpness-aware minimization."""

"""The stages of bench/first_gpu.py, each a module with a `run` that writes rows."""

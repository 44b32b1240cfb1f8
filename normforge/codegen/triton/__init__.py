"""The Triton target: which kind of plan a shape gets, and its kernels."""

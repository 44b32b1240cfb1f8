"""The C target: one function a derivative, with OpenMP, from the plan."""

"""Kernels over the rows of many tensors in one call: the clipped step of an optimizer, and weight standardization.

A row is what belongs to one output of a layer: of a weight (out, ...) the rest.
"""

"""The C target: one file a derivative, with OpenMP, from the plan.

`emit` writes the file: a `function` for each sweep (`sweep`) and for the small values between sweeps (`small`), and a
description of them for the `driver`, which is compiled once. A sweep is one of two walks, over `rows` or `positions`,
that share the loops of `walk` and what `element` writes inside them. `values` decides which values are kept between
loops, `names` where all of them live, and `prelude` has the vectors and functions that every file starts with.
"""

"""Bounds on untrusted text: a reader that meets more refuses, in time and memory proportional to the bound."""

MAX_TEXT = 200_000  # characters of a dump or a JSON text
MAX_FORMULA = 20_000  # characters of a formula
MAX_DEPTH = 200  # nested brackets in a formula, chained nodes in any graph that is read
MAX_NODES = 5_000  # nodes of a graph that is read

"""Bounds on untrusted text: a reader that meets more refuses, in time and memory proportional to the bound.

Nothing recurses over depth, so `MAX_DEPTH` and `MAX_CHAIN` bound work, not the stack.
"""

MAX_FORMULA = 20_000  # characters of a formula
MAX_DEPTH = 200  # nested brackets in a formula
MAX_NODES = 5_000  # nodes of a formula's graph
MAX_NAME = 64  # characters of a name
# Of a dump or a JSON text: derivatives of the largest formula stay below them.
MAX_TEXT = 8_000_000  # characters
MAX_GRAPH_NODES = 60_000
MAX_CHAIN = 20_000  # nodes on a path

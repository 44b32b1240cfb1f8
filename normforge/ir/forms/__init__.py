"""Text forms of a graph: formula, typed SSA dump, JSON. Read, never evaluated, within the limits of `ir.limits`."""

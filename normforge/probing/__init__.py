"""Probing: the last and dearest check for degeneracy, which runs the layer on numbers."""

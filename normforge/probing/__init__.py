"""The last stage of the degeneracy check, which runs the layer on numbers."""

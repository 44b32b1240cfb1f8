"""The public functions that look at a layer without running it, and what finds one by name."""

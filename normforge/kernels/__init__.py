"""The part that runs: the custom op, the module, compiled objects and their cache."""

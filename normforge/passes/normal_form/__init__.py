"""The normal form by which functions are told apart: values, sums of products, moments, bounds, and the keys of it."""

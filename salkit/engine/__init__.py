"""Experiments as descriptions and arrays: their identity, where results are kept, who computes them."""

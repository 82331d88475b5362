"""Scoring methods on all (image, label) pairs: what is computed, and how the results are put together."""

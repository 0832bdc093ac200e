"""Tests that need a CUDA card, and skip without one. Not yet run on a GPU."""

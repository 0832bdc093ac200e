"""Grids on a cluster: what is submitted, how it gets there, and how it is followed."""

"""Grids, and the commands that a cluster or a checkout starts; `rledit` is the CLI for users."""

"""Runs experiments in model editing: grids planned, run on Ray, recorded in a lake, tabulated."""

"""Execution of cells: the stages of one rank, and the fleet that spreads the work."""

"""Plans: cells resolved from a grid, checks before a GPU is asked for, and cost estimates."""

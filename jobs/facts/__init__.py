"""The table of real facts: what is taken from its sources, and what is left out, and why."""

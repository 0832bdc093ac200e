"""How cells get done: what one rank does (stages) and how work is spread (fleet)."""

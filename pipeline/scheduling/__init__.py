"""How much of a cluster's time the cells get, measured with cells that only sleep."""

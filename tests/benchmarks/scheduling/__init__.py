"""Benchmark of scheduling: the share of a cluster's time that cells get, with cells that sleep."""

"""Benchmarks of the fast path beside the reference implementation and the bare passes owed."""

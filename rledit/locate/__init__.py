"""Shared parts of locate-then-edit methods: subjects, keys, value vectors, covariance,
spreading."""

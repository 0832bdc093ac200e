"""Fixtures and tiny models that several unit tests share."""

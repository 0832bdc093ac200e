"""Measurements of an edited model beside its edits: language, consequences, downstream tasks."""

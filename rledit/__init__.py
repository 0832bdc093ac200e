"""Edits language models: editors, scoring, data formats; needs torch and transformers only."""

"""Inputs of cells: edit and text files, corpora, evaluation data, checkpoints, fingerprints."""

"""Benchmark of a whole job: as the authors' release does it, by our library, and by the pipeline.

The job: load a model once, train RLEdit on one trajectory, edit a stream batch by batch, evaluate
all of it. Every figure is in CPU seconds, as others use the machine too.
"""

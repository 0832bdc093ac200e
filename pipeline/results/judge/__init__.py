"""A language model as judge of free answers: asked by the driver, after the run, on request."""

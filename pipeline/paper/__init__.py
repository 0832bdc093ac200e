"""Published tables beside ours: reference values, layouts, verdicts and the paper's claims."""

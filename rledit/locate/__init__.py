"""What locate-then-edit methods share: subjects, keys, value vectors, second moments, spreading."""

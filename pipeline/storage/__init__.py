"""Storage: local paths and object stores behind one interface, and redaction of credentials."""

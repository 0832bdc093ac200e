"""Parity with numbers recorded from the authors' releases, in directories given by option."""

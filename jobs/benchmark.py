"""Time the fast path against the dense reference implementation and the bare passes owed, on the
same batches.

python -m jobs.benchmark --preset small --json small.json
"""

from __future__ import annotations

import sys

from tests.benchmarks.command import run
from tests.benchmarks.report import lines


def main() -> None:
    """Run a preset and print its figures."""
    print("\n".join(lines(run(sys.argv[1:]))))


if __name__ == "__main__":
    main()

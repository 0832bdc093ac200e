"""Measure RLEdit on one GPU, part by part, as far as nine minutes go.

python -m jobs.gpu --json gpu.json --model smollm2-135m --rows train.json evaluation.json
"""

from __future__ import annotations

import json
import sys

from tests.benchmarks.gpu import main as run
from tests.benchmarks.report import lines


def main() -> None:
    """Run what is not done yet and print the figures; as a part of itself, print them as JSON."""
    found = run(sys.argv[1:])
    print(json.dumps(found) if "--part" in sys.argv else "\n".join(lines(found)))


if __name__ == "__main__":
    main()

"""Run a submitted grid; this is what `rledit submit` asks the cluster to start.

python -m jobs.run_grid submission.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.cli.errors import errors_as_help
from pipeline.submit.execute import execute


def main() -> None:
    """Run it; exit 0 when every cell is done."""
    with errors_as_help():
        raise SystemExit(execute(Path(sys.argv[1])))


if __name__ == "__main__":
    main()

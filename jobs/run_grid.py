"""Run a submitted grid; this is what `rledit submit` asks the cluster to start.

python -m jobs.run_grid submission.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.cli.errors import errors_as_help
from pipeline.submit.execute import FAILED_CELLS, execute


def main() -> None:
    """Run it; exit 0 when every cell is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("submission", type=Path, help="what `rledit submit` has written")
    parser.add_argument(
        "--allow-failed-cells",
        action="store_true",
        help="exit 0 once every cell has ended, however: for schedulers that start a job which "
        "exits otherwise once more, on new nodes, where the same cells would fail again",
    )
    arguments = parser.parse_args()
    with errors_as_help():
        code = execute(arguments.submission)
        raise SystemExit(0 if arguments.allow_failed_cells and code == FAILED_CELLS else code)


if __name__ == "__main__":
    main()

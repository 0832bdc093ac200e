"""Interpreter of a job's driver: a Python with this project's packages, found on the head.

A job's entry point is a command of the node it starts on, and what `python` means there depends on
how Ray was started: from an environment that is not on the PATH, it is the system's.
"""

from __future__ import annotations

import shlex

START = "rledit-start.sh"
# Named with the job's --env where the right one is found by nobody.
CHOSEN = "RLEDIT_PYTHON"
_NEEDED = ("ray", "torch", "transformers", "typer", "pydantic", "yaml", "mlflow", "pyarrow")
_UNUSABLE = 2

_SCRIPT = """\
#!/bin/sh
# Starts the job with the first Python that has what it imports, and the cluster's version of Ray.
check='
import sys
from importlib.metadata import version
from importlib.util import find_spec
lacking = [name for name in "{needed}".split() if find_spec(name) is None]
if lacking:
    sys.exit("lacks " + ", ".join(lacking))
if "{ray}" not in ("", version("ray")):
    sys.exit("has Ray " + version("ray") + ", and the cluster runs {ray}")
'
tried=""
for python in ${{{chosen}:+"${chosen}"}} {submitter} python python3; do
    if ! command -v "$python" > /dev/null 2>&1; then
        why="is not there"
    elif why=$("$python" -c "$check" 2>&1); then
        exec "$python" -m jobs.run_grid "$@"
    fi
    tried="$tried
  $python: $(printf '%s' "$why" | tail -n 1)"
done
printf '%s\\n' "no Python on $(hostname) can run this job; tried$tried" \\
    "Start Ray there from an environment that has this project's packages (activate it, then ray \\
start), or name its Python: {chosen}=/path/to/python rledit submit --env {chosen} ..." >&2
exit {unusable}
"""


def start_script(submitter: str, ray_version: str = "") -> str:
    """The script that looks for an interpreter and becomes the driver.

    Args:
        submitter: Path of the Python that submits; on a cluster of one machine it is there.
        ray_version: What the cluster runs, which drivers must have too; empty: not known.
    """
    return _SCRIPT.format(
        needed=" ".join(_NEEDED),
        ray=ray_version,
        chosen=CHOSEN,
        submitter=shlex.quote(submitter),
        unusable=_UNUSABLE,
    )

"""Try the newest versions that pyproject.toml allows, apart from the lock, and say what breaks.

For whoever keeps the project, once a week (`make test-newest`): a fresh environment in a temporary
folder, the fast tests in it, then the versions that differ from the lock and the tests that fail.
Nothing of it touches `.venv`. Exit 1 when the installation or a test fails. Arguments are given to
pytest in place of the fast tests: `make test-newest ARGS="tests/unit/rledit -q"`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from lock import FOLDER, blocks, version

PROJECT = FOLDER.parent
FAST = ["tests/unit", "-q", "-n2", "--dist=worksteal", "-m", "not cluster and not slow"]
SHOWN = 3  # tests that are named of those that fail for one reason


def differing(locked: Mapping[str, str], installed: Mapping[str, str]) -> list[str]:
    """The packages whose version is another than the lock's, one a line."""
    names = sorted(locked.keys() & installed.keys())
    # A build's label is no other version: 2.13.0+cpu is 2.13.0.
    moved = [name for name in names if installed[name].partition("+")[0] != locked[name]]
    lines = [f"{name} {locked[name]} -> {installed[name]}" for name in moved]
    return lines + [
        f"{name} {installed[name]} is new" for name in sorted(installed.keys() - locked)
    ]


def failures(report: Path) -> dict[str, list[str]]:
    """The tests that failed, or could not be collected, by the first line of why."""
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        for problem in [*case.findall("failure"), *case.findall("error")]:
            name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
            # Of what could not be collected, pytest has the error at the end of the trace alone.
            trace = [line for line in (problem.text or "").splitlines() if line.startswith("E  ")]
            message = (problem.get("message") or "").strip().splitlines()
            if message == ["collection failure"] and trace:
                message = [trace[-1].removeprefix("E").strip()]
            found.setdefault(message[0] if message else "no reason given", []).append(name)
    return found


def told(broken: Mapping[str, Sequence[str]]) -> str:
    """What breaks, the reason of most tests first: one change often breaks many in one way."""
    lines = [f"{sum(map(len, broken.values()))} tests break with them:"]
    for reason, names in sorted(broken.items(), key=lambda item: -len(item[1])):
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        lines += [f"  {reason}", f"    {', '.join(names[:SHOWN])}{more}"]
    return "\n".join(lines)


def installed_versions(python: Path) -> dict[str, str]:
    """Versions in an environment by package, but for the project and what every venv has."""
    command = [str(python), "-m", "pip", "list", "--format", "json"]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    names = {re.sub(r"[-_.]+", "-", each["name"].lower()): each["version"] for each in listed}
    own = ("rledit-at-scale", "pip", "setuptools")
    return {name: number for name, number in names.items() if name not in own}


def ended(command: Sequence[str | Path], **variables: str) -> int:
    """Run a command in the project's folder; its exit code."""
    environment = os.environ | variables
    return subprocess.run([str(c) for c in command], cwd=PROJECT, env=environment).returncode


def main() -> None:
    """Install, test, compare."""
    tests = sys.argv[1:] or FAST
    locked = {
        name: version(entry) for name, entry in blocks((FOLDER / "dev.txt").read_text()).items()
    }
    with tempfile.TemporaryDirectory(prefix="rledit-newest-") as folder:
        python = Path(folder) / "venv" / "bin" / "python"
        report = Path(folder) / "tests.xml"
        if ended([sys.executable, "-m", "venv", python.parents[1]]):
            raise SystemExit("no environment could be made")
        install = [python, "-m", "pip", "install", "--quiet", "--upgrade"]
        if ended([*install, "pip"]) or ended([*install, "-e", f"{PROJECT}[dev]"]):
            raise SystemExit("broken: the newest allowed versions cannot be installed, see above")
        moved = differing(locked, installed_versions(python))
        # Said before the tests: they take minutes, and may be interrupted.
        print(f"{len(moved)} versions differ from the lock" + (":" if moved else ""), flush=True)
        print("".join(f"  {line}\n" for line in moved), end="", flush=True)
        command = [python, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}"]
        code = ended([*command, *tests], OMP_NUM_THREADS="1")
        broken = failures(report) if report.exists() else {}
    if broken:
        raise SystemExit(told(broken))
    if code:
        raise SystemExit(f"pytest ended with {code}, see above")
    print("nothing breaks with them" if moved else "nothing breaks")


if __name__ == "__main__":
    main()

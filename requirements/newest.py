"""Try the newest versions that pyproject.toml allows, apart from the lock, and say what breaks.

For whoever keeps the project, once a week (`make test-newest`): a fresh environment in a temporary
folder, the fast tests in it, then the versions that differ from the lock and the tests that fail.
Nothing of it touches `.venv`. Exit 1 when the installation or a test fails.
"""

from __future__ import annotations

import argparse
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
FAST = ["tests/unit", "-m", "not cluster and not slow", "-n", "2", "-q"]


def differing(locked: Mapping[str, str], installed: Mapping[str, str]) -> list[str]:
    """The packages whose version is another than the lock's, one a line."""
    names = sorted(locked.keys() & installed.keys())
    # A build's label is no other version: 2.13.0+cpu is 2.13.0.
    moved = [name for name in names if installed[name].partition("+")[0] != locked[name]]
    lines = [f"{name} {locked[name]} -> {installed[name]}" for name in moved]
    return lines + [
        f"{name} {installed[name]} is new" for name in sorted(installed.keys() - locked)
    ]


def failures(report: Path) -> list[str]:
    """The tests that failed, or could not be collected, each with the first line of why."""
    found = []
    for case in ElementTree.parse(report).iter("testcase"):
        for problem in [*case.findall("failure"), *case.findall("error")]:
            name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
            reason = (problem.get("message") or problem.text or "").strip().splitlines()
            found.append(f"{name}: {reason[0] if reason else 'no reason given'}")
    return found


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tests", nargs="*", default=FAST, help="what pytest is given instead")
    asked = parser.parse_args()
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
        code = ended(
            [python, "-m", "pytest", f"--junitxml={report}", *asked.tests], OMP_NUM_THREADS="1"
        )
        broken = failures(report) if report.exists() else [f"pytest ended with {code}, see above"]
    print(f"\n{len(moved)} versions differ from the lock" + (":" if moved else ""))
    print("".join(f"  {line}\n" for line in moved), end="")
    if code:
        print(f"{len(broken)} tests break with them:")
        print("".join(f"  {line}\n" for line in broken), end="")
        raise SystemExit(1)
    print("nothing breaks with them" if moved else "nothing breaks")


if __name__ == "__main__":
    main()

"""Write the lock files beside this one: every version and every hash that `make install` takes.

For whoever changes a dependency in pyproject.toml (`make lock`) or wants newer versions
(`make lock ARGS=--upgrade`). One resolution by uv holds for Python 3.11 to 3.13 on Linux and macOS.

    dev.txt        the project with its tests and tools
    plain.txt      the project alone, in the same versions
    cuda.txt       what PyPI's CUDA build of torch needs on Linux; a CPU build does not
    torch-cpu.txt  CPU builds of torch that are taken where pip finds them
    build.txt      pip and what builds the project (from build.in)

PyPI has no CPU build of torch for Linux. Where pip finds one in a place of its own (`find-links`,
PyTorch's index) whose hash is in torch-cpu.txt, it is taken: `make lock ARGS='--wheel
torch-2.13.0+cpu-….whl'` adds that of a file. They stay there until the version changes.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PROJECT = FOLDER.parent / "pyproject.toml"
OLDEST_PYTHON = "3.11"
HEAD = "# Written by `make lock`; not to be changed by hand.\n"
CUDA = re.compile(r"(nvidia|cuda)-|triton$")
_HASH = re.compile(r"--hash=(sha256:[0-9a-f]{64})")
_PIN = re.compile(r"(?P<name>[a-z0-9][a-z0-9.-]*)==(?P<version>\S+)")


def blocks(text: str) -> dict[str, str]:
    """The entries of a lock by name: a pin with its marker, and its hashes in the lines below."""
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    found = {}
    for entry in entries:
        pin = _PIN.match(entry)
        if pin is None:
            raise SystemExit(f"not a pin: {entry.splitlines()[0]}")
        if pin["name"] in found:
            raise SystemExit(f"{pin['name']} has several versions; pip takes one for all Pythons")
        found[pin["name"]] = entry
    return found


def hashes(entry: str) -> list[str]:
    """The hashes of an entry, as ``sha256:…``."""
    return _HASH.findall(entry)


def version(entry: str) -> str:
    """The version that an entry pins."""
    pin = _PIN.match(entry)
    assert pin is not None
    return pin["version"]


def cpu_builds(pinned: str, old: Mapping[str, str], wheels: Iterable[Path]) -> str:
    """The entry of torch's CPU builds: given files, and those that the lock has of this version."""
    label = f"{pinned}+cpu"
    kept = hashes(old["torch"]) if "torch" in old and version(old["torch"]) == label else []
    for wheel in wheels:
        if not wheel.name.startswith(f"torch-{label}-"):
            raise SystemExit(f"{wheel.name} is no CPU build of torch {pinned}, which the lock has")
        kept.append("sha256:" + hashlib.sha256(wheel.read_bytes()).hexdigest())
    lines = [f"torch=={label}", *(f"    --hash={each}" for each in dict.fromkeys(kept))]
    return " \\\n".join(lines) + "\n" if kept else ""


def compiled(out: Path, source: Path, *options: str) -> dict[str, str]:
    """Resolve a file of requirements; what `out` pins already is kept where it fits."""
    command = ["uv", "pip", "compile", "--quiet", "--universal", "--generate-hashes"]
    command += ["--python-version", OLDEST_PYTHON, "--no-header", "--no-annotate"]
    done = subprocess.run([sys.executable, "-m", *command, *options, "-o", str(out), str(source)])
    if done.returncode:
        raise SystemExit(done.returncode)
    return blocks(out.read_text())


def locked(name: str) -> str:
    """A lock file as it stands; empty where there is none yet."""
    path = FOLDER / f"{name}.txt"
    return path.read_text() if path.exists() else ""


def main() -> None:
    """Resolve, split, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upgrade", action="store_true", help="take the newest allowed versions")
    parser.add_argument(
        "--wheel", action="append", type=Path, default=[], help="a CPU build of torch"
    )
    parser.add_argument("-c", "--constraint", help="versions to take where they fit")
    asked = parser.parse_args()
    options = ["--upgrade"] if asked.upgrade else []
    options += ["-c", asked.constraint] if asked.constraint else []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "dev.txt"
        out.write_text(locked("dev") + locked("cuda"))
        dev = compiled(out, PROJECT, "--extra", "dev", *options)
        plain = compiled(Path(folder) / "plain.txt", PROJECT, "-c", str(out))
        tools = Path(folder) / "build.txt"
        tools.write_text(locked("build"))
        build = compiled(tools, FOLDER / "build.in", "-c", str(out), *options)
    torch = cpu_builds(version(dev["torch"]), blocks(locked("torch-cpu")), asked.wheel)
    parts = {
        "dev": [entry for name, entry in dev.items() if not CUDA.match(name)],
        "plain": [entry for name, entry in plain.items() if not CUDA.match(name)],
        "cuda": [entry for name, entry in dev.items() if CUDA.match(name)],
        "torch-cpu": [torch],
        "build": list(build.values()),
    }
    for name, entries in parts.items():
        (FOLDER / f"{name}.txt").write_text(HEAD + "".join(entries))
        print(f"{len(entries)} in {FOLDER / name}.txt")


if __name__ == "__main__":
    main()

"""The lock of `make install`: what it must hold, and how a Python is found."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "requirements"
LOCKS = ("dev", "plain", "cuda", "build", "torch-cpu")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PIN = re.compile(
    r"^[a-z0-9][a-z0-9.-]*==\S+( ; [^\\\n]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n", re.M
)


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of the folder, as Python runs it there."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"requirements_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def pins(name: str) -> dict[str, str]:
    text = (FOLDER / f"{name}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9][a-z0-9.-]*)==([^ \n]+)", text, re.M))


@pytest.mark.parametrize("name", LOCKS)
def test_every_entry_is_a_version_with_hashes(name: str) -> None:
    text = (FOLDER / f"{name}.txt").read_text()
    entries = [line for line in text.splitlines() if line[:1].isalnum()]
    assert len(PIN.findall(text)) == len(entries) > 0
    assert PIN.sub("", text).strip().startswith("# Written by `make lock`")


@pytest.mark.parametrize(("name", "extras"), [("plain", ()), ("dev", ("dev",))])
def test_every_dependency_is_locked_within_its_range(name: str, extras: tuple[str, ...]) -> None:
    """A range that is changed without `make lock` is noticed."""
    wanted = [*PROJECT["dependencies"]]
    for extra in extras:
        wanted += PROJECT["optional-dependencies"][extra]
    locked = pins(name)
    for requirement in map(Requirement, wanted):
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in {name}.txt: run `make lock`"
        assert requirement.specifier.contains(version), f"{requirement} is locked at {version}"


def test_plain_is_part_of_dev_and_cuda_apart() -> None:
    plain, dev, cuda = pins("plain"), pins("dev"), pins("cuda")
    assert plain.items() <= dev.items()
    assert not cuda.keys() & dev.keys() and all("linux" in line for line in cuda_markers())
    assert pins("torch-cpu") == {"torch": f"{dev['torch']}+cpu"}
    assert "pip" in pins("build") and "hatchling" in pins("build")


def cuda_markers() -> list[str]:
    return re.findall(r"^\S+==\S+(.*)$", (FOLDER / "cuda.txt").read_text(), re.M)


def test_what_a_build_of_torch_from_elsewhere_adds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = module("lock", monkeypatch)
    wheel = tmp_path / "torch-2.0.0+cpu-cp311-x.whl"
    wheel.write_bytes(b"a wheel")
    first = lock.cpu_builds("2.0.0", {}, [wheel])
    assert first.startswith("torch==2.0.0+cpu \\\n    --hash=sha256:") and PIN.fullmatch(first)
    assert lock.cpu_builds("2.0.0", lock.blocks(first), []) == first
    assert lock.cpu_builds("2.1.0", lock.blocks(first), []) == ""
    with pytest.raises(SystemExit, match=r"no CPU build of torch 2\.1\.0"):
        lock.cpu_builds("2.1.0", {}, [wheel])


def test_what_the_newest_versions_change_and_break(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = module("newest", monkeypatch)
    locked = {"torch": "2.13.0", "ray": "2.60.0", "gone": "1"}
    installed = {"torch": "2.13.0+cpu", "ray": "2.61.0", "extra": "3"}
    assert newest.differing(locked, installed) == ["ray 2.60.0 -> 2.61.0", "extra 3 is new"]
    report = tmp_path / "report.xml"
    failed = '<failure message="assert 1 == 2&#10;more"/></testcase>'
    collected = "def f():\nE   ImportError: first\n\ntests/b.py:3: in f\nE   ImportError: x"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.a" name="good"/>'
        f'<testcase classname="" name="tests.b"><error message="collection failure">{collected}'
        f"</error></testcase>"
        + "".join(f'<testcase classname="tests.a" name="bad{i}">{failed}' for i in range(5))
        + "</testsuite></testsuites>"
    )
    broken = newest.failures(report)
    assert broken == {
        "ImportError: x": ["tests.b"],
        "assert 1 == 2": [f"tests.a::bad{i}" for i in range(5)],
    }
    assert newest.told(broken).splitlines() == [
        "6 tests break with them:",
        "  assert 1 == 2",
        "    tests.a::bad0, tests.a::bad1, tests.a::bad2 and 2 more",
        "  ImportError: x",
        "    tests.b",
    ]


def made(folder: Path, path: Path, *asked: str) -> subprocess.CompletedProcess[str]:
    """What `requirements/venv.sh` does where only the programs in `path` are found."""
    return subprocess.run(
        ["/bin/sh", str(FOLDER / "venv.sh"), str(folder), *asked],
        env={"PATH": str(path)}, capture_output=True, text=True,
    )  # fmt: skip


def fake(path: Path, name: str, version: str, lacks: str = "") -> None:
    """A Python of some version that runs what this one can, but for a module it lacks."""
    path.mkdir(exist_ok=True)
    start = f"import sys; sys.version_info = ({version.replace('.', ', ')}, 0, 'final', 0)"
    if lacks:
        start += f"; sys.modules['{lacks}'] = None"
    program = path / name
    program.write_text(
        f'#!/bin/sh\nif [ "$1" = -m ]; then echo "$0" > "$4"; exit; fi\n'
        f'exec {sys.executable} -c "{start}\n$2"\n'
    )
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ({"python3.12": "3.12", "python3.11": "3.11"}, "python3.11"),
        ({"python3.13": "3.13", "python3": "3.10"}, "python3.13"),
        ({"python3": "3.12"}, "python3"),
        ({"python3.11": "3.10", "python3.12": "3.12"}, "python3.12"),
    ],
)
def test_whichever_python_is_there_is_taken(
    tmp_path: Path, there: dict[str, str], taken: str
) -> None:
    for name, version in there.items():
        fake(tmp_path / "bin", name, version)
    done = made(tmp_path / "venv", tmp_path / "bin")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "venv").read_text().strip() == str(tmp_path / "bin" / taken)


def test_without_a_python_one_line_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    done = made(tmp_path / "venv", tmp_path / "bin")
    assert done.returncode == 1 and not (tmp_path / "venv").exists()
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: this project needs Python 3.11, 3.12 or 3.13 with venv")
    fake(tmp_path / "bin", "python3", "3.10")
    assert "python3 is Python 3.10" in made(tmp_path / "venv", tmp_path / "bin").stderr
    fake(tmp_path / "bin", "python3.12", "3.12", lacks="ensurepip")
    said = made(tmp_path / "venv", tmp_path / "bin").stderr
    assert "python3.12 lacks venv or ensurepip" in said and "install python3.12-venv" in said
    fake(tmp_path / "bin", "mine", "3.14")
    assert "mine is Python 3.14" in made(tmp_path / "venv", tmp_path / "bin", "mine").stderr


def test_an_environment_that_fits_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "venv").mkdir()
    fake(tmp_path / "venv" / "bin", "python", "3.12")
    kept = made(tmp_path / "venv", tmp_path)
    assert kept.returncode == 0 and kept.stderr == ""


def test_the_script_looks_for_what_the_project_allows() -> None:
    allowed = SpecifierSet(PROJECT["requires-python"])
    fits = [f"3.{minor}" for minor in range(8, 20) if allowed.contains(f"3.{minor}.1")]
    assert fits == ["3.11", "3.12", "3.13"]
    script = (FOLDER / "venv.sh").read_text()
    assert "(3, 11) <= sys.version_info[:2] <= (3, 13)" in script
    assert all(f"python{version}" in script for version in fits)
    assert os.access("/bin/sh", os.X_OK)

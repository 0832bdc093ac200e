"""The Python that runs a submitted job: one that has what it imports, or a way out is named."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from pipeline.submit.client import ENTRYPOINT, START, start_script
from pipeline.submit.submission import FILE

RAY = version("ray")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A job's working directory whose driver says who runs it, and a bare `python` on the PATH."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").touch()
    driver = "import sys; print(sys.executable, *sys.argv[1:])"
    (tmp_path / "jobs" / "run_grid.py").write_text(driver)
    bare = tmp_path / "bin" / "python"
    bare.parent.mkdir()
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    return tmp_path


def started(folder: Path, submitter: str, ray: str = RAY, **more: str) -> tuple[int, str, str]:
    (folder / START).write_text(start_script(submitter, ray))
    done = subprocess.run(
        ENTRYPOINT,
        shell=True,
        cwd=folder,
        env={"PATH": f"{folder / 'bin'}:/bin:/usr/bin", **more},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_submitting_environment_is_taken_where_it_is_there(folder: Path) -> None:
    """A Ray of this machine, started from an environment that is not on the PATH."""
    assert started(folder, sys.executable) == (0, f"{sys.executable} {FILE}\n", "")


def test_elsewhere_the_nodes_own_python_is_taken(folder: Path) -> None:
    (folder / "bin" / "python").unlink()
    (folder / "bin" / "python").symlink_to(sys.executable)
    code, said, _ = started(folder, "/nowhere/my env/python", PYTHONPATH=":".join(sys.path))
    assert code == 0 and said.endswith(f"{FILE}\n")


def test_a_python_can_be_named(folder: Path) -> None:
    code, said, _ = started(folder, "/nowhere/python", **{"RLEDIT_PYTHON": sys.executable})
    assert (code, said) == (0, f"{sys.executable} {FILE}\n")


def test_without_one_it_says_what_was_tried_and_what_to_do(folder: Path) -> None:
    code, said, error = started(folder, "/nowhere/python")
    assert (code, said) == (2, "")
    first, *tried, remedy = error.strip().splitlines()
    assert first.startswith("no Python on ") and first.endswith(" can run this job; tried")
    assert tried[:2] == [
        "  /nowhere/python: is not there",
        "  python: lacks ray, torch, transformers, typer, pydantic, yaml, mlflow, pyarrow",
    ]
    assert remedy.startswith("Start Ray there from an environment that has this project's packages")
    assert remedy.endswith("RLEDIT_PYTHON=/path/to/python rledit submit --env RLEDIT_PYTHON ...")


def test_another_ray_than_the_clusters_is_no_driver(folder: Path) -> None:
    code, _, error = started(folder, sys.executable, ray="1.2.3")
    assert code == 2
    assert f"{sys.executable}: has Ray {RAY}, and the cluster runs 1.2.3" in error

"""What the README tells a reader to type works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[2] / "README.md"


def test_the_notebook_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As written, but for a smaller world and its smaller model."""
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    small = snippet.replace('WORLD_MODELS["llama"]', 'WORLD_MODELS["tiny"]').replace(
        "World()", "World(WorldConfig(n_subjects=60))"
    )
    assert small.count("tiny") == small.count("n_subjects") == 1
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("from rledit.world import WorldConfig\n" + small, names)
    assert 0 < names["efficacy"] <= 100


def test_the_make_targets_of_the_readme_exist() -> None:
    makefile = (README.parent / "Makefile").read_text()
    targets = set(re.findall(r"^make ([a-z-]+)", README.read_text(), re.MULTILINE))
    assert {"demo", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)

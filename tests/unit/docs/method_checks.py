"""What each method is held against, for docs/support.md: found in the recordings, and in what its
class says, whose tests have to be there."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from rledit.editors import Editor
from tests.golden.locate_set import METHODS as RECORDED_FILES
from tests.golden.sets import RECORDED

TESTS = Path(__file__).parents[1]


class MissingFactsError(ValueError):
    """A registry entry without the facts that the page says of it."""


@cache
def recorded() -> Mapping[str, str]:
    """Methods that recorded numbers of their release judge → `release`, or `release°`."""
    found = {editor: "release°" for editor, _, _ in RECORDED_FILES.values()}
    for file in RECORDED.glob("locate/*/*.safetensors"):
        if file.stem in RECORDED_FILES:
            found[RECORDED_FILES[file.stem][0]] = "release"
    runs = json.loads((RECORDED / "hypernet" / "manifest.json").read_text())["runs"]
    found |= {
        run["settings"]["editor"]["name"]: "release" for run in runs.values() if "settings" in run
    }
    return found


@cache
def tests() -> Mapping[str, tuple[Path, ...]]:
    """Name of a test of `tests/unit` → the files that have one of that name."""
    found: dict[str, tuple[Path, ...]] = {}
    for file in sorted(TESTS.rglob("test_*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found[node.name] = (*found.get(node.name, ()), file)
    return found


def checks(name: str, cls: type[Editor]) -> str:
    """What a method was held against.

    Raises:
        MissingFactsError: Its class does not say, or names a test that is not there or is of
            another method.
    """
    own = vars(cls).get("checked")
    if not own:
        raise MissingFactsError(
            f"editor {name!r} does not say what it is checked against; give its class "
            "`checked = {'reference': NAME}` (a plain computation of its equations) or "
            "`{'properties': NAME}`, NAME a test of tests/unit"
        )
    for kind, test in own.items():
        files = tests().get(test, ())
        words = (f'"{name}"', cls.__name__, cls.__module__)
        named = [f for f in files if any(word in f.read_text() for word in words)]
        if not named:
            raise MissingFactsError(
                f"editor {name!r} is said to be checked ({kind}) by {test}, "
                + (
                    f"but {files[0].name} does not name {name!r} or {cls.__name__}"
                    if files
                    else "and tests/unit has no test of that name"
                )
            )
    return ", ".join(filter(None, (recorded().get(name), *own)))

"""Every command of README, CONTRIBUTING and docs/ is understood, or says here what it needs."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from pipeline.cli import app
from pipeline.config.parse import load_grid
from pipeline.plan.cells import cells_of
from pipeline.plan.grid_plan import make_plan
from pipeline.results.lake.lake import Lake
from tests.unit.helpers.small_editing import learnt

ROOT = Path(__file__).parents[3]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
# Programs that are not ours: what a command needs, and so why no test here runs it.
NEEDS = {
    "ray up": "machines that cluster.yaml may start, by a cloud account or SSH",
    "ray dashboard": "a cluster that ray up started",
    "ray start": "free ports and memory for a Ray head; tests/cluster starts one of its own",
    "ray stop": "that no other Ray runs on the machine",
    "ray get-auth-token": "the home folder of whoever runs it",
    "mlflow server": "a PostgreSQL server",
    "kubectl create": "a Kubernetes cluster with KubeRay",
    "pip download": "a package index",
    "open results/demo.html": "a desktop",
}
MAKE = re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M)


def commands(page: Path) -> list[str]:
    """Every line that is typed, a line's continuation joined to it, `&&` taken apart."""
    blocks = re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", page.read_text(), re.S | re.M)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    parts = [part.strip() for line in lines for part in line.split(" && ")]
    return [part for part in parts if part and not part.startswith("#")]


ALL = [(page.name, command) for page in PAGES for command in commands(page)]


def words_of(command: str) -> list[str]:
    """The words of a command, without variables set in front of it, redirections and `&`."""
    words = shlex.split(command, comments=True)
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    cut = next((i for i, word in enumerate(words) if word in (">", "&")), len(words))
    return words[:cut]


def parsed(command: Any, words: list[str]) -> dict[str, Any]:
    """The values of a command line; typer's error where an option or argument is wrong."""
    context = command.make_context(command.name, list(words))
    if hasattr(command, "resolve_command"):
        _, inner, rest = command.resolve_command(context, list(words))
        return parsed(inner, rest)
    values: dict[str, Any] = context.params
    return values


def understood(command: str) -> bool:
    """Whether a command is one that we know; an error where it is ours and wrong."""
    words = words_of(command)
    program = words[0].rpartition("/")[2]
    if program == "rledit":
        found = parsed(typer.main.get_command(app), words[1:])
        grid = ROOT / str(found.get("grid"))
        if "set_" in found and grid.is_file():
            assert cells_of(load_grid(grid, found["set_"], found["scale"], found.get("limit")))
        return True
    if words[:2] == ["python", "-m"]:
        module = importlib.import_module(words[2])
        if not {*inspect.signature(module.main).parameters} - {"arguments"}:  # reads words itself
            return f"python -m {words[2]}" in inspect.getsource(module)
        job = typer.Typer()
        job.command()(module.main)
        parsed(typer.main.get_command(job), words[3:])
        return True
    if program == "make":
        return all(word in MAKE for word in words[1:])
    if program == "pytest":
        return all((ROOT / word).exists() for word in words[1:] if not word.startswith("-"))
    if program == "export":
        return all(re.match(r"[A-Z_]+=", word) for word in words[1:])
    return False


def needed(command: str) -> str | None:
    """What a command of another program needs."""
    words = words_of(command)
    text = " ".join([words[0].rpartition("/")[2], *words[1:]])
    return next((why for start, why in NEEDS.items() if text.startswith(start)), None)


@pytest.mark.parametrize(("page", "command"), ALL, ids=[f"{p}: {c[:60]}" for p, c in ALL])
def test_a_command_is_understood_or_says_what_it_needs(page: str, command: str) -> None:
    assert understood(command) or needed(command), f"{page}: {command}"


def test_the_list_of_needs_has_nothing_that_no_page_says() -> None:
    assert len(ALL) > 50 and {"cluster.md", "reproduce.md", "easyedit.md"} <= {p for p, _ in ALL}
    said = {needed(command) for _, command in ALL}
    assert [start for start, why in NEEDS.items() if why not in said] == []


def test_a_wrong_command_is_noticed() -> None:
    with pytest.raises(Exception, match="No such option: --agains"):
        understood("rledit report demo --agains mine")
    with pytest.raises(Exception, match="No such command 'reprot'"):
        understood("rledit reprot demo")
    assert not understood("make demmo") and not understood("easyedit run")
    assert needed("easyedit run") is None


def test_the_grid_beside_easyedit_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "easyedit.md").read_text()
    (grid,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    (tmp_path / "zsre.yaml").write_text(grid)
    found = load_grid(tmp_path / "zsre.yaml", ["editors.memit.settings.value_lr=0.3"])
    assert [cell.editor.editor for cell in cells_of(found)] == ["none", "memit", "alphaedit"]
    assert "editors.memit.settings.value_lr=0.3" in text
    assert set(yaml.safe_load(grid)) >= {"name", "models", "datasets", "editors", "streams"}


def test_the_grid_for_ones_own_model_and_rows_can_be_planned_on_them(tmp_path: Path) -> None:
    (grid,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "first-steps.md").read_text(), re.S)
    model, tokenizer = learnt()
    model.save_pretrained(tmp_path / "model")  # type: ignore[operator]
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [
        {"prompt": f"The mayor of town {i} is", "target": f"Ann {i}", "subject": f"town {i}"}
        for i in range(300)
    ]
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    grid = grid.replace("path/to/model", str(tmp_path / "model")).replace("down:24-28", "down:0-1")
    (tmp_path / "mine.yaml").write_text(grid.replace("facts.jsonl", str(tmp_path / "facts.jsonl")))
    found = make_plan(load_grid(tmp_path / "mine.yaml"), Lake(str(tmp_path / "lake")))
    assert [cell.editor.editor for cell in found.missing] == ["none", "ultraedit", "ft"]
    assert [found.reason(cell) for cell in found.missing] == [None] * 3

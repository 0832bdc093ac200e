"""README.md, CONTRIBUTING.md and docs/: links lead somewhere, and what is named exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
import yaml

from pipeline.cli import app

ROOT = Path(__file__).parents[3]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
CODE = re.compile(r"```.*?```", re.S)
# Files that users make, or that a page tells how to make.
OWN = ("my_editor", "mine", "gradient_step", "trivia", "first_token", "peak_memory")


def ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", CODE.sub("", page.read_text()), re.M)
    titles = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in found]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_to_a_file_and_a_heading(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", CODE.sub("", page.read_text()))
    lost = []
    for name, heading in links:
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (heading and heading not in anchors(target)):
            lost.append(f"{name}#{heading}")
    assert lost == []


def test_every_page_is_in_the_contents() -> None:
    contents = (ROOT / "docs" / "README.md").read_text()
    missing = [
        page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name}" not in contents
    ]
    assert missing == ["README.md"]


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_and_modules_that_a_page_names_exist(page: Path) -> None:
    quoted = re.findall(r"`([^`\s]+)`", CODE.sub("", page.read_text()))
    paths = [q for q in quoted if re.match(r"(rledit|pipeline|jobs|tests|docs)/[\w/.*-]+$", q)]
    modules = [q for q in quoted if re.match(r"(rledit|pipeline|jobs|tests)\.[\w.]+$", q)]
    lost = [path for path in paths if not list(ROOT.glob(path.rstrip("/")))]
    lost += [name for name in modules if not _module(name)]
    assert [name for name in lost if not any(word in name for word in OWN)] == []


def _module(name: str) -> bool:
    """Whether a module, or a name inside one, is in the tree."""
    for parts in (name.split("."), name.split(".")[:-1], name.split(".")[:-2]):
        path = ROOT.joinpath(*parts)
        if parts and (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()):
            inner = name.split(".")[len(parts) :]
            text = (
                path.with_suffix(".py")
                if path.with_suffix(".py").is_file()
                else path / "__init__.py"
            ).read_text()
            return all(re.search(rf"\b{word}\b", text) for word in inner)
    return False


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_that_a_page_names_exist(page: Path) -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    named = re.findall(r"(?:`|^|/)rledit ([a-z][a-z-]*)", page.read_text(), re.M)
    assert [name for name in named if name not in known] == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_lines_of_prose_are_short(page: Path) -> None:
    """Tables, code, links on a line of their own and quoted messages may be long."""
    prose = CODE.sub("", page.read_text()).splitlines()
    long = [line for line in prose if len(line) > 110 and not line.startswith(("|", "    "))]
    assert long == []


def test_the_table_of_what_to_touch_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "extending.md").read_text()
    (table,) = re.findall(r"## Which file do I touch\n(.*?)\n## ", text, re.S)
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 8
    for what, touch, where, test in rows:
        named = re.findall(r"`([\w./*-]+)`", f"{touch} {where} {test}")
        files = [name for name in named if "/" in name]
        assert files, what
        assert [name for name in files if not (ROOT / name).exists()] == [], what
        for module, registry in re.findall(r"`([A-Z_]+)` in `([\w/]+\.py)`", where):
            assert re.search(rf"^{module}\b", (ROOT / registry).read_text(), re.M), what


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None and citation["version"] == version[1]
    assert citation["license"] == "Apache-2.0"
    (paper,) = citation["references"]
    assert paper["title"] == "Reinforced Lifelong Editing for Language Models"
    assert paper["identifiers"][0]["value"] == "arXiv:2502.05759"

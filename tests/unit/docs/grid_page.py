"""docs/grid.md written from the code: every key that a grid takes, for whoever writes one.

Keys, types and defaults are those of the dataclasses, meanings those of their docstrings, ranges
those that the parser checks. `make docs` writes the page; a test holds it against the code.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from textwrap import fill
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pipeline.config.grid import (
    NAMES,
    AnswersEntry,
    CovarianceEntry,
    DatasetEntry,
    EditorEntry,
    EvalDataEntry,
    Grid,
    ModelEntry,
    StreamEntry,
    WildEntry,
)
from pipeline.config.presets import PRESETS
from pipeline.config.ranges import number_problem
from pipeline.config.resources import ResourcesEntry
from pipeline.config.stored_words import documented, documented_value
from rledit.datasets import FORMATS
from rledit.editors import EDITORS
from rledit.editors.conventions import Conventions
from rledit.editors.crispedit import CrispEdit
from rledit.editors.hypernetwork_config import HypernetworkConfig
from rledit.editors.locate_editor import LocateConfig
from rledit.editors.overlay_editor import OverlayEditor
from rledit.protocols import PROTOCOLS
from rledit.step_size import Step
from rledit.world import SCHEMAS, WORLD_MODELS, WorldConfig

PAGE = Path(__file__).parents[3] / "docs" / "grid.md"
RECIPES = ("official", "paper", "converged")
BY_RECIPE = tuple(
    cls.Config for cls in EDITORS.values() if issubclass(cls, OverlayEditor | CrispEdit)
)

INTRODUCTION = """\
# Every key of a grid

<!-- Written by `make docs` from the dataclasses of `pipeline/config` and `rledit/editors`. Change
a docstring there, not this page. -->

A grid is a YAML file, or the same keys by `--set`: `--set seeds=[0,1]`, and
`--set editors.rledit.settings.rank=64` for an entry of a list by its name. A key that is not on
this page is refused with file, line and the nearest valid name. A default of "–" means that nothing
is set. A word that a key had before (`statistics` for `covariance`, `standin` for `proxy`) is
accepted in this version for the last time, with a warning. Lists are written as lists, even with
one entry: `seeds: [3]`.

A small complete grid:

```yaml
name: mine
models: [{name: tiny, world_model: tiny}]
datasets: [{name: world}]
editors: [{editor: none}, {editor: ultraedit}]
streams: [{n_batches: 3, batch_size: 4}]
```

A trained method that names no recipe trains as published, mostly for one optimiser step, which
buys little on a model of your own: `{editor: rledit, settings: {reference: converged}}` trains
until it pays no more ([recipes](methods.md#recipes)). `world_model` is `tiny`, or the family of a
model (`llama`, `gptj`, `qwen3`, …; [names](#names)).
"""

EDITORS_NOTE = """\
What an entry of `editors` may have under `settings`. Presets fill them in for the models of
published tables; [methods](methods.md) says what they do."""

STREAMS_NOTE = """\
A list, one entry per stream. `proxy`, in the same form, is the stream that takes its place below
scale `full`."""

# The groups of a grid: the title of a section, the class behind it, the key that it stands under.
GROUPS: tuple[tuple[str, type, str], ...] = (
    ("The grid", Grid, ""),
    ("models", ModelEntry, "A list, one entry per model."),
    ("models: overrides", type(WORLD_MODELS["llama"]), "The defaults are those of `llama`."),
    ("datasets", DatasetEntry, "A list, one entry per dataset."),
    ("datasets: world", WorldConfig, ""),
    ("editors", EditorEntry, "A list, one entry per editor."),
    ("streams", StreamEntry, STREAMS_NOTE),
    ("covariance", CovarianceEntry, ""),
    ("eval_data", EvalDataEntry, ""),
    ("answers", AnswersEntry, ""),
    ("wild", WildEntry, ""),
    ("resources", ResourcesEntry, ""),
)
SECTION_OF = {cls: title for title, cls, _ in GROUPS}


def meanings(cls: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say of each key, the nearest class first."""
    found: dict[str, str] = {}
    shared: dict[str, str] = {}
    conventions = Conventions.__mro__ if issubclass(cls, HypernetworkConfig) else ()
    for base in (*cls.__mro__, *conventions):
        section = re.search(r"^Attributes:\n((?:    .*\n?|\n)*)", _doc(base), re.M)
        if section is None:
            continue
        text = re.sub(r",\n    (?=\w)", ", ", section[1])  # several names over several lines
        for names, said in re.findall(r"^    ([\w, ]+): ((?:.*\n?)(?:        .*\n?)*)", text, re.M):
            several = names.split(", ")
            for name in several:
                (shared if len(several) > 1 else found).setdefault(name, " ".join(said.split()))
    return shared | found


def _doc(cls: type) -> str:
    return inspect.cleandoc(cls.__doc__ or "") if is_dataclass(cls) or cls.__doc__ else ""


def shown_type(kind: Any, name: str) -> str:
    """A type as the page says it, with the range of its numbers."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind == Step and name.endswith("step"):
        return "number > 0 or `auto`"
    if origin is Literal:
        return " \\| ".join(f"`{documented_value(value)}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(shown_type(each, name) for each in inner if each is not type(None))
    if origin is tuple:
        return "list" if is_dataclass(_bare(inner[0])) else f"list of {shown_type(inner[0], name)}"
    if origin is dict:
        return "mapping"
    if kind in SECTION_OF:
        return "group"
    words = {str: "text", bool: "`true` \\| `false`", int: "integer", float: "number"}
    return words[kind] + (_range(name) if kind in (int, float) else "")


def _bare(kind: Any) -> Any:
    """A class without the `None` that may stand beside it."""
    return next((each for each in get_args(kind) if each is not type(None)), kind)


def _range(name: str) -> str:
    """The range that the parser checks."""
    least = next(value for value in (0, 0.5, 1) if number_problem(name, value) is None)
    most = re.search(r"at most (\d+)", number_problem(name, 10**40) or "")
    low = {0: "≥ 0", 0.5: "> 0", 1: "≥ 1"}[least]
    return f" {low}" + (f", ≤ {int(most[1]):,}" if most and int(most[1]) < 2**62 else "")


def shown_value(value: Any) -> str:
    """A value as YAML has it."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{documented_value(str(value))}`"


def default(cls: type, field: Field[Any]) -> str:
    """The default of a key; by recipe where the recipe decides it."""
    if field.default is MISSING and field.default_factory is MISSING:
        return "the model's" if field.name == "modules" else "required"
    if field.default_factory is not MISSING:
        made = field.default_factory()
        return f"[its own](#{anchor(SECTION_OF[type(made)])})" if is_dataclass(made) else "`{}`"
    if field.default is None and issubclass(cls, HypernetworkConfig):
        by_recipe = [recipe_value(cls, field.name, recipe) for recipe in RECIPES]
        if by_recipe[0] == by_recipe[1] == by_recipe[2]:
            return shown_value(by_recipe[0])
        pairs = zip(RECIPES, by_recipe, strict=True)
        return ", ".join(f"{recipe}: {shown_value(value)}" for recipe, value in pairs)
    if field.default is None and cls in BY_RECIPE:
        found = {r: getattr(cls(modules=("down:0",), reference=r), field.name) for r in RECIPES[:2]}
        if any(value is not None for value in found.values()):
            return ", ".join(f"{recipe}: {shown_value(value)}" for recipe, value in found.items())
    return shown_value(field.default)


def recipe_value(cls: Any, name: str, recipe: str) -> Any:
    """What a setting of a hypernetwork method is under a recipe."""
    config = cls(modules=("down:0",), reference=recipe)
    conventions = config.conventions()
    return getattr(conventions if hasattr(conventions, name) else config, name)


def anchor(title: str) -> str:
    """The link to a section, as GitHub and most renderers make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def rows(cls: type) -> dict[str, str]:
    """The rows of a class's table by key.

    Raises:
        ValueError: A key that no docstring explains.
    """
    said, kinds, found = meanings(cls), get_type_hints(cls), {}
    for field in fields(cls):
        if field.name not in said:
            raise ValueError(f"{cls.__name__}.{field.name} is not in any `Attributes:` section")
        key = documented(field.name)
        cells = (f"`{key}`", shown_type(kinds[field.name], field.name),
                 default(cls, field), plain(said[field.name]))  # fmt: skip
        found[key] = f"| {' | '.join(cells)} |"
    return found


def plain(text: str) -> str:
    """Text of a docstring as Markdown inside a table."""
    text = re.sub(r"(?<=\. )None:", "Not given:", text)
    return re.sub(r"\bNone:", "not given:", text.replace("``", "`").replace("|", "\\|"))


def table(lines: Iterable[str]) -> Iterator[str]:
    yield from ("| key | type | default | meaning |", "| :-- | :-- | :-- | :-- |", *lines, "")


def summary(cls: type) -> str:
    """The first line of a class's docstring."""
    return plain(_doc(cls).split("\n\n")[0].replace("\n", " "))


def editors() -> Iterator[str]:
    """A section for each editor: what it has beside the settings that its kind shares."""
    yield from ("## Settings of editors", "", EDITORS_NOTE, "")
    sections: dict[type, str] = {
        HypernetworkConfig: "Settings of hypernetwork methods",
        LocateConfig: "Settings of locate-then-edit methods",
    }
    for cls, title in sections.items():
        yield from (f"### {title}", "", *table(rows(cls).values()))
    for name, editor in EDITORS.items():
        sections.setdefault(editor.Config, name)
    for name, editor in EDITORS.items():
        own = rows(editor.Config)
        yield from (f"### {name}", "", summary(editor.Config), "")
        bases = [cls for cls in editor.Config.__mro__ if sections.get(cls, name) != name]
        if bases:
            common, title = rows(bases[0]), sections[bases[0]]
            own = {key: row for key, row in own.items() if common.get(key) != row}
            link = f"[{title}](#{anchor(title)})"
            yield from (f"As in {link}" + (", but for:" if own else "."), "")
        if own:
            yield from table(own.values())


def names() -> Iterator[str]:
    """What may be said where a key takes a name."""
    lists = {
        "`protocols`": PROTOCOLS, "`measurements`": map(documented_value, NAMES),
        "`preset` of a model": PRESETS,
        "`world_model` of a model": WORLD_MODELS, "`schema` of a dataset": SCHEMAS,
        "`format` of a dataset": FORMATS, "`editor` of an editor": EDITORS,
    }  # fmt: skip
    yield from ("## Names", "", "| where | names |", "| :-- | :-- |")
    for where, found in lists.items():
        yield f"| {where} | {', '.join(f'`{name}`' for name in found)} |"


def page() -> str:
    """The whole page."""
    lines = [INTRODUCTION]
    for title, cls, where in GROUPS:
        lines += [f"## {title}", "", fill(f"{summary(cls)} {where}".strip(), 100), ""]
        lines += table(rows(cls).values())
    return "\n".join([*lines, *editors(), *names()]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())

"""docs/support.md written from the registries: what works with what, and how each is known to.

Methods, data, protocols and models are those of their registries; what each can do is asked of the
code, not said here. A new entry needs its own facts (`Editor.checked`) and `make docs`; where facts
are missing, the page is refused with what to write. A test holds it against the code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from textwrap import fill
from typing import Any, get_args

from pipeline.config.presets import OWN, PRESETS, Preset, preset_setting
from pipeline.inputs.gguf_files import readable_architectures
from rledit.datasets import FORMATS
from rledit.datasets.fields import Place
from rledit.datasets.format import Format
from rledit.editing.export import ExportError
from rledit.editing.memories import Form, refuse_form
from rledit.editing.methods import MethodError, method_of
from rledit.editors import EDITORS, Editor
from rledit.editors.overlay_editor import OverlayEditor
from rledit.families import FAMILIES
from rledit.protocols import PROTOCOLS
from rledit.records import Edit, Probe
from rledit.world import BOS_FAMILIES
from tests.cluster.test_zero import EVERY_EDITOR
from tests.cluster.zero_worker import MIXED
from tests.unit.docs.method_checks import checks
from tests.unit.helpers.tiny_models import tiny_model

PAGE = Path(__file__).parents[3] / "docs" / "support.md"
YES, NO = "yes", "–"

INTRODUCTION = """\
# What works with what

<!-- Written by `make docs` from the registries. Change a fact where it belongs (a class, a preset,
a schema), not on this page. -->

Every method, data schema, protocol and model that this project has: what each needs, what was held
against what, and which settings are published. A grid may combine any of them; what cannot go
together is told by `rledit plan`, and such a cell is recorded as `skipped` with its reason.
"""

METHODS_NOTE = """\
All of them resume in mid-stream with equal results, restore the unedited model bit by bit, and
run on every [family](#families) (`tests/unit/rledit/editors/test_editors.py`).

- *needs*, beside the edits' own prompts and targets: a `train` pool, with the prompts that
  training learns from; a `subject` that occurs in the prompt; `C`, the key covariance of running
  text; `train pool`: batches drawn during the stream.
- *shorter*: a longer stream answers for a shorter one, which then takes no run of its own.
- *export*: in all forms (checkpoint, delta, LoRA adapter), or as a memory beside the unedited
  weights.
- *own facts*: taken by `rledit edit` for facts of your own.
- *ZeRO-3*: among the tests that edit a model sharded over two CPU ranks
  (`tests/cluster/test_zero.py`), which share its prompts as a gang does.
- *checked against*: `release`: numbers recorded from the authors' implementation (`release°`: in
  the full recordings only, which are not part of the repository, see
  `tests/golden/recorded/README.md`); `reference`: a plain computation of the published equations;
  `properties` that the equations have."""

SETTINGS_NOTE = """\
Where the settings of a method on a model come from, by number, or *own* where no paper or release
gives them: those of the nearest model, or first values, marked in tables. Two entries: it depends
on the data set. A version for chats stands under its base model. Our own for all methods on
{own}."""

DATA_NOTE = """\
By the sample row of each schema, what its rows can bring; a file may lack some of it, which
`rledit data check` counts; *protocol*: the one that its papers score it by, where they use one. A
method that needs what the rows do not bring is not run on them; likelihoods of an old answer
({rival}) are not scored without one."""

MODELS_NOTE = """\
Presets: a name for `preset` of a model in a grid, with revision, settings and a small proxy of
the same family that `--scale proxy` puts in its place. Any other checkpoint of a [known
layout](running.md#which-checkpoints-can-be-edited) is named by `checkpoint`. Large models are
planned and estimated; none of them was run here."""

FAMILIES_NOTE = """\
Described by hand; each is tested with every method, and every other type of transformers is
examined by its classes. *ZeRO-3*: passes and edits of a sharded model are compared with the whole
one by `tests/cluster/test_zero.py`. *GGUF*: the installed transformers reads files of it."""

NEEDS = {"train": "train", "subject": "subject", "statistics": "C", "training_data": "train pool"}


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A Markdown table and an empty line."""
    yield f"| {' | '.join(titles)} |"
    yield f"|{' :-- |' * len(titles)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


# Methods


def needs(cls: type[Editor]) -> str:
    """What a method needs at most, in words."""
    order = {name: i for i, name in enumerate(NEEDS)}
    found = []
    for need in sorted(cls.needs, key=lambda n: (order.get(n, len(order)), n)):
        words = NEEDS.get(need, need.replace("_", " "))
        if need == "train" and cls.trains_on:
            words += f" ({', '.join(p for p in get_args(Probe) if p in cls.trains_on)})"
        found.append(words.replace("locality prompt", "locality"))
    return ", ".join(found) or NO


def edits(cls: type[Editor]) -> str:
    """Where a method writes."""
    if issubclass(cls, OverlayEditor):
        return "a memory at one `down`"
    return {"any": "any MLP matrix", "down": "`down`s", "one_down": "one `down`"}[
        cls.target_modules
    ]


def export(cls: type[Editor]) -> str:
    """In which forms the edited model is written."""
    if not issubclass(cls, OverlayEditor):
        return "all forms"
    refused = []
    for form in get_args(Form):
        try:
            refuse_form(cls.name, form)
        except ExportError:
            refused.append(form)
    kept = [form for form in get_args(Form) if form not in refused]
    return f"{', '.join(kept)} and memory"


def takes_own_facts(name: str) -> bool:
    """Whether `rledit edit` takes a method."""
    try:
        method_of(tiny_model("llama"), name)
    except MethodError:
        return False
    return True


def methods() -> Iterator[str]:
    sharded = EVERY_EDITOR
    yield from ("## Methods", "", METHODS_NOTE, "")
    titles = (
        "method",
        "needs",
        "writes",
        "shorter",
        "export",
        "own facts",
        "ZeRO-3",
        "checked against",
    )
    yield from table(
        titles,
        (
            (
                f"`{name}`", needs(cls), edits(cls) if name != "none" else NO,
                YES if cls.prefix_safe else NO, export(cls) if name != "none" else NO,
                YES if takes_own_facts(name) else NO, YES if name in sharded else NO,
                checks(name, cls),
            )
            for name, cls in EDITORS.items()
        ),
    )  # fmt: skip


# Settings


@cache
def origins() -> Mapping[str, int]:
    """Where published settings come from, numbered."""
    found: dict[str, int] = {}
    for preset in PRESETS.values():
        for by_schema in preset.settings.values():
            for setting in by_schema.values():
                if setting.origin != OWN:
                    found.setdefault(setting.origin, len(found) + 1)
    return found


def origin(preset: str, editor: str) -> str:
    """Where the settings of a method on a model come from, by number."""
    known = PRESETS[preset].settings.get(editor)
    target_modules = EDITORS[editor].target_modules
    given = known.values() if known else [preset_setting(preset, editor, None, target_modules)]
    found = {"own" if s.origin == OWN else str(origins()[s.origin]) for s in given}
    return ", ".join(sorted(found))


def settings() -> Iterator[str]:
    """Methods × the models for which something is published; equal columns once."""
    editing = [name for name in EDITORS if name != "none"]
    columns: dict[tuple[str, ...], list[str]] = {}
    for preset in PRESETS:
        columns.setdefault(tuple(origin(preset, name) for name in editing), []).append(preset)
    nothing = [n for column, names in columns.items() if set(column) == {"own"} for n in names]
    columns = {column: names for column, names in columns.items() if set(column) != {"own"}}
    titles = ["method", *(", ".join(f"`{name}`" for name in shortest(n)) for n in columns.values())]
    yield from ("## Settings", "")
    yield fill_text(SETTINGS_NOTE.format(own=", ".join(f"`{name}`" for name in nothing)))
    yield ""
    rows = ((f"`{n}`", *(column[i] for column in columns)) for i, n in enumerate(editing))
    yield from table(titles, rows)
    for text, number in origins().items():
        yield f"{number}. {text if text.startswith('arXiv') else text[0].upper() + text[1:]}."
    yield ""


def shortest(names: Sequence[str]) -> list[str]:
    """Names without those that stand for the version for chats of another one."""

    def base(name: str) -> str:
        return name.replace("-instruct", "").removesuffix("-it")

    return [n for n in names if base(n) == n or base(n) not in names]


# Data


def example(form: Format) -> list[Edit]:
    """The edits of a schema's sample row."""
    place = Place(file="sample", row=1)
    return form.read(form.open_row(form.example, place), place)


def gives(edits: Sequence[Edit]) -> dict[str, bool]:
    """What the edits of a row bring beside prompts and targets; one that has it is enough."""
    return {
        "subject": any(edit.subject is not None for edit in edits),
        "rephrase": any(edit.rephrases for edit in edits),
        "locality": any(edit.locality for edit in edits),
        "old answer": any(edit.old_target is not None for edit in edits),
        "portability": any(edit.consequences for edit in edits),
    }


def left_out(edits: Sequence[Edit]) -> list[str]:
    """The needs of methods that such edits do not meet."""
    found = []
    there = gives(edits)
    if not there["subject"]:
        found.append("subject")
    asked = {frozenset(cls.trains_on) for cls in EDITORS.values() if cls.trains_on}
    for probe in sorted({p for each in asked for p in each}):
        if not there[probe.removesuffix(" prompt")]:
            found.append(f"train ({probe.removesuffix(' prompt')})")
    return found


def data() -> Iterator[str]:
    rival = [f"`{n}`" for n, p in PROTOCOLS.items() if "rival" in p.asks]
    yield from ("## Data", "", fill_text(DATA_NOTE.format(rival=", ".join(rival))), "")
    facts = list(gives([]))
    titles = ("schema", "data set", *facts, "protocol", "left out: those that need")
    rows = []
    for name, form in FORMATS.items():
        found = example(form)
        customary = form.protocols[:1]  # the customary one comes first
        rows.append(
            (
                f"`{name}`", re.split(r" \(|, |: | as ", form.title)[0].replace("|", "\\|"),
                *(YES if there else NO for there in gives(found).values()),
                ", ".join(f"`{p}`" for p in customary) or "any", ", ".join(left_out(found)) or NO,
            )
        )  # fmt: skip
    yield from table(titles, rows)


# Protocols


def protocols() -> Iterator[str]:
    asks = {
        "rival": "likelihood of the old answer", "text": "a text, greedily, to a line break",
        "free": "a free answer",
    }  # fmt: skip
    yield from ("## Protocols", "")
    yield fill_text(
        "How each scores is in [evaluation](evaluation.md#protocols). All score every method, "
        "whether it writes into matrices or beside them."
    )
    yield ""
    rows = []
    for name, known in PROTOCOLS.items():
        asked = [asks.get(ask, ask) for ask in sorted(known.asks)]
        rows.append(
            (
                f"`{name}`", ", ".join(asked) or "likelihood of the answer",
                "old answers" if "rival" in known.asks else NO,
                "`--judge`" if known.judged else NO,
            )
        )  # fmt: skip
    yield from table(("protocol", "asks the model for", "needs of the data", "judge"), rows)


# Models


def nearest(preset: Preset) -> str:
    """What is published for a model."""
    origins_ = [s.origin for by in preset.settings.values() for s in by.values()]
    editors = [n for n, by in preset.settings.items() if any(s.origin != OWN for s in by.values())]
    return f"{len(editors)} of {len(preset.settings)}" if len(set(origins_)) > 1 else NO


def models() -> Iterator[str]:
    yield from ("## Models", "", fill_text(MODELS_NOTE), "")
    titles = (
        "preset",
        "family",
        "parameters",
        "layers",
        "chat",
        "BOS",
        "weights",
        "published settings",
    )
    rows = []
    for name, preset in PRESETS.items():
        weights = preset.packed or ("gated" if preset.gated else "open")
        rows.append(
            (
                f"`{name}`", f"`{preset.family}`", f"{preset.shape.parameters / 1e6:,.0f} M",
                str(preset.shape.layers), YES if preset.instruct else NO, YES if preset.bos else NO,
                weights, nearest(preset),
            )
        )  # fmt: skip
    yield from table(titles, rows)


def families() -> Iterator[str]:
    yield from ("## Families", "", fill_text(FAMILIES_NOTE), "")
    readable = readable_architectures()
    rows = []
    for name, family in FAMILIES.items():
        kinds = ", ".join(f"`{kind}`" for kind in family.target_modules)
        gguf = name in readable or name.removesuffix("_text") in readable
        rows.append(
            (
                f"`{name}`", kinds, YES if family.norm_after_mlp else NO,
                YES if name in BOS_FAMILIES else NO, YES if name in MIXED else NO,
                YES if gguf else NO,
            )
        )  # fmt: skip
    titles = ("family", "matrices", "norm behind the MLP", "proxies write BOS", "ZeRO-3", "GGUF")
    yield from table(titles, rows)


def fill_text(text: str) -> str:
    """A paragraph in lines that can be read."""
    return fill(" ".join(text.split()), 106, break_long_words=False, break_on_hyphens=False)


def page() -> str:
    """The whole page.

    Raises:
        MissingFactsError: An entry of a registry lacks its facts; names it and what to write.
    """
    parts: Sequence[Any] = (methods, settings, data, protocols, models, families)
    return "\n".join([INTRODUCTION, *(line for part in parts for line in part())]).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())

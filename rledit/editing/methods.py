"""Which editor with which settings, for a model that nobody has tuned one for.

Only editors that need nothing but the facts are taken by themselves. Layers are chosen by relative
depth, as they were found on SmolLM2-135M; steps are calibrated on the model at hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from rledit.editors import Editor, TrainableEditor, editor_class
from rledit.editors.overlay_editor import OverlayEditor
from rledit.errors import UserError
from rledit.families import edited_modules, family_of

PASSES = 20
"""Passes over a batch at most: each goes over the facts that the ones before did not write."""


class MethodError(UserError, ValueError):
    """An editor that cannot be taken for facts of a user's own, or not with these settings."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """An editor with its settings.

    Attributes:
        editor: Its name.
        settings: All that differs from its defaults, `modules` among it.
        passes: Passes over a batch at most.
    """

    editor: str
    settings: Mapping[str, Any] = field(hash=False)
    passes: int = PASSES

    @property
    def cls(self) -> type[Editor]:
        """The editor's class."""
        return editor_class(self.editor)

    @property
    def modules(self) -> tuple[str, ...]:
        """The linear layers that it edits."""
        return tuple(self.settings["modules"])

    @property
    def config(self) -> Any:
        """Its configuration.

        Raises:
            MethodError: A setting is none of the editor's.
        """
        known = {f.name for f in fields(self.cls.Config)}
        if unknown := sorted(set(self.settings) - known):
            raise MethodError(
                f"editor {self.editor!r} has no setting {unknown[0]!r}; it has "
                f"{', '.join(sorted(known))}"
            )
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in self.settings.items()}
        return self.cls.Config(**values)

    @property
    def needs_subject(self) -> bool:
        """Whether it looks subjects up."""
        return "subject" in self.cls.needs_of(self.config)

    @property
    def needs_covariance(self) -> bool:
        """Whether it needs the key covariance of its modules."""
        return "statistics" in self.cls.needs_of(self.config)

    @property
    def trains(self) -> bool:
        """Whether a network has to be trained before it edits."""
        return issubclass(self.cls, TrainableEditor)

    @property
    def key(self) -> str:
        """What batches have in common whose running statistics go on from each other."""
        settings = {k: v for k, v in self.settings.items() if k != "step"}
        return json.dumps([self.editor, settings], sort_keys=True, default=list)

    def record(self) -> dict[str, Any]:
        """All of it as plain JSON."""
        return {"editor": self.editor, "settings": dict(self.settings), "passes": self.passes}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Method:
        """The method that `record` wrote down."""
        settings = {
            k: tuple(v) if isinstance(v, list) else v for k, v in record["settings"].items()
        }
        return cls(editor=record["editor"], settings=settings, passes=record["passes"])


def method_of(model: Any, editor: str, settings: Mapping[str, Any] | None = None) -> Method:
    """An editor that the user names, with our settings where they give none.

    Args:
        model: The language model.
        editor: The editor's name.
        settings: What the user sets; `target_modules` is another name of `modules`.

    Raises:
        MethodError: The editor edits nothing, or draws training data while it edits; it has no such
            setting, or the model no such module.
    """
    found = editor_class(editor)
    if editor == "none":
        raise MethodError("editor 'none' edits nothing; name another one")
    if issubclass(found, OverlayEditor):
        raise MethodError(
            f"editor {editor!r} keeps its edits in a memory beside the model, and a ledger holds "
            "what batches changed in its matrices; run it in a grid (rledit run), and take its "
            "model away with rledit export, or take ultraedit or memit here"
        )
    given = dict(settings or {})
    if "target_modules" in given:
        given["modules"] = given.pop("target_modules")
    if isinstance(given.get("modules"), str):
        given["modules"] = [given["modules"]]
    passes = int(given.pop("passes_over_facts", PASSES))
    values = {**_defaults(model, found), **given}
    if values.get("patience") == 0 and "validation_batches" not in given:
        values.pop("validation_batches", None)  # ours: there is nothing to validate
    method = Method(editor=editor, settings=values, passes=passes)
    if named := getattr(method.config, "modules", ()):
        try:
            edited_modules(model, named)
        except ValueError as error:
            raise MethodError(f"editor {editor!r}: {error}") from None
    if found.instruction_of(method.config) is not None:
        raise MethodError(
            f"editor {editor!r} edits answers to prompts that carry its instruction, and people "
            "ask without it; take mend, or set instruction to 0"
        )
    if "texts" in found.needs_of(method.config):
        raise MethodError(
            f"editor {editor!r} reads ordinary text anew while it edits, and there is none here; "
            "leave recompute_at out"
        )
    if "training_data" in found.needs_of(method.config):
        raise MethodError(
            f"editor {editor!r} draws training data while it edits, and there is none here; take "
            "ultraedit, memit or rledit"
        )
    return method


_OF_ALL = ("target_modules", "passes_over_facts")  # settings beside those of an editor


def candidates(model: Any, settings: Mapping[str, Any] | None = None) -> list[Method]:
    """Editors that need nothing but the facts: one that takes shifts from normal equations, and
    one that descends the loss.

    Args:
        model: The language model.
        settings: What the user sets, of every candidate that has such a setting.

    Raises:
        MethodError: None of them has it.
    """
    given = dict(settings or {})
    known = {
        editor: {*(f.name for f in fields(editor_class(editor).Config)), *_OF_ALL}
        for editor in ("ultraedit", "ft")
    }
    if unknown := sorted(set(given).difference(*known.values())):
        have = "; ".join(f"{name} has {', '.join(sorted(own))}" for name, own in known.items())
        raise MethodError(
            f"no editor that is tried where none is named has a setting {unknown[0]!r}: {have}"
        )
    found: list[Method] = []
    for editor, names in known.items():
        own = {k: v for k, v in given.items() if k in names}
        found.append(method_of(model, editor, {"modules": late(model), **own}))
    return list({method.key: method for method in found}.values())


def late(model: Any) -> tuple[str, ...]:
    """The matrices that write into the residual stream of the last layers but one, a sixth of all
    layers: of 30 layers, 24 to 28."""
    n = _depth(model)
    count = max(1, round(n / 6))
    last = max(0, n - 2)
    return (f"down:{max(0, last - count + 1)}-{last}",)


def _early(model: Any) -> tuple[str, ...]:
    """Those of two layers at a quarter of the depth: of 30 layers, 8 and 9."""
    n = _depth(model)
    first = min(round(0.27 * n), n - 1)
    return (f"down:{first}-{min(first + 1, n - 1)}",)


def _depth(model: Any) -> int:
    return len(model.get_submodule(family_of(model).layers))


def _defaults(model: Any, editor: type[Editor]) -> dict[str, Any]:
    """Our settings of an editor for facts of a user's own."""
    name = editor.name
    if editor.target_modules == "one_down":
        modules: tuple[str, ...] = (_early(model)[0].partition("-")[0],)
    else:
        modules = _early(model) if "subject" in editor.needs else late(model)
    values: dict[str, Any] = {"modules": modules}
    values |= _VALUES.get(name, {})
    known = {f.name for f in fields(editor.Config)}
    if "z_clip" in known:
        values["z_clip"] = 3.0
    if issubclass(editor, TrainableEditor):
        values |= _SEQUENCES if name == "dafnet" else _TRAINED
    return {k: v for k, v in values.items() if k in known}


_VALUE = {"value_lr": 0.5, "value_decay": 1e-3, "clamp": 4.0, "value_steps": 10}
_VALUES: dict[str, dict[str, Any]] = {
    "ft": {"steps": 3, "lr": 5e-4},
    "ft_m": {"steps": 3, "lr": 5e-4},
    "locft": {"passes": 5, "batch_size": 10, "lr": 2e-4},
    "crispedit": {"passes": 10, "batch_size": 10, "lr": 5e-4},
    "memit": {**_VALUE, "moment_weight": 30.0},
    "prune": {**_VALUE, "moment_weight": 30.0},
    "rect": {**_VALUE, "moment_weight": 30.0},
    "alphaedit": {**_VALUE, "threshold": 0.02, "ridge": 1.0},
    "nas": _VALUE,
    "encore": _VALUE,
    "lyaplock": {**_VALUE, "moment_weight": 30.0},
    "betaedit": {**_VALUE, "moment_weight": 30.0, "ridge": 1.0},
    "deltaedit": {**_VALUE, "ridge": 1.0},
    "rome": {"value_lr": 0.5, "value_decay": 1e-3, "clamp": 4.0, "value_steps": 10},
}
_SEQUENCES = {
    "hidden_width": 256,
    "head_width": 128,
    "weighing_width": 64,
    "inner_width": 256,
    "initial_step": 1e-3,
    "train_steps": 600,
    "sequence_cap": 40,
    "curriculum_patience": 100,
    "meta_lr": 3e-4,
}
_TRAINED = {
    "reference": "converged",
    "patience": 2,
    "validate_every": 1,
    "validation_batches": 4,
    "trajectory_batches": 10,
    "train_steps": 2,
    "initial_step": 5e-4,
    "meta_lr": 1e-4,
}

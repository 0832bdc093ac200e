"""Small LyapLock, BetaEdit and DeltaEdit editors on tiny models, and streams for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rledit.editors import Editor, editor_class
from rledit.editors.locate_editor import SpreadEditor
from rledit.locate.covariance import CovarianceFingerprint, KeyCovariance
from rledit.model import EditableModel, Execution
from rledit.tokenization import EditBatch
from tests.unit.helpers.text_edits import text_batches, tiny_tokenizer
from tests.unit.helpers.tiny_models import tiny_model

# Not the last layer: there δ reaches few answers, and round-off decides what is written.
MODULES = ("down:1,2",)
CONTEXTS = ("w01 w02 {}", "w03 {}", "w04 w05 w06 {}")
VALUE: dict[str, Any] = {"value_steps": 5, "value_lr": 0.5, "clamp": 4.0, "value_decay": 0.01}
SETTINGS: dict[str, dict[str, Any]] = {
    "lyaplock": {"moment_weight": 0.5, "drift_budget": 0.8},
    "betaedit": {"threshold": 0.5, "ridge": 0.3, "moment_weight": 2.0, "refresh_every": 3},
    "deltaedit": {
        "threshold": 0.5,
        "ridge": 0.3,
        "settling_edits": 5,
        "deviations": 0.8,
        "space_floor": 1e-4,
    },
}


def moments(model: EditableModel) -> dict[str, KeyCovariance]:
    """Key covariances in float64 whose eigenvalues fall from above any threshold to near zero."""
    found: dict[str, KeyCovariance] = {}
    for seed, name in enumerate(model.modules):
        width = model.shape(name)[0]
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(200, width, generator=generator).double()
        identity = CovarianceFingerprint(
            model_hash="tiny", module=name, corpus_hash="random", dtype="float64"
        )
        found[name] = KeyCovariance(identity, width)
        found[name].update(rows * torch.logspace(0.5, -2, width).double())
    return found


def make(
    name: str, family: str = "llama", double: bool = False, budget: int = 4096, **settings: Any
) -> SpreadEditor:
    whole = tiny_model(family)
    model = EditableModel(
        whole if double else whole.float(),
        tiny_tokenizer(family),
        MODULES,
        Execution(token_budget=budget),
    )
    cls = editor_class(name)
    config = cls.Config(
        modules=MODULES, contexts=CONTEXTS, **VALUE, **{**SETTINGS.get(name, {}), **settings}
    )
    editor = cls(model, config)
    assert isinstance(editor, SpreadEditor)
    editor.load_covariance(moments(model))
    return editor


def stream(editor: Editor, n: int = 4, size: int = 3) -> list[EditBatch]:
    return text_batches(editor.model, n, size, group_size=editor.group_size)


def edited(editor: Editor) -> dict[str, Tensor]:
    return editor.model.weights.state_dict()


def ready(name: str, **settings: Any) -> Any:
    """A LyapLock, BetaEdit or DeltaEdit that has edited two batches, and the two next ones."""
    editor = make(name, **settings)
    first, second, *rest = stream(editor)
    editor.edit(first)
    editor.edit(second)
    return editor, rest

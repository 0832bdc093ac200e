"""Contract of every editor in the registry; a new editor is covered without code of its own."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rledit.editors import EDITORS, Editor, TrainableEditor, editor_class
from rledit.families import FAMILIES
from rledit.model import EditableModel
from rledit.tokenization import EditBatch, TokenizationError
from tests.unit.helpers.text_edits import equip, random_edits, text_batches, tiny_tokenizer
from tests.unit.helpers.tiny_models import tiny_model, two_shapes

# Small networks, few steps, and steps large enough for edits to show in float32.
SETTINGS: dict[str, Any] = {
    "rank": 4,
    "n_blocks": 1,
    "initial_step": 1e-2,
    "step": 1e-2,
    "steps": 3,
    "lr": 1e-2,
    "meta_lr": 1e-3,
    "depth": 2,
    "passes": 2,
    "contexts": ("w01 w02 {}", "w03 {}"),
    "value_steps": 4,
    "value_lr": 0.5,
    "clamp": 4.0,
    "moment_weight": 1.0,
    "threshold": 1.0,
    "ridge": 1.0,
    "warmup_batches": 2,
    "retrain_every": 1,
    "retrain_batches": 2,
    "hidden_width": 8,
    "head_width": 8,
    "weighing_width": 4,
    "inner_width": 8,
}
EDITING = [name for name in EDITORS if name != "none"]


def make(
    name: str,
    family: str = "llama",
    dtype: torch.dtype = torch.float32,
    equipped: bool = True,
) -> Editor:
    model = tiny_model(family).to(dtype)
    cls = editor_class(name)
    known = {f.name for f in fields(cls.Config)}
    choices = {"any": two_shapes(model), "down": ("down:1,3",), "one_down": ("down:2",)}
    modules = () if name == "none" else choices[cls.target_modules]
    settings = {k: v for k, v in SETTINGS.items() if k in known}
    if not getattr(cls.Config, "transition", True):
        settings.pop("depth")
    editable = EditableModel(model, tiny_tokenizer(family), modules)
    editor = cls(editable, cls.Config(modules=modules, **settings))
    if equipped:
        equip(editor)
    return editor


def batches(editor: Editor, n: int, size: int = 6, seed: int = 0) -> list[EditBatch]:
    return text_batches(editor.model, n, size, seed, editor.group_size)


def matrices(editor: Editor) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in editor.model.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", EDITING)
def test_edits_change_the_declared_matrices_and_nothing_else(name: str, family: str) -> None:
    editor = make(name, family)
    before = matrices(editor)
    editor.edit(batches(editor, 1)[0])
    after = matrices(editor)
    changed = {k.removesuffix(".weight") for k in before if not torch.equal(before[k], after[k])}
    assert changed == set(editor.model.modules)


def test_the_unedited_row_changes_nothing() -> None:
    editor = make("none")
    before = matrices(editor)
    editor.edit(batches(editor, 1)[0])
    assert same(before, matrices(editor))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", EDITING)
def test_restoring_is_bit_exact(name: str, dtype: torch.dtype) -> None:
    editor = make(name, dtype=dtype)
    before = matrices(editor)
    for batch in batches(editor, 2):
        editor.edit(batch)
    assert not same(before, matrices(editor))
    with editor.model.weights.unedited():
        assert same(before, matrices(editor))
    assert not same(before, matrices(editor))
    editor.model.weights.restore()
    assert same(before, matrices(editor))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", EDITING)
def test_resuming_at_a_batch_equals_a_straight_run(name: str, dtype: torch.dtype) -> None:
    straight = make(name, dtype=dtype)
    stream = batches(straight, 4)
    resumed = make(name, dtype=dtype)
    for batch in stream[:2]:
        straight.edit(batch)
    saved = (straight.model.weights.state_dict(), straight.state_dict())
    for batch in stream[2:]:
        straight.edit(batch)
    resumed.model.weights.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for batch in stream[2:]:
        resumed.edit(batch)
    assert same(matrices(straight), matrices(resumed))


@pytest.mark.parametrize("name", EDITING)
def test_two_cells_do_not_leak_into_each_other(name: str) -> None:
    first, second = make(name), make(name)
    for batch in batches(first, 2, seed=1):
        first.edit(batch)
    fresh = make(name)
    for batch in batches(fresh, 2, seed=2):
        second.edit(batch)
        fresh.edit(batch)
    assert same(matrices(second), matrices(fresh))


@pytest.mark.parametrize("name", EDITING)
def test_a_batch_of_one_and_a_repeated_edit_work(name: str) -> None:
    editor = make(name)
    (single,) = batches(editor, 1, size=1)
    for _ in range(2):
        metrics = editor.edit(single)
        assert all(torch.isfinite(torch.tensor(v)) for v in metrics.values())


@pytest.mark.parametrize("name", EDITING)
def test_contradicting_edits_work(name: str) -> None:
    """The same prompt with two targets, in one batch and in the next."""
    editor = make(name)
    first, second = random_edits(2)
    contrary = replace(first, target=second.target)
    before = matrices(editor)
    for members in ([first, contrary, second], [contrary]):
        metrics = editor.edit(editor.model.encoder.batch(members, editor.group_size))
        assert all(torch.isfinite(torch.tensor(v)) for v in metrics.values())
    after = matrices(editor)
    assert all(bool(value.isfinite().all()) for value in after.values())
    assert not same(before, after)


@pytest.mark.parametrize("name", EDITING)
def test_a_state_comes_back_from_a_file_bit_by_bit(name: str, tmp_path: Path) -> None:
    editor, other = make(name), make(name)
    editor.edit(batches(editor, 1)[0])
    state = editor.state_dict()
    save_file(state, tmp_path / "state.safetensors")
    other.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert same(state, other.state_dict())


@pytest.mark.parametrize("name", EDITING)
def test_edits_without_a_subject_are_edited_or_refused_by_row(name: str) -> None:
    editor = make(name)
    edits = [replace(edit, subject=None) for edit in random_edits(2)]
    batch = editor.model.encoder.batch(edits, editor.group_size)
    before = matrices(editor)
    if "subject" in editor.needs_of(editor.config):
        with pytest.raises(TokenizationError, match=r"random.json:0: the edit has no subject"):
            editor.edit(batch)
        assert same(before, matrices(editor))
    else:
        editor.edit(batch)
        assert not same(before, matrices(editor))


@pytest.mark.parametrize("name", EDITING)
def test_what_an_editor_needs_is_asked_for_by_name(name: str) -> None:
    editor = make(name, equipped=False)
    needs = editor.needs_of(editor.config)
    stream = batches(editor, 3)
    for need, call in {"statistics": "load_covariance", "training_data": "load_training"}.items():
        if need in needs:
            with pytest.raises(ValueError, match=call):
                for batch in stream:
                    editor.edit(batch)


@pytest.mark.parametrize("name", EDITING)
def test_state_of_another_editor_is_refused(name: str) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        make(name).load_state_dict({"nonsense": torch.zeros(1)})


TRAINABLE = [n for n in EDITORS if issubclass(EDITORS[n], TrainableEditor)]


@pytest.mark.parametrize("name", TRAINABLE)
def test_training_resumed_in_the_middle_equals_training_straight_through(name: str) -> None:
    straight, resumed = make(name), make(name)
    trajectories = [batches(straight, 3, seed=s) for s in range(4)]
    assert isinstance(straight, TrainableEditor)
    assert isinstance(resumed, TrainableEditor)
    start = straight.state_dict()
    for trajectory in trajectories[:2]:
        straight.train_step(trajectory)
    saved = straight.training_state_dict()
    for trajectory in trajectories[2:]:
        straight.train_step(trajectory)
    resumed.load_training_state_dict(saved)
    for trajectory in trajectories[2:]:
        resumed.train_step(trajectory)
    assert same(straight.state_dict(), resumed.state_dict())
    assert not same(straight.state_dict(), start)


@pytest.mark.parametrize("name", TRAINABLE)
def test_training_leaves_the_model_unedited(name: str) -> None:
    editor = make(name)
    assert isinstance(editor, TrainableEditor)
    before = matrices(editor)
    editor.train_step(batches(editor, 3))
    assert same(before, matrices(editor))


def test_an_unknown_editor_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'malmen'"):
        editor_class("malmenn")


def test_bf16_edits_keep_an_fp32_master() -> None:
    """Many edits too small for bf16 add up in the master, and the model follows."""
    editor = make("ultraedit", dtype=torch.bfloat16)
    name = editor.model.modules[0]
    metrics = editor.edit(batches(editor, 1)[0])
    weights = editor.model.weights
    master = weights.read(name)
    assert master.dtype == torch.float32
    assert torch.equal(weights.parameter(name).detach(), master.to(torch.bfloat16))
    assert 0 < metrics["realised_cosine"] < 1

"""`z_clip`: entries of normalised rows are clamped, in training as in editing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rledit.calibration import shift_settings
from rledit.capture import capture
from rledit.editors import EDITORS, Editor
from rledit.editors.hypernetwork_editor import HypernetworkEditor
from rledit.editors.moment_editor import MomentEditor
from rledit.editors.stableedit import StableEdit
from rledit.model import EditableModel
from rledit.step_size import SettingError
from rledit.tokenization import EditBatch
from rledit.validation import ValidationStream
from tests.unit.helpers.text_edits import random_edits, text_batches, tiny_tokenizer
from tests.unit.helpers.tiny_models import tiny_model
from tests.unit.helpers.turns import by_turns

MODULES = ("up:1-2",)
STEP = 1e-3
CLIP = 0.7
EPS = torch.finfo(torch.float32).eps
CASES: dict[str, dict[str, Any]] = {
    "rledit": {"initial_step": STEP, "rank": 3},
    "malmen": {"initial_step": STEP, "rank": 3},
    "mend": {"initial_step": STEP, "rank": 3},
    "untrained": {"initial_step": STEP},
    "ultraedit": {"step": STEP, "loss_group": 4},
    "stableedit": {"step": STEP, "loss_group": 4, "warmup_batches": 0},
}


def make(name: str, **more: Any) -> MomentEditor:
    model = EditableModel(tiny_model("llama"), tiny_tokenizer("llama"), MODULES)
    cls = EDITORS[name]
    editor = cls(model, cls.Config(modules=MODULES, **(CASES[name] | more)))
    assert isinstance(editor, MomentEditor)
    return editor


def stream_of(editor: Editor, sizes: tuple[int, ...] = (6, 7)) -> list[EditBatch]:
    return [editor.encode(random_edits(n, seed=i)) for i, n in enumerate(sizes)]


def edited(editor: MomentEditor) -> dict[str, Tensor]:
    """The weights after a short stream."""
    for batch in stream_of(editor):
        editor.edit(batch)
    return {name: editor.model.weights.read(name).clone() for name in editor.model.modules}


@pytest.mark.parametrize(("name", "reference"), by_turns(CASES, ["paper", "official"]))
def test_a_bound_that_no_entry_reaches_changes_not_a_bit(name: str, reference: str) -> None:
    off = edited(make(name, reference=reference))
    far = edited(make(name, reference=reference, z_clip=1e9))
    near = edited(make(name, reference=reference, z_clip=CLIP))
    assert all(far[k].equal(off[k]) for k in off)
    assert not any(near[k].equal(off[k]) for k in off)


@pytest.mark.parametrize("name", CASES)
def test_editing_takes_clamped_rows(name: str) -> None:
    """Against each method's equation written out, on rows of the first batch."""
    editor = make(name, z_clip=CLIP)
    batch = stream_of(editor)[0]
    captured = capture(editor.model, batch.edit, editor.tokens)
    before = {k: editor.model.weights.read(k).clone() for k in editor.model.modules}
    rows = {k: torch.cat([captured.keys[k], captured.values[k]], -1) for k in captured.keys}
    seen = torch.cat(list(rows.values()))
    std, mean = seen.std(0), seen.mean(0)
    editor.edit(batch)
    for module in editor.model.modules:
        keys = captured.keys[module]
        z = (rows[module] - mean) / (std + EPS)
        z_keys, z_values = z[:, : keys.shape[1]], z[:, keys.shape[1] :]
        if isinstance(editor, StableEdit):
            (covariance,) = editor.covariances.values()
            z_values = covariance.whiten(captured.values[module], editor.config.shrinkage)
        assert z_keys.abs().max() > CLIP and z_values.abs().max() > CLIP
        z_keys, z_values = z_keys.clamp(-CLIP, CLIP), z_values.clamp(-CLIP, CLIP)
        if name == "mend":
            shift = -STEP * z_keys.T @ z_values
        else:
            squared = name in ("ultraedit", "stableedit")
            strength = ((z_keys if squared else keys) * z_keys).sum(-1, keepdim=True)
            system = keys.T @ keys + torch.eye(keys.shape[1], dtype=keys.dtype)
            shift = torch.linalg.solve(system, keys.T @ (-STEP * strength * z_values))
        found = editor.model.weights.read(module) - before[module]
        torch.testing.assert_close(found, shift.T.to(found), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "reference"),
    by_turns(["rledit", "malmen", "mend"], ["paper", "official", "converged"], long=2),
)
def test_a_network_is_trained_on_the_rows_that_it_edits_by(name: str, reference: str) -> None:
    """Also on a batch with an incomplete loss group, which the release edits with zeros."""
    states = []
    for clip in (0.0, 1e9, 0.1):
        editor = make(name, reference=reference, z_clip=clip, meta_lr=1e-3)
        assert isinstance(editor, HypernetworkEditor)
        editor.train_step(text_batches(editor.model, 2, 6, seed=1))
        states.append(editor.training_state_dict())
    off, far, near = states
    assert off.keys() == far.keys() == near.keys()
    assert all(off[k].equal(far[k]) for k in off)
    assert not all(off[k].equal(near[k]) for k in off)


def test_validation_edits_as_an_evaluation_does() -> None:
    rewards = []
    for clip in (0.0, 1e9, 0.1):
        editor = make("rledit", z_clip=clip, initial_step=0.1)
        assert isinstance(editor, HypernetworkEditor)
        rewards.append(ValidationStream(editor, random_edits(8, seed=1), 4)(editor, 0).reward)
    assert rewards[0] == rewards[1] != rewards[2]


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_calibrated_with_the_bound_it_edits_with(name: str) -> None:
    """Steps of older calibrations stay those of editors without one."""
    cls = EDITORS[name]

    def settings(**more: Any) -> dict[str, Any]:
        return shift_settings(cls, cls.Config(modules=MODULES, **more))

    assert "z_clip" not in settings() and settings(z_clip=0) == settings()
    assert settings(z_clip=2.0)["z_clip"] == 2.0


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), True, "3", None])
@pytest.mark.parametrize("name", ["ultraedit", "stableedit", "untrained"])
def test_a_bound_that_is_none_is_refused(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=r"^z_clip: normalised entries are clamped to a finite"):
        EDITORS[name].Config(modules=MODULES, z_clip=value)


def test_the_recipe_decides_unless_the_configuration_does() -> None:
    config = EDITORS["rledit"].Config
    assert config(modules=MODULES).z_clip == 0
    assert config(modules=MODULES, reference="converged").z_clip == 3
    assert config(modules=MODULES, reference="converged", z_clip=0).z_clip == 0
    assert config(modules=MODULES, reference="converged").warmup_steps == 10
    with pytest.raises(SettingError, match=r"^z_clip"):
        config(modules=MODULES, z_clip=-1.0)

"""`past_keys`: earlier batches' keys in the normal equation of RLEdit, MALMEN and their start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rledit.capture import capture
from rledit.editors import EDITORS
from rledit.editors.hypernetwork_editor import HypernetworkEditor
from rledit.editors.moment_editor import MomentEditor
from rledit.editors.retrained import RetrainedEditor
from rledit.model import EditableModel
from rledit.shift import solve_beside_past, solve_normal_equation
from rledit.step_size import SettingError
from rledit.tokenization import EditBatch
from rledit.training import Training
from rledit.validation import ValidationStream
from tests.unit.helpers.text_edits import random_edits, tiny_tokenizer
from tests.unit.helpers.tiny_models import tiny_model

MODULES = ("up:1-2",)
STEP = 1e-2
WEIGHT = 3.0


def make(name: str = "rledit", **more: Any) -> MomentEditor:
    model = EditableModel(tiny_model("llama"), tiny_tokenizer("llama"), MODULES)
    cls = EDITORS[name]
    settings = {"initial_step": STEP, "past_keys": WEIGHT, **more}
    if name != "untrained":
        settings = {"rank": 3, **settings}
    editor = cls(model, cls.Config(modules=MODULES, **settings))
    assert isinstance(editor, MomentEditor)
    return editor


def trained(**more: Any) -> HypernetworkEditor:
    editor = make(**more)
    assert isinstance(editor, HypernetworkEditor)
    return editor


def stream_of(editor: MomentEditor, n: int = 3) -> list[EditBatch]:
    return [editor.encode(random_edits(5, seed=i)) for i in range(n)]


def weights(editor: MomentEditor) -> dict[str, Tensor]:
    return {name: editor.model.weights.read(name).clone() for name in editor.model.modules}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_equation_is_least_squares_over_all_keys_so_far() -> None:
    """The oracle: MALMEN's own equation on stacked rows, those of the past to be answered by 0."""
    torch.manual_seed(0)
    keys, past = torch.randn(2, 4, 7), torch.randn(2, 9, 7)
    differences, ridge = torch.randn(2, 4, 5), torch.tensor([0.5, 2.0])
    found = solve_beside_past(keys, differences, ridge, past.double().mT @ past.double(), WEIGHT)
    stacked = torch.cat([keys, WEIGHT**0.5 * past], 1)
    due = solve_normal_equation(stacked, torch.cat([differences, torch.zeros(2, 9, 5)], 1), ridge)
    assert found.left is not None and due.left is None  # more rows than features: solved whole
    torch.testing.assert_close(found.left.mT @ found.right, due.right, rtol=1e-4, atol=1e-5)
    alone = solve_beside_past(keys, differences, ridge, torch.zeros(2, 7, 7).double(), WEIGHT)
    plain = solve_normal_equation(keys, differences, ridge)
    assert alone.left is not None and plain.left is not None
    torch.testing.assert_close(
        alone.left.mT @ alone.right, plain.left.mT @ plain.right, rtol=1e-4, atol=1e-5
    )


def test_its_gradients_are_those_of_the_equation_written_out() -> None:
    torch.manual_seed(0)
    keys, past = torch.randn(2, 4, 7).double(), torch.randn(2, 9, 7).double()
    products, aim = past.mT @ past, torch.randn(2, 7, 5).double()
    pairs = []
    for written_out in (False, True):
        differences = torch.ones(2, 4, 5).double().requires_grad_()
        ridge = torch.tensor([0.5, 2.0]).double().requires_grad_()
        if written_out:
            system = keys.mT @ keys + WEIGHT * products
            system = system + ridge[:, None, None] * torch.eye(7).double()
            shift = torch.linalg.inv(system) @ keys.mT @ differences
        else:
            solution = solve_beside_past(keys, differences, ridge, products, WEIGHT)
            assert solution.left is not None
            shift = solution.left.mT @ solution.right
        (shift * aim).sum().backward()
        pairs.append((differences.grad, ridge.grad))
    for found, due in zip(*pairs, strict=True):
        torch.testing.assert_close(found, due)


@pytest.mark.parametrize("name", ["rledit", "malmen", "untrained"])
def test_the_first_batch_is_written_as_without_and_later_ones_beside_it(name: str) -> None:
    """The second shift is the equation's, on the keys that were written."""
    editor, plain = make(name), make(name, past_keys=0)
    first, second, _ = stream_of(editor)
    keys = capture(editor.model, first.edit, editor.tokens).keys
    editor.edit(first)
    plain.edit(first)
    assert same(weights(editor), weights(plain))
    before = weights(editor)
    captured = capture(editor.model, second.edit, editor.tokens)
    with torch.no_grad():
        due = plain.propose(second)
    editor.edit(second)
    for module, value in weights(editor).items():
        new = captured.keys[module].double()
        shift = (value - before[module]).T.double()
        solution = due.shifts[module]
        # What the plain equation was solved from: D = (K Kᵀ + λI) C.
        assert solution.left is not None
        differences = new @ new.T @ solution.right.double() + solution.right.double()
        system = new.T @ new + WEIGHT * keys[module].double().T @ keys[module].double()
        system += torch.eye(len(system)).double()
        expected = torch.linalg.solve(system, new.T @ differences)
        torch.testing.assert_close(shift, expected, rtol=1e-3, atol=1e-6)
        changed = (keys[module].double() @ shift).norm()
        assert changed < 0.9 * (keys[module].double() @ solution.dense().double()).norm()


def test_the_gradient_of_a_later_batch_is_that_of_its_loss() -> None:
    """Against differences, of a step and of a ridge, which the past's keys stand beside."""
    editor = trained(reference="converged", patience=0, window_share=1, depth=2, step_form="log")
    first, second = stream_of(editor, 2)

    def loss_of_second(change: float, which: str) -> float:
        editor.optimiser.zero_grad(set_to_none=True)
        editor.model.weights.restore()
        editor.moments[shape].reset()
        assert editor.past_keys is not None
        editor.past_keys.reset()
        reward = editor._new_reward()
        editor._train_batch(first, reward, 0.0)
        (parameter,) = (getattr(network, which) for network in editor.networks.values())
        with torch.no_grad():
            parameter += change
        editor.optimiser.zero_grad(set_to_none=True)
        measured = editor._train_batch(second, reward, 1.0)["loss"]
        with torch.no_grad():
            parameter -= change
        return measured

    (shape,) = editor.shapes
    for which in ("step_parameter", "log_ridge"):
        loss_of_second(0.0, which)
        (parameter,) = (getattr(network, which) for network in editor.networks.values())
        analytic = float(parameter.grad.sum())
        width = 0.02
        difference = (loss_of_second(width, which) - loss_of_second(-width, which)) / (2 * width)
        assert analytic == pytest.approx(difference, rel=0.05)


def test_a_resumed_stream_and_a_resumed_training_are_the_straight_ones(tmp_path: Path) -> None:
    straight, resumed = trained(), trained()
    stream = stream_of(straight)
    for batch in stream[:2]:
        straight.edit(batch)
    save_file(straight.state_dict(), tmp_path / "state.safetensors")
    resumed.model.weights.load_state_dict(straight.model.weights.state_dict())
    resumed.load_state_dict(load_file(tmp_path / "state.safetensors"))
    straight.edit(stream[2])
    resumed.edit(stream[2])
    assert same(weights(straight), weights(resumed))

    settings = {"optimise": "batch", "train_steps": 2, "meta_lr": 1e-2}
    whole = Training(trained(**settings), lambda step: [stream])
    list(whole.run())
    for event in range(5):
        half = Training(trained(**settings), lambda step: [stream])
        events = half.run()
        for _ in range(event + 1):
            next(events)
        again = Training(trained(**settings), lambda step: [stream])
        again.load(half.state_dict(), half.record())
        list(again.run())
        assert same(whole.editor.state_dict(), again.editor.state_dict())
    assert not [name for name in whole.editor.state_dict() if "past_keys" in name]
    plain = Training(trained(past_keys=0, **settings), lambda step: [stream])
    list(plain.run())
    assert not same(whole.editor.state_dict(), plain.editor.state_dict())


def test_a_validation_begins_with_no_past_and_leaves_it_as_it_was() -> None:
    editor = trained()
    validate = ValidationStream(editor, random_edits(10, seed=7), 5)
    fresh = validate(editor, 0)
    assert editor.past_keys is not None
    editor.past_keys.add(capture(editor.model, stream_of(editor)[0].edit, "answer").keys)
    before = editor.past_keys.state_dict()
    again = validate(editor, 0)
    assert again.metrics == fresh.metrics
    assert before and same(before, editor.past_keys.state_dict())


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("untrained", {"past_keys": -1}, "finite number above 0"),
        ("rledit", {"past_keys": float("nan")}, "finite number above 0"),
        ("mend", {}, "outer_product"),
        ("mend", {"past_keys": 0, "initial_ridge": 0.1}, "outer_product solves no equation"),
        ("untrained", {"initial_ridge": 0}, "initial_ridge: a ridge is a finite number above 0"),
        ("malmen", {"initial_ridge": float("inf")}, "a ridge is a finite number above 0"),
        ("hiedit", {}, "gate"),
    ],
)
def test_what_it_cannot_be_is_refused(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        make(name, **settings)


@pytest.mark.parametrize("past_keys", [0.0, WEIGHT])
def test_a_ridge_at_the_start_is_the_networks_and_that_of_what_is_not_trained(
    past_keys: float,
) -> None:
    """A network that is not trained yet edits as `untrained`, with the ridge of the setting."""
    found = {}
    for ridge in (1.0, 0.1):
        both = [
            make(name, past_keys=past_keys, initial_ridge=ridge) for name in ("untrained", "rledit")
        ]
        for editor in both:
            for batch in stream_of(editor):
                editor.edit(batch)
        network = both[1]
        assert isinstance(network, HypernetworkEditor)
        for one in network.networks.values():
            torch.testing.assert_close(one.ridge, torch.full_like(one.ridge, ridge))
        start, trained_once = (weights(editor) for editor in both)
        for name, value in start.items():
            torch.testing.assert_close(trained_once[name], value, rtol=1e-5, atol=1e-6)
        found[ridge] = start
    assert not same(found[1.0], found[0.1])


def test_a_state_of_an_earlier_version_is_refused_and_not_taken_for_one_without_a_past() -> None:
    editor = make("untrained")
    old = editor.state_dict() | {"past_keys.16x24": torch.ones(1, 16, 16).double()}
    with pytest.raises(ValueError, match="as an earlier version wrote them"):
        editor.load_state_dict(old)


def test_batches_of_a_retraining_are_no_past_of_the_stream() -> None:
    editor = make("malmen_star")
    assert isinstance(editor, RetrainedEditor)
    first, *drawn = stream_of(editor)
    editor.edit(first)
    assert editor.past_keys is not None
    before = editor.past_keys.state_dict()
    editor._retrain(drawn)
    assert before and same(before, editor.past_keys.state_dict())

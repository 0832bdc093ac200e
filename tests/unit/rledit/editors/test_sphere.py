"""SPHERE: its directions, what it takes away from updates, and where it stands in each method."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from rledit.editors import EDITORS, Editor, editor_class
from rledit.editors.hypernetwork_editor import HypernetworkEditor
from rledit.editors.locate_editor import SpreadEditor
from rledit.editors.sphere import Sphere, leading_directions
from rledit.model import EditableModel
from rledit.step_size import SettingError
from tests.unit.helpers.text_edits import equip, text_batches, tiny_tokenizer
from tests.unit.helpers.tiny_models import tiny_model, two_shapes
from tests.unit.helpers.turns import by_turns, marked
from tests.unit.rledit.editors.test_editors import SETTINGS

ALPHA = 0.6
RESUMED = ("alphaedit", "memit", "prune", "rect", "rome", "ft", "ultraedit")
SPHERED = [n for n, c in EDITORS.items() if "sphere_alpha" in {f.name for f in fields(c.Config)}]
# Methods whose matrices are no sum of a batch's updates once they are written.
MEMORIES = {"none", "grace", "wise", "memoir"}


def make(name: str, dtype: torch.dtype = torch.float64, **settings: Any) -> Editor:
    model = tiny_model("llama").to(dtype)
    cls = editor_class(name)
    known = {f.name for f in fields(cls.Config)}
    choices = {"any": two_shapes(model), "down": ("down:1,2",), "one_down": ("down:2",)}
    modules = choices[cls.target_modules]
    given = {k: v for k, v in SETTINGS.items() if k in known} | settings
    if not getattr(cls.Config, "transition", True):
        given.pop("depth", None)
    editor = cls(
        EditableModel(model, tiny_tokenizer("llama"), modules),
        cls.Config(modules=modules, **given),
    )
    equip(editor)
    return editor


def sphere(editor: Editor) -> Sphere:
    assert editor.sphere is not None
    return editor.sphere


def changes(editor: Editor) -> dict[str, Tensor]:
    weights = editor.model.weights
    return {n: weights.read(n).double() - weights.original(n).double() for n in weights.names}


def edit(editor: Editor, n: int = 1, size: int = 4) -> dict[str, Tensor]:
    for batch in text_batches(editor.model, n, size, group_size=editor.group_size):
        metrics = editor.edit(batch)
        assert all(torch.isfinite(torch.tensor(v)) for v in metrics.values())
    return changes(editor)


@pytest.mark.parametrize(("d_out", "d_in"), [(5, 9), (9, 5), (6, 6)])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_directions_are_the_leading_eigenvectors_of_the_normalised_rows(
    d_out: int, d_in: int, share: float
) -> None:
    weight = torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(0))
    weight[1] *= 100  # a long row counts no more than another
    rows = torch.nn.functional.normalize(weight.double())
    energies, vectors = torch.linalg.eigh(rows.T @ rows / d_out)
    energies, vectors = energies.flip(0), vectors.flip(1)
    held, count = 0.0, 0
    while count < d_in and held + float(energies[count]) <= share * float(energies.sum()):
        held += float(energies[count])
        count += 1
    expected = vectors[:, : count + 1]
    found = leading_directions(weight, share)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.T @ found, torch.eye(count + 1).double())
    torch.testing.assert_close(found @ found.T, expected @ expected.T)


def test_all_of_the_energy_is_the_row_space_and_no_more() -> None:
    weight = torch.randn(6, 2) @ torch.randn(2, 8)
    weight[3] = 0.0  # an unused row has no direction
    found = leading_directions(weight, 1.0)
    assert found.shape == (8, 2)
    torch.testing.assert_close((weight.double() @ found) @ found.T, weight.double())


@pytest.mark.parametrize("name", SPHERED)
def test_a_batch_loses_alpha_along_the_directions_and_nothing_elsewhere(name: str) -> None:
    """Of the lowest matrix: what those above it are given may depend on it."""
    plain, projected = make(name), make(name, sphere_alpha=ALPHA)
    size = 1 if name == "rome" else 4  # of ROME's edits each is an update of its own
    before, after = edit(plain, size=size), edit(projected, size=size)
    lowest = plain.model.modules[0]
    whole, kept = before[lowest], after[lowest]
    basis = sphere(projected).directions(lowest)
    assert 0 < basis.shape[1] < min(whole.shape)
    along = whole @ basis
    scale = float(whole.norm())
    assert float(along.norm()) > 1e-3 * scale
    assert float((kept @ basis - (1 - ALPHA) * along).norm()) < 1e-6 * scale
    rest = (whole - along @ basis.T) - (kept - (kept @ basis) @ basis.T)
    assert float(rest.norm()) < 1e-6 * scale


@pytest.mark.parametrize("name", marked(SPHERED, RESUMED))
def test_without_alpha_an_editor_is_what_it_was(name: str) -> None:
    plain, off = make(name, torch.float32), make(name, torch.float32, sphere_alpha=0.0)
    assert off.sphere is None
    before, after = edit(plain, 2), edit(off, 2)
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_every_editor_that_writes_matrices_takes_it() -> None:
    assert set(EDITORS) - set(SPHERED) == MEMORIES


@pytest.mark.parametrize("name", ["alphaedit", "nas"])
def test_later_layers_are_solved_on_projected_updates(name: str) -> None:
    plain, projected = make(name), make(name, sphere_alpha=ALPHA)
    assert isinstance(plain, SpreadEditor) and isinstance(projected, SpreadEditor)
    (batch,) = text_batches(plain.model, 1, 4)
    shown = []
    for editor in (plain, projected):
        requests = editor.requests(batch)
        values = editor.values(requests)
        updates = editor.write(requests, values)
        shown.append(updates[1].shown)
        # A projected update is still that of the method's system, of the same rank.
        assert updates[0].shift.left is not None and len(updates[0].shift.left) == 4
    assert not torch.allclose(shown[0], shown[1])


@pytest.mark.parametrize("name", ["memit", "encore", "prune", "rect"])
def test_memit_and_its_kin_are_solved_as_without_and_projected_at_the_end(name: str) -> None:
    plain, projected = make(name), make(name, sphere_alpha=ALPHA)
    assert isinstance(plain, SpreadEditor) and isinstance(projected, SpreadEditor)
    (batch,) = text_batches(plain.model, 1, 4)
    for editor in (plain, projected):
        requests = editor.requests(batch)
        editor.write(requests, editor.values(requests))
    whole, kept = changes(plain), changes(projected)
    for module in plain.modules:
        found = sphere(projected).rows(module, whole[module])
        assert not torch.allclose(found, whole[module])
        torch.testing.assert_close(kept[module], found, rtol=1e-6, atol=1e-9)


def test_prune_restrains_the_sum_of_projected_updates() -> None:
    memit = make("memit", sphere_alpha=ALPHA, moment_weight=0.01)
    pruned = make("prune", sphere_alpha=ALPHA, moment_weight=0.01, log_base=1.2)
    written, restrained = edit(memit, 4), edit(pruned, 4)
    for name, whole in written.items():
        unrestrained = pruned.state_dict()[f"unrestrained.{name}"]
        torch.testing.assert_close(unrestrained - pruned.model.weights.original(name), whole)
    assert any(not torch.allclose(written[n], restrained[n]) for n in written)


@pytest.mark.parametrize("name", ["rledit", "mend"])
def test_hypernetworks_learn_through_the_projection(name: str) -> None:
    """The gradient of the loss with respect to the steps, against differences of the loss."""
    grads: list[Tensor] = []
    losses: dict[int, float] = {}
    for sign in (0, 1, -1):
        step = 1e-2 + sign * 1e-4
        editor = make(name, sphere_alpha=1.0, initial_step=step, transition=False, depth=1)
        assert isinstance(editor, HypernetworkEditor)
        (batch,) = text_batches(editor.model, 1, 4)
        reward = editor._new_reward()  # what a training step is made of
        measured = editor._train_batch(batch, reward, 1.0)
        losses[sign] = measured["loss"]
        if not sign:
            found = [n.step_parameter.grad for n in editor.networks.values()]
            grads = [g for g in found if g is not None]
            for module, whole in changes(editor).items():
                basis = sphere(editor).directions(module)
                assert float((whole @ basis).norm()) < 1e-6 * float(whole.norm())
    slope = (losses[1] - losses[-1]) / 2e-4
    assert float(sum(g.sum() for g in grads)) == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize(("name", "dtype"), by_turns(RESUMED, [torch.float32, torch.bfloat16]))
def test_a_resumed_stream_equals_a_straight_one_and_restores(name: str, dtype: torch.dtype) -> None:
    straight, resumed = (make(name, dtype, sphere_alpha=ALPHA) for _ in range(2))
    stream = text_batches(straight.model, 3, 4, group_size=straight.group_size)
    before = {k: v.clone() for k, v in straight.model.model.state_dict().items()}
    straight.edit(stream[0])
    saved = straight.model.weights.state_dict(), straight.state_dict()
    for batch in stream[1:]:
        straight.edit(batch)
    resumed.model.weights.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for batch in stream[1:]:
        resumed.edit(batch)
    after, other = (e.model.model.state_dict() for e in (straight, resumed))
    assert all(torch.equal(after[k], other[k]) for k in after)
    assert any(not torch.equal(after[k], before[k]) for k in after)
    straight.model.weights.restore()
    assert all(torch.equal(v, before[k]) for k, v in straight.model.model.state_dict().items())


def test_directions_stay_those_of_the_unedited_matrix() -> None:
    """U is that of the unedited matrix however far a stream has come."""
    editor = make("memit", sphere_alpha=ALPHA)
    first = sphere(editor).directions(editor.model.modules[0]).clone()
    edit(editor, 3)
    fresh = make("memit", sphere_alpha=ALPHA)
    assert torch.equal(sphere(fresh).directions(fresh.model.modules[0]), first)
    editor.sphere = Sphere(editor.model, ALPHA, 0.5)  # as after a resume
    assert torch.equal(editor.sphere.directions(editor.model.modules[0]), first)


def test_settings_that_take_nothing_away_are_refused() -> None:
    config = editor_class("memit").Config
    with pytest.raises(SettingError, match="sphere_alpha 0 takes nothing away.*leave sphere_share"):
        config(modules=("down:1",), sphere_share=0.3)
    with pytest.raises(SettingError, match="from 0 to 1, found 1.5"):
        config(modules=("down:1",), sphere_alpha=1.5)

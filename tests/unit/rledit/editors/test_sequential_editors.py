"""LyapLock, BetaEdit and DeltaEdit: properties, and whole streams against dense references."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rledit.editors.betaedit import BetaEdit
from rledit.editors.deltaedit import DeltaEdit
from rledit.editors.lyaplock import LyapLock
from rledit.finite import CollapsedError
from rledit.locate.nullspace import null_space
from rledit.stream import run_stream
from tests.reference import ReferenceBetaEdit, ReferenceDeltaEdit, ReferenceLyapLock
from tests.unit.helpers.sequential_editors import SETTINGS, edited, make, ready, stream
from tests.unit.helpers.text_edits import random_edits
from tests.unit.helpers.tiny_models import double_arithmetic, tiny_model
from tests.unit.helpers.turns import by_turns, marked

REFERENCES: dict[str, Any] = {
    "lyaplock": ReferenceLyapLock,
    "betaedit": ReferenceBetaEdit,
    "deltaedit": ReferenceDeltaEdit,
}
NAMES = list(SETTINGS)


@pytest.mark.parametrize(("name", "family"), by_turns(NAMES, ["llama", "gptj", "qwen2"]))
def test_a_stream_equals_the_dense_reference(
    name: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four batches in float64, with the queue above 1, new null spaces, edits projected."""
    double_arithmetic(monkeypatch)
    editor = make(name, family, double=True)
    layers = {m: m.rpartition(".mlp")[0] for m in editor.modules}
    reference = REFERENCES[name](
        tiny_model(family), layers, {m: editor.moment(m) for m in editor.modules}, editor.config
    )
    metrics: list[dict[str, float]] = []
    for batch in stream(editor):
        metrics.append(editor.edit(batch))
        reference.edit(editor.requests(batch))
    for module, weight in edited(editor).items():
        change = reference.weight(module) - reference.original[module]
        error = (weight - reference.weight(module)).norm() / change.norm()
        assert float(error) < 1e-7
    if isinstance(editor, LyapLock):
        for module in editor.modules:
            q = reference.scale[module] * reference.queue[module]
            assert editor.pressure[module] == pytest.approx(q, rel=1e-6)
        assert max(editor.pressure.values()) > 1.05
    if isinstance(editor, BetaEdit):
        assert editor.refreshed_at == reference.last == 9
    if isinstance(editor, DeltaEdit):
        projected = sum(m["projected_edits"] for m in metrics)
        assert projected == reference.projected > 0
        assert editor.interference.mean == pytest.approx(reference.mean, rel=1e-6)


def test_lyaplocks_first_batch_is_memit_with_the_same_weight() -> None:
    lyaplock = make("lyaplock", moment_weight=1000.0)
    memit = make("memit", moment_weight=1000.0)
    assert lyaplock.config.moment_weight == type(lyaplock).Config(modules=()).moment_weight
    batch = stream(memit)[0]
    memit.edit(batch)
    lyaplock.edit(batch)
    for name, weight in edited(memit).items():
        original = memit.model.weights.original(name)
        change = edited(lyaplock)[name] - original
        torch.testing.assert_close(change, weight - original, rtol=1e-4, atol=1e-7)
        assert float(change.norm()) > 0


def test_without_residual_and_past_lyaplock_moves_nothing() -> None:
    editor = make("lyaplock")
    requests = editor.requests(stream(editor)[0])
    keys = torch.randn(4, editor.model.shape(editor.modules[0])[0])
    for name in editor.modules:
        answer = editor.solve(name, keys)
        shift = answer.shift(torch.zeros(4, editor.model.shape(name)[1]))
        assert not bool(shift.dense().any())
    assert requests


def test_without_residual_lyaplock_returns_to_what_it_protects() -> None:
    """On an edited model it pulls back, so that less is lost; with no past at all, to W_0."""
    editor, _ = ready("lyaplock")
    for name in editor.modules:
        keys = torch.zeros(1, editor.model.shape(name)[0])
        answer = editor.solve(name, keys)
        assert answer.pull is not None
        weight = editor.model.weights.read(name).double()
        original = editor.model.weights.original(name).double()
        moment, q = editor.moment(name), editor.pressure[name] * 0.5

        def lost(w: Tensor, name: str = name, moment: Tensor = moment, q: float = q,
                 original: Tensor = original) -> float:  # fmt: skip
            """qλ PL + Σ ‖W k − W_t k‖² up to what no W changes."""
            past = (w @ editor.past.sums[name] * w).sum() - 2 * (w * editor.outputs[name]).sum()
            return float(q * ((w - original) @ moment * (w - original)).sum() + past)

        pulled = weight + answer.pull.T
        least = lost(pulled)
        assert least < lost(weight)
        step = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)).double()
        assert all(lost(pulled + size * step) > least for size in (1e-3, -1e-3))
        editor.past.sums[name].zero_()
        editor.outputs[name].zero_()
        answer = editor.solve(name, keys)
        torch.testing.assert_close(weight + answer.pull.T, original, rtol=1e-5, atol=1e-6)


def test_lyaplocks_weight_never_falls_below_one_and_rises_over_the_budget() -> None:
    tight: Any = make("lyaplock", drift_budget=0.5)
    loose: Any = make("lyaplock", drift_budget=1e6)
    seen: list[float] = []
    for batch in stream(tight):
        metrics = tight.edit(batch)
        loose.edit(batch)
        seen.append(metrics["preservation_weight_1"])
        assert all(q >= 1 for q in tight.pressure.values())
        assert set(loose.pressure.values()) == {1.0}
    # PL is twice the budget after the first batch, which sets it.
    assert seen[0] == pytest.approx(2.0)
    assert seen == sorted(seen)


def test_lyaplocks_preservation_loss_is_that_of_outputs_on_text() -> None:
    editor = make("lyaplock")
    name = editor.modules[0]
    assert isinstance(editor, LyapLock)
    metrics = editor.edit(stream(editor)[0])
    moved = editor.model.weights.read(name) - editor.model.weights.original(name)
    generator = torch.Generator().manual_seed(0)
    width = editor.model.shape(name)[0]
    text = torch.randn(200, width, generator=generator) * torch.logspace(0.5, -2, width)
    loss = (text.double() @ moved.double().T).square().sum(-1).mean()
    assert editor.preservation_loss(name) == pytest.approx(float(loss), rel=1e-5)
    assert metrics["preservation_loss_1"] == editor.preservation_loss(name)
    assert editor.budget[name] == pytest.approx(0.8 * float(loss), rel=1e-5)
    editor.model.weights.restore()
    assert [editor.preservation_loss(n) for n in editor.modules] == [0.0, 0.0]


def test_lyaplock_protects_text_more_than_memit_with_past_keys() -> None:
    """As its budget is used up, ordinary outputs move less than under a fixed weight."""
    lyaplock = make("lyaplock", drift_budget=0.3)
    memit = make("memit", moment_weight=0.5, past_keys=True)
    for batch in stream(lyaplock, n=6):
        lyaplock.edit(batch)
        memit.edit(batch)
    assert isinstance(lyaplock, LyapLock)
    for name in lyaplock.modules:
        change = memit.model.weights.read(name) - memit.model.weights.original(name)
        loss = (change.double() @ memit.moment(name) * change.double()).sum()
        assert lyaplock.preservation_loss(name) < float(loss)


def test_betaedit_renews_its_null_space_after_every_so_many_edits() -> None:
    editor = make("betaedit", refresh_every=6, moment_weight=0.01)
    assert isinstance(editor, BetaEdit)
    first = {n: null_space(editor.moment(n), 0.5, n) for n in editor.modules}
    before: dict[str, Tensor] = {}
    for k, batch in enumerate(stream(editor, n=4)):
        if k == 2:
            before = {n: s.clone() for n, s in editor.past.sums.items()}
        metrics = editor.edit(batch)
        assert editor.refreshed_at == (0 if k < 2 else 6)
    for n in editor.modules:
        mean = (before[n].double() / 6 + 0.01 * editor.moment(n)) / 1.01
        expected = null_space(mean, 0.5, n)
        torch.testing.assert_close(editor.projections[n], expected.projection)
        assert expected.rank != first[n].rank
        layer = int(n.split(".")[2])
        assert metrics[f"null_space_rank_{layer}"] == expected.rank


def test_betaedit_takes_no_projection_in_place_of_the_covariance() -> None:
    editor = make("betaedit")
    found = {n: null_space(editor.moment(n), 0.5, n) for n in editor.modules}
    with pytest.raises(ValueError, match="'betaedit' needs the key covariance itself"):
        editor.load_projections(found)
    delta = make("deltaedit")
    delta.load_projections(found)
    assert delta.ranks == {n: space.rank for n, space in found.items()}  # type: ignore[attr-defined]


def test_without_its_weight_betaedit_is_alphaedit() -> None:
    alpha, beta = make("alphaedit", threshold=0.5, ridge=0.3), make("betaedit", moment_weight=0.0)
    beta.config = replace(beta.config, refresh_every=1000)
    for batch in stream(alpha, n=2):
        alpha.edit(batch)
        beta.edit(batch)
    for name, weight in edited(alpha).items():
        torch.testing.assert_close(edited(beta)[name], weight, rtol=1e-5, atol=1e-6)


def test_betaedit_moves_ordinary_outputs_less_than_alphaedit() -> None:
    alpha, beta = make("alphaedit", threshold=0.5, ridge=0.3), make("betaedit", moment_weight=50.0)
    lost: list[float] = []
    for editor in (alpha, beta):
        moments_of = {n: editor.moment(n).clone() for n in editor.modules}
        for batch in stream(editor, n=2):
            editor.edit(batch)
        total = 0.0
        for name, moment in moments_of.items():
            change = edited(editor)[name].double() - editor.model.weights.original(name).double()
            total += float((change @ moment * change).sum())
        lost.append(total)
    assert lost[1] < 0.5 * lost[0]


def test_a_collapsed_update_stops_the_stream_and_names_layer_and_batch() -> None:
    editor = make("betaedit", collapse_norm=1e-3)
    assert type(editor.config)(modules=()).collapse_norm == 20
    edits = random_edits(6)
    with pytest.raises(CollapsedError) as caught:
        list(run_stream(editor, edits, 3, (), _NoScorer()))  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith("editing batch 1 (edits 1 to 3): model.layers.1.mlp.down_proj: the")
    assert "over the root of its 3 edits is" in message
    assert message.endswith("collapse_norm is 0.001; take fewer edits or a larger ridge, or go on "
                            "with collapse_norm 0")  # fmt: skip
    assert not editor.past.sums[editor.modules[0]].any()  # type: ignore[attr-defined]
    for kept_on in (make("betaedit", collapse_norm=0.0), make("betaedit")):
        assert len(list(run_stream(kept_on, edits, 3, (), _NoScorer()))) == 2  # type: ignore[arg-type]


class _NoScorer:
    resident = True


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_state_goes_on_bit_by_bit(name: str) -> None:
    """Three batches in, with all that a state can hold."""
    straight, resumed = make(name), make(name)
    batches = stream(straight, n=5)
    for batch in batches[:3]:
        straight.edit(batch)
    state = {k: v.clone() for k, v in straight.state_dict().items()}
    weights = edited(straight)
    measured = [straight.edit(batch) for batch in batches[3:]]
    resumed.model.weights.load_state_dict(weights)
    resumed.load_state_dict(state)
    assert [resumed.edit(batch) for batch in batches[3:]] == measured
    for module, weight in edited(straight).items():
        assert torch.equal(edited(resumed)[module], weight)
    for key, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value)
    for broken in ({}, {"nonsense": torch.zeros(1)}, {**state, "more": torch.zeros(1)}):
        with pytest.raises(ValueError, match="a state with"):
            resumed.load_state_dict(broken)


@pytest.mark.parametrize("name", marked(NAMES, list(NAMES)[:1]))
def test_a_state_does_not_depend_on_the_company_in_passes(name: str) -> None:
    """Passes of other sizes and other orders of a batch's edits: the same up to round-off."""
    whole, cut = make(name), make(name, budget=40, edits_per_pass=1)
    turned = make(name)
    edits = random_edits(12)
    for first in range(0, 12, 3):
        members = edits[first : first + 3]
        whole.edit(whole.encode(members))
        cut.edit(cut.encode(members))
        # The running mean of DeltaEdit goes edit by edit.
        turned.edit(turned.encode(members if name == "deltaedit" else members[::-1]))
    for other in (cut, turned):
        for key, value in whole.state_dict().items():
            torch.testing.assert_close(other.state_dict()[key], value, rtol=2e-3, atol=2e-3)
        for module, weight in edited(whole).items():
            torch.testing.assert_close(edited(other)[module], weight, rtol=1e-3, atol=1e-3)

"""CrispEdit: its projection, the covariance of output gradients, and a float64 check from its
equations."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rledit.editors import CrispEdit
from rledit.editors.base import Editor
from rledit.editors.crispedit import CrispEditConfig
from rledit.finite import NonFiniteError
from rledit.locate.covariance import CovarianceError, CovarianceFingerprint, KeyCovariance
from rledit.locate.flat_directions import FlatDirections, flat_directions
from rledit.locate.output_gradients import (
    accumulate_all,
    as_samples,
    covariances_of,
    gradients_of,
    width_of,
)
from rledit.model import EditableModel, Execution
from rledit.ranks import SingleProcess
from rledit.tokenization import Sample
from tests.unit.helpers.oracle import relative
from tests.unit.helpers.text_edits import (
    equip,
    random_covariances,
    random_texts,
    text_batches,
    tiny_tokenizer,
)
from tests.unit.helpers.threaded_ranks import InStep, ThreadedRank, together
from tests.unit.helpers.tiny_models import tiny_model

MODULES = ("down:1,3",)
BOTH = ("statistics", "output_gradients")


def opened(dtype: torch.dtype = torch.float64, **given: Any) -> EditableModel:
    model = tiny_model("llama").to(dtype)
    return EditableModel(model, tiny_tokenizer("llama"), MODULES, **given)


def crisp(model: EditableModel, equipped: bool = True, **settings: Any) -> CrispEdit:
    chosen = {"passes": 4, "batch_size": 3, "lr": 1e-2, "energy": 0.9, **settings}
    editor = CrispEdit(model, CrispEditConfig(modules=MODULES, **chosen))
    if equipped:
        equip(editor)
    return editor


def covariances(width: int, seed: int = 0) -> Tensor:
    """A covariance of full rank whose eigenvalues fall over four decades."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    return basis @ torch.diag(torch.logspace(0, -4, width, dtype=torch.float64)) @ basis.T


def directions(energy: float, d_in: int = 12, d_out: int = 8) -> FlatDirections:
    a, b = covariances(d_in, 1), covariances(d_out, 2)
    return flat_directions(a, b, energy, "m", torch.float64)


def change(seed: int = 3, d_in: int = 12, d_out: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(d_out, d_in, generator=generator, dtype=torch.float64)


def test_with_all_curvature_kept_out_and_full_rank_nothing_may_change() -> None:
    found = directions(1.0)
    assert found.share == 0 and not found(change()).any()


def test_with_none_kept_out_all_but_the_steepest_direction_may_change() -> None:
    found, whole = directions(0.0), change()
    a, b = covariances(12, 1), covariances(8, 2)
    steepest = torch.outer(torch.linalg.eigh(b)[1][:, -1], torch.linalg.eigh(a)[1][:, -1])
    expected = whole - (whole * steepest).sum() * steepest
    assert int((~found.flat).sum()) == 1
    torch.testing.assert_close(found(whole), expected)


@pytest.mark.parametrize("energy", [0.0, 0.5, 0.8, 0.99])
def test_projecting_twice_is_projecting_once_and_curvature_is_bounded(energy: float) -> None:
    found = directions(energy)
    once = found(change())
    torch.testing.assert_close(found(once), once)
    a, b = covariances(12, 1), covariances(8, 2)
    curvature = torch.trace(once @ a @ once.T @ b)
    assert 0 < float(curvature) <= found.threshold * float(once.square().sum())
    # What is left out holds as much of the trace as was asked for, and not a direction more.
    products = torch.outer(torch.linalg.eigvalsh(b), torch.linalg.eigvalsh(a)).flatten()
    steep = products[products >= found.threshold * (1 - 1e-9)]
    held = float(steep.sum() / products.sum())
    assert held >= energy and held - float(steep.min() / products.sum()) <= energy


def test_scales_of_the_covariances_do_not_matter() -> None:
    a, b = covariances(12, 1), covariances(8, 2)
    scaled = flat_directions(1e6 * a, 1e-9 * b, 0.9, "m", torch.float64)
    assert torch.equal(scaled.flat, flat_directions(a, b, 0.9, "m", torch.float64).flat)


def test_a_covariance_of_zero_is_refused() -> None:
    a, b = covariances(12, 1), covariances(8, 2)
    with pytest.raises(ValueError, match="m: the covariance of its gradients is zero"):
        flat_directions(a, 0 * b, 0.9, "m", torch.float64)
    with pytest.raises(ValueError, match="m: the covariance of its inputs is zero"):
        flat_directions(0 * a, b, 0.9, "m", torch.float64)


def plain_curvature(
    model: EditableModel, samples: list[Sample]
) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Σ k kᵀ and Σ g gᵀ at predicting positions, one sample at a time, by autograd alone."""
    keys: dict[str, Tensor] = {}
    slopes: dict[str, Tensor] = {}
    tokens = 0
    for sample in samples:
        found: dict[str, tuple[Tensor, Tensor]] = {}

        def hook(name: str) -> Any:
            def keep(_: Any, args: Any, output: Tensor) -> Tensor:
                output = output.detach().requires_grad_() if not output.requires_grad else output
                found[name] = (args[0][0], output)  # noqa: B023
                return output

            return keep

        handles = [model.linear(name).register_forward_hook(hook(name)) for name in model.modules]
        with torch.enable_grad():
            logits = model.model(sample.input_ids[None]).logits[0]
            loss = F.cross_entropy(logits, sample.labels, reduction="sum")
        for handle in handles:
            handle.remove()
        at = sample.answer_positions
        tokens += len(at)
        gradients = torch.autograd.grad(loss, [found[name][1] for name in model.modules])
        for name, gradient in zip(model.modules, gradients, strict=True):
            k, g = found[name][0].detach()[at], gradient[0][at]
            keys[name] = keys.get(name, 0) + k.T @ k
            slopes[name] = slopes.get(name, 0) + g.T @ g
    return keys, slopes, tokens


def test_covariances_of_output_gradients_are_those_of_autograd_over_all_true_tokens() -> None:
    """Token 0 counts as any other; the loss is summed over a text, the last position has none."""
    model = opened()
    texts = [[1, 0, 5, 0, 9, 3], [1, 7, 7, 0], [1], [1, 12, 30, 8, 2, 11, 4]]
    moments = _sums(model, texts)
    _, expected, tokens = plain_curvature(model, as_samples(texts))
    for name in model.modules:
        moment = moments[gradients_of(name)]
        assert moment.count == tokens == 5 + 3 + 6
        assert moments[name].count == 18
        assert relative(moment.total, expected[name]) < 1e-12


def _sums(model: EditableModel, texts: list[list[int]]) -> dict[str, KeyCovariance]:
    found = {
        name: KeyCovariance(
            CovarianceFingerprint(model_hash="tiny", module=name, corpus_hash="c", dtype="float64"),
            width_of(model, name),
        )
        for name in covariances_of(model.modules, BOTH)
    }
    accumulate_all(model, texts, found)
    return found


def test_keys_are_summed_in_the_same_bits_with_and_without_gradients() -> None:
    alone = random_covariances(opened(torch.float32))
    both = random_covariances(opened(torch.float32), needs=BOTH)
    assert both.keys() == {*alone, *map(gradients_of, alone)}
    assert all(torch.equal(both[name].total, alone[name].total) for name in alone)


def weight(model: EditableModel, name: str) -> Tensor:
    linear: Any = model.linear(name)
    found: Tensor = linear.weight
    return found


def plain_descent(
    model: EditableModel,
    samples: list[Sample],
    flat: dict[str, FlatDirections],
    editor: CrispEdit,
    seed: int,
    moments: dict[str, tuple[Tensor, Tensor, int]] | None = None,
) -> dict[str, tuple[Tensor, Tensor, int]]:
    """CrispEdit's descent in float64, Adam and projection written out; weights change in place."""
    config = editor.config
    linears: dict[str, Any] = {name: model.linear(name) for name in model.modules}
    kept = moments or {
        name: (torch.zeros_like(w.weight), torch.zeros_like(w.weight), 0)
        for name, w in linears.items()
    }
    order = torch.Generator().manual_seed(seed)
    for _ in range(config.passes):
        losses = []
        places = torch.randperm(len(samples), generator=order).tolist()
        for first in range(0, len(places), config.batch_size):
            batch = [samples[i] for i in places[first : first + config.batch_size]]
            for linear in linears.values():
                linear.weight.requires_grad_()
            parts = [
                F.cross_entropy(model.model(s.input_ids[None]).logits[0], s.labels, reduction="sum")
                for s in batch
            ]
            loss = torch.stack(parts).sum() / sum(len(s.answer_ids) for s in batch)
            grads = torch.autograd.grad(loss, [linear.weight for linear in linears.values()])
            losses.append(float(loss.detach()))
            if losses[-1] < config.stop_loss:
                continue
            for (name, linear), g in zip(linears.items(), grads, strict=True):
                if config.projected == "gradient":
                    g = flat[name](g)
                m, v, t = kept[name]
                m, v, t = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g, t + 1
                kept[name] = (m, v, t)
                step = m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
                if config.projected == "step":
                    step = flat[name](step)
                linear.weight.data -= config.lr * step
        if sum(losses) / len(losses) < config.stop_loss:
            break
    return kept


@pytest.mark.parametrize("reference", ["paper", "official"])
def test_all_edits_at_once_against_the_equations_in_float64(reference: str) -> None:
    editor, plain = crisp(opened(), reference=reference), opened()
    first, second = text_batches(editor.model, 2, 5)
    editor.edit(first)
    metrics = editor.edit(second)
    moments = random_covariances(plain, needs=BOTH)
    flat = {
        name: flat_directions(
            moments[name].mean(), moments[gradients_of(name)].mean(), 0.9, name, torch.float64
        )
        for name in plain.modules
    }
    plain_descent(plain, [*first.edit.samples, *second.edit.samples], flat, editor, seed=0)
    for name in plain.modules:
        expected = weight(plain, name) - plain.weights.original(name)
        found = editor.model.weights.read(name) - editor.model.weights.original(name)
        assert relative(found, expected.detach()) < 1e-9
    assert metrics["replayed"] == 10
    assert metrics["flat_share_down_proj_1"] == pytest.approx(flat[plain.modules[0]].share)


@pytest.mark.parametrize("reference", ["paper", "official"])
def test_batch_after_batch_against_the_equations_in_float64(reference: str) -> None:
    """Adam goes on, and the tokens of the first batch count among those of the text.

    The release's momentum is projected anew before a batch.
    """
    editor = crisp(opened(), mode="sequential", energy=0.7, reference=reference)
    plain = opened()
    first, second = text_batches(editor.model, 2, 40)
    moments = random_covariances(plain, needs=BOTH)
    kept = None
    before: dict[str, FlatDirections] = {}
    for number, batch in enumerate((first, second)):
        samples = list(batch.edit.samples)
        flat = {
            name: flat_directions(
                moments[name].mean(), moments[gradients_of(name)].mean(), 0.7, name, torch.float64
            )
            for name in plain.modules
        }
        if kept and reference == "official":
            kept = {name: (flat[name](m), v, t) for name, (m, v, t) in kept.items()}
        kept = plain_descent(plain, samples, flat, editor, seed=number, moments=kept)
        editor.edit(batch)
        for name in plain.modules:
            expected = weight(plain, name) - plain.weights.original(name)
            found = editor.model.weights.read(name) - editor.model.weights.original(name)
            assert relative(found, expected.detach()) < 1e-7
        if before:
            assert any(not torch.equal(before[n].flat, flat[n].flat) for n in flat)
        before = flat
        keys, slopes, tokens = plain_curvature(plain, samples)
        for name in plain.modules:
            for moment, sums in ((moments[name], keys), (moments[gradients_of(name)], slopes)):
                moment.total += sums[name]
                moment.count += tokens


def test_only_projected_steps_stay_in_flat_directions() -> None:
    """Adam takes a projected gradient out of them again, the defect that `paper` mends."""
    outside = {}
    for reference in ("paper", "official"):
        editor = crisp(opened(), reference=reference)
        editor.edit(text_batches(editor.model, 1, 6)[0])
        weights, share = editor.model.weights, []
        moments = random_covariances(opened(), needs=BOTH)
        for name in weights.names:
            a, b = (moments[n].mean().double() for n in (name, gradients_of(name)))
            flat = flat_directions(a, b, 0.9, name, torch.float64)
            moved = weights.read(name) - weights.original(name)
            share.append(float((moved - flat(moved)).norm() / moved.norm()))
            bounded = torch.trace(moved @ a @ moved.T @ b) <= flat.threshold * moved.norm() ** 2
            if reference == "paper":
                assert bounded
        outside[reference] = max(share)
    assert outside["paper"] < 1e-12 and outside["official"] > 0.05


def test_with_all_curvature_kept_out_a_model_on_many_texts_is_not_edited() -> None:
    model = opened()
    editor = crisp(model, equipped=False, energy=1.0)
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(0, 40, (12,), generator=generator).tolist() for _ in range(60)]
    editor.load_covariance(_sums(model, texts))
    before = {name: model.weights.read(name).clone() for name in model.modules}
    metrics = editor.edit(text_batches(model, 1, 6)[0])
    for name, value in before.items():
        assert float((model.weights.read(name) - value).norm()) < 1e-4 * float(value.norm())
    assert metrics["flat_share_down_proj_3"] < 0.01


@pytest.mark.parametrize("settings", [{"stop_loss": 1e9}, {"stop_loss": 1e9, "mode": "sequential"}])
def test_batches_that_are_known_already_make_no_step(settings: dict[str, Any]) -> None:
    editor = crisp(opened(), **settings)
    editor.edit(text_batches(editor.model, 1, 6)[0])
    for name in editor.model.modules:
        assert torch.equal(editor.model.weights.read(name), editor.model.weights.original(name))


CASES = [
    {"mode": "sequential"},
    {"mode": "sequential", "reference": "official"},
    {"mode": "sequential", "recompute_at": 0.05},
    {"recompute_at": 0.05},
]


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        # By turns in one precision and the other; the rest is long.
        pytest.param(
            case, dtype, marks=() if i % 2 == j else pytest.mark.long, id=f"{case}-{dtype}"
        )
        for i, case in enumerate(CASES)
        for j, dtype in enumerate([torch.float32, torch.bfloat16])
    ],
)
def test_a_resumed_stream_equals_a_straight_one(
    settings: dict[str, Any], dtype: torch.dtype
) -> None:
    straight = crisp(opened(dtype), **settings)
    stream = text_batches(straight.model, 4, 5)
    measured = [straight.edit(batch) for batch in stream[:2]]
    kept = straight.model.weights.state_dict()
    state = {k: v.clone() for k, v in straight.state_dict().items()}
    measured += [straight.edit(batch) for batch in stream[2:]]
    resumed = crisp(opened(dtype), **settings)
    resumed.model.weights.load_state_dict(kept)
    resumed.load_state_dict(state)
    assert [resumed.edit(batch) for batch in stream[2:]] == measured[2:]
    assert_same(resumed.state_dict(), straight.state_dict())
    assert_same(resumed.model.weights.state_dict(), straight.model.weights.state_dict())
    if "recompute_at" in settings:
        assert measured[-1]["recomputed"] >= 1


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], v) for k, v in expected.items())


def test_covariances_are_taken_anew_on_the_edited_model() -> None:
    editor = crisp(opened(), mode="sequential", recompute_at=0.02, passes=1, batch_size=6)
    never = crisp(opened(), mode="sequential", recompute_at=1e9, passes=1, batch_size=6)
    batch = text_batches(editor.model, 1, 6)[0]
    assert never.edit(batch)["recomputed"] == 0
    assert editor.edit(batch)["recomputed"] == 1
    saved = editor.state_dict()
    _, slopes, tokens = plain_curvature(editor.model, as_samples(random_texts()))
    for name in editor.model.modules:
        assert int(saved[f"curvature.text.{gradients_of(name)}.count"]) == tokens
        total = saved[f"curvature.text.{gradients_of(name)}.total"]
        assert relative(total.double(), slopes[name]) < 1e-5
    bare = crisp(opened(), equipped=False, recompute_at=0.02)
    bare.load_covariance(random_covariances(bare.model, needs=BOTH))
    with pytest.raises(ValueError, match="call load_texts before the stream"):
        bare.edit(batch)


def test_what_is_missing_or_of_another_model_is_refused_before_the_stream() -> None:
    editor = crisp(opened(), equipped=False)
    keys = random_covariances(editor.model)
    name = editor.model.modules[0]
    found = f"no covariance of output gradients of {name!r} was given"
    with pytest.raises(CovarianceError, match=re.escape(found)):
        editor.load_covariance(keys)
    wrong = random_covariances(editor.model, needs=BOTH)
    wrong[gradients_of(name)].total = torch.eye(3)
    with pytest.raises(CovarianceError, match=r"3 features, the linear has \d+ outputs"):
        editor.load_covariance(wrong)
    with pytest.raises(CovarianceError, match="call load_covariance first"):
        editor.edit(text_batches(editor.model, 1, 2)[0])
    with pytest.raises(ValueError, match="is none of editor 'crispedit'"):
        crisp(opened(), mode="sequential").load_state_dict({"strange": torch.zeros(1)})


def test_a_gradient_that_is_no_number_is_named() -> None:
    model = opened()
    whole: Any = model.model
    head = whole.get_output_embeddings()
    head.weight.data[:] = 1e308
    with pytest.raises(NonFiniteError, match=r"covariance of output gradients of 'model\.layers"):
        random_covariances(model, needs=("output_gradients",))


def test_recipes_decide_what_is_projected_and_how_much_is_kept() -> None:
    official = CrispEditConfig(modules=MODULES, reference="official")
    paper = CrispEditConfig(modules=MODULES)
    assert (official.projected, official.energy) == ("gradient", 0.8)
    assert (paper.projected, paper.energy) == ("step", 0.99)
    assert "texts" not in CrispEdit.needs_of(paper)
    assert "texts" in CrispEdit.needs_of(CrispEditConfig(modules=MODULES, recompute_at=0.25))


@pytest.mark.parametrize(
    "in_step", [pytest.param(False, marks=pytest.mark.long), True], ids=["whole", "sharded"]
)
def test_several_ranks_give_the_matrices_of_one(in_step: bool) -> None:
    def work(ranks: Any) -> dict[str, Tensor]:
        access = InStep() if in_step and not isinstance(ranks, SingleProcess) else None
        model = opened(ranks=ranks, access=access, execution=Execution(token_budget=60))
        editor: Editor = crisp(model, equipped=False, mode="sequential", recompute_at=0.05)
        moments = random_covariances(model, needs=BOTH)
        editor.load_covariance(moments)
        editor.load_texts(random_texts)
        for batch in text_batches(model, 2, 5):
            editor.edit(batch)
        return {name: model.weights.read(name).clone() for name in model.modules}

    expected = work(SingleProcess())

    def rank(ranks: ThreadedRank) -> dict[str, Tensor]:
        return work(ranks)

    found = together(2, rank)
    for name, value in expected.items():
        assert relative(found[0][name], value) < 1e-5
        assert torch.equal(found[0][name], found[1][name])

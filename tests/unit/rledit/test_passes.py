"""The fast passes against plain ones: restarted prefixes, injected and traced shifts, both
solves."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from torch import Tensor

from rledit.editors import editor_class
from rledit.families import FAMILIES
from rledit.hypernetwork import Hypernetwork
from rledit.model import EditableModel, Execution
from rledit.shift import LowRankShift, solve_normal_equation, traced
from rledit.tokenization import Sample
from tests.reference import reference_shift
from tests.reference.injected import injected
from tests.unit.helpers.oracle import relative
from tests.unit.helpers.tiny_models import (
    VOCABULARY,
    double_arithmetic,
    random_batches,
    tiny_model,
    two_shapes,
)
from tests.unit.helpers.turns import by_turns


@pytest.fixture(autouse=True)
def _double(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    double_arithmetic(monkeypatch)


def _samples(seed: int = 0) -> tuple[Sample, ...]:
    return random_batches(1, 7, seed)[0].edit.samples


def _plain(model: EditableModel, sample: Sample) -> Tensor:
    """Logits at the answer positions of one sample, by the model's own forward."""
    output: Tensor = model.model(input_ids=sample.input_ids[None], use_cache=False).logits
    return output[0, sample.answer_positions]


@pytest.mark.parametrize(
    ("family", "modules", "narrow"),
    by_turns(FAMILIES, list(product([("down:0",), ("up:2",), ("down:3",)], [True, False])), long=2),
)
def test_restarted_trunk_equals_the_whole_model(
    family: str, modules: tuple[str, ...], narrow: bool
) -> None:
    if "gate_up" in FAMILIES[family].target_modules:
        modules = tuple(name.replace("up:", "gate_up:") for name in modules)
    model = EditableModel(tiny_model(family), None, modules, Execution(token_budget=30))
    samples = _samples()
    for _ in range(2):  # first computing the prefixes, then from the cache
        for micro_batch in model.micro_batches(samples):
            with torch.no_grad():
                found = model.prefix_cache.logits(micro_batch, narrow=narrow)
                expected = torch.cat([_plain(model, sample) for sample in micro_batch.samples])
            assert found.shape == (len(micro_batch.rows), VOCABULARY)
            assert relative(found, expected) < 1e-12
    assert model.prefix_cache.hit_rate == 0.5


def test_cached_prefixes_stay_right_when_edits_come() -> None:
    model = EditableModel(tiny_model("gemma2"), None, ("gate:1", "down:2"))
    (micro_batch,) = model.micro_batches(_samples())
    with torch.no_grad():
        before = model.prefix_cache.logits(micro_batch)
        for name in model.modules:
            model.weights.add(name, _shift(model, name))
        after = model.prefix_cache.logits(micro_batch)
        expected = torch.cat([_plain(model, sample) for sample in micro_batch.samples])
    assert relative(after, expected) < 1e-12
    assert relative(before, after) > 1e-2


def _shift(model: EditableModel, name: str, kind: str = "dual") -> LowRankShift:
    linear = model.linear(name)
    generator = torch.Generator().manual_seed(len(name))
    left = 0.1 * torch.randn(5, linear.in_features, generator=generator, dtype=torch.float64)
    right = torch.randn(5, linear.out_features, generator=generator, dtype=torch.float64)
    if kind == "primal":
        return LowRankShift(None, (left.T @ right).requires_grad_())
    return LowRankShift(left.requires_grad_(kind == "outer"), right.requires_grad_())


@pytest.mark.parametrize("kind", ["dual", "primal", "outer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_injected_and_merged_shifts_are_one(family: str, kind: str) -> None:
    """Same logits, and the same gradients of the shift's factors."""
    whole = tiny_model(family)
    modules = two_shapes(whole)
    samples = _samples()
    results: list[tuple[Tensor, list[Tensor]]] = []
    for merged in (False, True):
        model = EditableModel(copy.deepcopy(whole), None, modules)
        shifts = {name: _shift(model, name, kind) for name in model.modules}
        if merged:
            for name, shift in shifts.items():
                model.weights.add(name, shift)
        (micro_batch,) = model.micro_batches(samples)
        with traced(model, shifts) if merged else injected(model, shifts):
            logits = model.prefix_cache.logits(micro_batch)
        logits.log_softmax(-1)[:, 3].sum().backward()
        leaves = [t for s in shifts.values() for t in (s.left, s.right) if t is not None]
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        assert len(gradients) == sum(leaf.requires_grad for leaf in leaves)
        results.append((logits, gradients))
    (logits, gradients), (expected_logits, expected) = results
    assert relative(logits, expected_logits) < 1e-12
    assert max(relative(g, e) for g, e in zip(gradients, expected, strict=True)) < 1e-10


@pytest.mark.parametrize("rows", [6, 12, 13, 40])
def test_both_forms_of_the_normal_equation(rows: int) -> None:
    """n below, at and above d_in = 12: shift, gradients and norm of the dense equation."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(2, rows, 12, generator=generator, dtype=torch.float64)
    differences = torch.randn(2, rows, 9, generator=generator, dtype=torch.float64)
    outer = torch.randn(2, 12, 9, generator=generator, dtype=torch.float64)
    ridge = torch.tensor([0.5, 2.0], dtype=torch.float64)
    leaves = [t.clone().requires_grad_() for t in (differences, ridge) * 2]
    solution = solve_normal_equation(keys, leaves[0], leaves[1])
    assert (solution.left is None) == (rows > 12)
    for j in range(2):
        left = None if solution.left is None else solution.left[j]
        shift = LowRankShift(left, solution.right[j])
        expected = reference_shift(keys[j], leaves[2][j], leaves[3][j])
        assert relative(shift.dense(), expected) < 1e-12
        assert shift.norm().item() == pytest.approx(expected.norm().item(), rel=1e-12)
        (shift.dense() * outer[j]).sum().backward(retain_graph=True)
        (expected * outer[j]).sum().backward()
    for found, expected in zip(leaves[:2], leaves[2:], strict=True):
        assert found.grad is not None
        assert expected.grad is not None
        assert relative(found.grad, expected.grad) < 1e-10


def test_a_new_hypernetwork_can_leave_the_identity() -> None:
    torch.manual_seed(0)
    network = Hypernetwork(4, 3, 2, rank=3, n_blocks=2, initial_step=1e-6).double()
    z = torch.randn(2, 5, 7, dtype=torch.float64)
    found = torch.cat(network(z), dim=-1)
    assert torch.equal(found, z)
    found.square().sum().backward()
    for name, parameter in network.named_parameters():
        if name.endswith(("B", "bias", "shift")):
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("rows", [9, 30])
def test_solve_stays_exact_where_the_gram_matrix_does_not(
    rows: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Outlier features at condition 1e12, judged by singular values, which square nothing."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(1, rows, 12, generator=generator, dtype=torch.float64)
    keys[..., [2, 7]] *= 1e5
    differences = torch.randn(1, rows, 5, generator=generator, dtype=torch.float64)
    differences.requires_grad_()
    outer = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    ridge = torch.tensor([0.3], dtype=torch.float64)
    with caplog.at_level("INFO"):
        solution = solve_normal_equation(keys, differences, ridge, "these linear layers")
    assert "these linear layers: condition up to" in caplog.text
    left = None if solution.left is None else solution.left[0]
    shift = LowRankShift(left, solution.right[0]).dense()
    (shift * outer).sum().backward()
    u, s, v = torch.linalg.svd(keys[0], full_matrices=False)
    filtered = (s / (s.square() + 0.3))[:, None]
    assert float(solution.condition[0]) > 1e10
    assert relative(shift, v.T @ (filtered * (u.T @ differences[0]))) < 1e-8
    assert differences.grad is not None
    assert relative(differences.grad[0], u @ (filtered * (v @ outer))) < 1e-8


@pytest.mark.parametrize(("scale", "refined"), [(1e2, False), (1e4, True)])
def test_refinement_begins_at_condition_1e6(
    scale: float, refined: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Orthogonal keys of lengths 1 and `scale`, ridge 1: condition at most scale² + 1."""
    keys = torch.diag(torch.tensor([1.0, scale], dtype=torch.float64))[None]
    ridge = torch.ones(1, dtype=torch.float64)
    with caplog.at_level("INFO"):
        solution = solve_normal_equation(keys, torch.ones_like(keys), ridge, "these linear layers")
    assert float(solution.condition[0]) == pytest.approx(scale**2 + 1)
    assert ("refining" in caplog.text) == refined


def test_a_singular_system_gets_jitter_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    keys = torch.ones(1, 3, 5, dtype=torch.float64)
    ridge = torch.tensor([1e-30], dtype=torch.float64)
    solution = solve_normal_equation(keys, torch.ones_like(keys), ridge)
    assert 0 < solution.jitter < 1e-6
    assert solution.right.isfinite().all()
    assert "added jitter" in caplog.text
    with pytest.raises(ValueError, match="these linear layers: .*non-finite"):
        solve_normal_equation(keys * torch.nan, keys, ridge, "these linear layers")


@pytest.mark.parametrize("name, step", [("ultraedit", "step"), ("untrained", "initial_step")])
def test_a_training_free_edit_reads_its_batch_once(
    name: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One forward, with the layers below beforehand where they are not at hand; one backward."""
    model = EditableModel(
        tiny_model("llama"), None, ("down:2", "up:3"), Execution(token_budget=4096)
    )
    cls = editor_class(name)
    editor = cls(model, cls.Config(modules=model.modules, **{step: 1e-2}))
    calls: list[str] = []
    forward, grad = model.model.forward, torch.autograd.grad
    monkeypatch.setattr(
        model.model, "forward", lambda **named: (calls.append("forward"), forward(**named))[1]
    )
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *given: (calls.append("backward"), grad(*given))[1]
    )
    (batch,) = random_batches(1, 6, 5)
    editor.edit(batch)
    assert calls == ["forward", "forward", "backward"]
    calls.clear()
    editor.edit(batch)
    assert calls == ["forward", "backward"]

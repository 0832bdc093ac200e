"""The reference implementation judged from outside: by finite differences, definitions and
automatic gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rledit.families import edited_modules
from tests.reference import (
    ReferenceConfig,
    ReferenceMoments,
    ReferenceRLEdit,
    reference_capture,
    reference_network,
    reference_parameters,
    reference_shift,
    reference_shift_gradient,
)
from tests.unit.helpers.oracle import SMALL, make_pair, relative
from tests.unit.helpers.tiny_models import double_arithmetic, random_batches, tiny_model, two_shapes


@pytest.fixture(autouse=True)
def _double(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    double_arithmetic(monkeypatch)


@pytest.mark.parametrize("rows", [5, 30])
def test_explicit_gradient_of_the_solve_is_the_automatic_one(rows: int) -> None:
    torch.manual_seed(0)
    keys = torch.randn(rows, 12, dtype=torch.float64)
    differences = torch.randn(rows, 7, dtype=torch.float64, requires_grad=True)
    ridge = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    outer = torch.randn(12, 7, dtype=torch.float64)
    shift = reference_shift(keys, differences, ridge)
    expected = torch.autograd.grad((shift * outer).sum(), (differences, ridge))
    found = reference_shift_gradient(keys, shift.detach(), 0.7, outer)
    assert max(relative(f, e) for f, e in zip(found, expected, strict=True)) < 1e-12
    dual = keys.T @ torch.linalg.solve(
        keys @ keys.T + 0.7 * torch.eye(rows, dtype=keys.dtype), differences
    )
    assert relative(shift, dual) < 1e-12


@pytest.mark.parametrize("kl_reference", ["pretrained", "previous"])
def test_explicit_and_automatic_trajectories_agree(kl_reference: str) -> None:
    batches = random_batches(3, 5)
    found = [
        make_pair("llama", kl_reference=kl_reference, book={"gradient": g}).book.trajectory(batches)
        for g in ("explicit", "autograd")
    ]
    for shape, tensors in found[0].gradients.items():
        for name, gradient in tensors.items():
            assert relative(gradient, found[1].gradients[shape][name]) < 1e-9, name


def test_gradient_is_the_slope_of_the_loss() -> None:
    (batch,) = random_batches(1, 5)

    def loss(distance: float) -> float:
        book = make_pair("mistral").book
        with torch.no_grad():
            for (shape, name), direction in directions.items():
                book.parameters[shape][name] += distance * direction
        return book.trajectory([batch]).steps[0].losses["total"]

    gradients = make_pair("mistral").book.trajectory([batch]).gradients
    generator = torch.Generator().manual_seed(1)
    directions = {
        (shape, name): torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        for shape, tensors in gradients.items()
        for name, gradient in tensors.items()
    }
    slope = sum(float((gradients[s][n] * d).sum()) for (s, n), d in directions.items())
    assert (loss(1e-5) - loss(-1e-5)) / 2e-5 == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("tokens", ["answer", "all"])
def test_captured_rows_are_inputs_and_slopes(tokens: str) -> None:
    model = tiny_model("gptj").requires_grad_(False)
    modules = edited_modules(model, two_shapes(model))
    for name in modules:
        model.get_submodule(name).weight.requires_grad_()
    phase = random_batches(1, 5)[0].edit
    captured, _ = reference_capture(model, phase, modules, tokens)  # type: ignore[arg-type]
    name = modules[1]
    values = captured[name][1]
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    assert linear.bias is not None
    direction = torch.randn_like(linear.bias)

    def loss(distance: float) -> float:
        with torch.no_grad():
            linear.bias.add_(direction, alpha=distance)
        found = reference_capture(model, phase, modules)[1]
        with torch.no_grad():
            linear.bias.sub_(direction, alpha=distance)
        return found

    # A bias reaches every position; padding and positions past the answer carry no gradient.
    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    total = float((values @ direction).sum())
    if tokens == "all":
        assert total == pytest.approx(slope, rel=1e-6)
    else:
        rows = sum(len(sample.answer_ids) for sample in phase.samples)
        assert values.shape == (rows, linear.out_features)
        everything, _ = reference_capture(model, phase, modules, "all")
        for row, key in zip(values, captured[name][0], strict=True):
            match = (everything[name][0] - key).norm(dim=1).argmin()
            assert relative(row, everything[name][1][match]) < 1e-12


def test_moments_are_those_of_all_rows() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(n, 6, dtype=torch.float64) * 3 + i for i, n in enumerate((4, 1, 9))]
    moments = ReferenceMoments()
    for part in parts:
        moments.add(part)
    whole = torch.cat(parts)
    eps = torch.finfo(torch.float32).eps
    expected = (parts[1] - whole.mean(0)) / (whole.std(0) + eps)
    assert relative(moments.normalise(parts[1]), expected) < 1e-12


def test_a_new_network_is_the_identity_and_can_leave_it() -> None:
    config = ReferenceConfig(rank=3, n_blocks=2)
    shapes = {(4, 3): 2}
    parameters = reference_parameters(shapes, config, dtype=torch.float64)[4, 3]
    z = torch.randn(5, 7, dtype=torch.float64)
    leaf: Tensor = parameters["blocks.0.B"].requires_grad_()
    out = reference_network(z, parameters, 1)
    assert torch.equal(out, z)
    out.square().sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().min() > 0


def test_model_is_whole_after_a_trajectory() -> None:
    model = tiny_model("qwen2")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = ReferenceConfig(**{**SMALL, "kl_reference": "pretrained"})
    book = ReferenceRLEdit(model, edited_modules(model, two_shapes(model)), config)
    book.train_step(random_batches(2, 5))
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    book.edit(random_batches(1, 5)[0])
    changed = [n for n, p in model.named_parameters() if not torch.equal(before[n], p)]
    assert sorted(changed) == sorted(f"{name}.weight" for name in book.modules)

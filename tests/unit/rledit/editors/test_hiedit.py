"""HiEdit: its gate, what the gate learns from, and that it is RLEdit where nothing is left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rledit.editors.gate import Gate, straight_through
from rledit.editors.hiedit import HiEdit, HiEditConfig, gate_parameters
from rledit.editors.hypernetwork_editor import HypernetworkEditor
from rledit.editors.rledit import RLEdit, RLEditConfig
from rledit.model import EditableModel, Execution
from rledit.tokenization import EditBatch
from tests.unit.helpers.text_edits import text_batches, tiny_tokenizer
from tests.unit.helpers.tiny_models import tiny_model, two_shapes
from tests.unit.helpers.turns import by_turns

SMALL: dict[str, Any] = {
    "rank": 3, "n_blocks": 2, "initial_step": 1e-2, "meta_lr": 1e-3, "depth": 2, "gate_width": 8,
}  # fmt: skip
OUTER: dict[str, Any] = {"rule": "outer_product", "tokens": "all"}


def opened(dtype: torch.dtype = torch.float64, **execution: Any) -> EditableModel:
    model = tiny_model("llama").to(dtype)
    modules = two_shapes(model)
    return EditableModel(model, tiny_tokenizer("llama"), modules, Execution(**execution))


def made(dtype: torch.dtype = torch.float64, **settings: Any) -> HiEdit:
    model = opened(dtype)
    return HiEdit(model, HiEditConfig(modules=model.modules, **(SMALL | settings)))


def batches(model: EditableModel, n: int = 3, seed: int = 0) -> list[EditBatch]:
    return text_batches(model, n, 8, seed=seed)


def gradients(parameters: Sequence[nn.Parameter]) -> float:
    return sum(float(p.grad.abs().sum()) for p in parameters if p.grad is not None)


def accumulate(editor: HiEdit, batch: EditBatch) -> None:
    """The gradients of one training batch, left where they are."""
    editor._train_batch(batch, editor._new_reward(), 1.0)


def test_the_gate_against_plain_loops() -> None:
    torch.manual_seed(0)
    shapes = {(3, 2): ("b", "d"), (2, 4): ("a", "c")}
    gate = Gate(shapes, ("a", "b", "c", "d"), width=5).double()
    for parameter in gate.parameters():
        nn.init.normal_(parameter)
    rows = {shape: torch.randn(2, 7, sum(shape)).double() for shape in shapes}
    features = []
    for name in ("a", "b", "c", "d"):
        shape = next(s for s, names in shapes.items() if name in names)
        j = shapes[shape].index(name)
        encoder: Any = gate.encoders[f"{shape[0]}x{shape[1]}"]
        each = [
            encoder.scale[j] * (encoder.linear.weight @ z + encoder.linear.bias).relu()
            + encoder.shift[j]
            for z in rows[shape][j]
        ]
        features.append(torch.stack(each).mean(0))
    expected = gate.head.weight @ torch.cat(features) + gate.head.bias
    torch.testing.assert_close(gate(rows), expected)
    counted = gate_parameters({s: len(n) for s, n in shapes.items()}, 5)
    assert counted == sum(p.numel() for p in gate.parameters())


def test_a_mask_is_exact_and_its_gradient_is_the_logits() -> None:
    logits = torch.tensor([1e7, 0.3, 0.3, -2.0, 5.0], requires_grad=True)
    mask = straight_through(logits, 3)
    assert mask.tolist() == [1.0, 1.0, 0.0, 0.0, 1.0]
    weights = torch.arange(5.0)
    (mask * weights).sum().backward()
    assert logits.grad is not None and torch.equal(logits.grad, weights)


@pytest.mark.parametrize(
    ("form", "recipe"), by_turns([{}, OUTER], ["paper", "official", "converged"], long=2)
)
def test_with_all_modules_it_is_rledit(form: dict[str, Any], recipe: str) -> None:
    """Networks after training, and the stream behind it, bit by bit."""
    model = opened(torch.float32)
    settings = {**SMALL, **form, "reference": recipe, "moments": "exact", "patience": 0}
    settings |= {"incomplete_groups": "keep", "train_steps": 2}
    width = settings.pop("gate_width")
    plain = RLEdit(model, RLEditConfig(modules=model.modules, **settings))
    gated = made(torch.float32, **settings, gate_width=width, active_modules=4)
    for editor in (plain, gated):
        for seed in (0, 1):
            editor.train_step(batches(editor.model, 2, seed))
    expected, found = plain.state_dict(), gated.state_dict()
    assert {k for k in found if k not in expected} == {k for k in found if k.startswith("gate.")}
    assert all(torch.equal(found[k], v) for k, v in expected.items())
    for batch in batches(model, 2, seed=5):
        plain.edit(batch)
        gated.edit(batch)
    for name in model.modules:
        assert torch.equal(plain.model.weights.read(name), gated.model.weights.read(name))
        assert plain.model.weights.delta_norm(name) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_exactly_k_modules_are_edited(k: int, dtype: torch.dtype) -> None:
    editor = made(dtype, active_modules=k)
    weights = editor.model.weights
    for batch in batches(editor.model):
        before = weights.state_dict()
        metrics = editor.edit(batch)
        changed = [not torch.equal(weights.read(n), before[n]) for n in editor.model.modules]
        assert sum(changed) == k
        assert [metrics[f"active_{i}"] for i in range(4)] == [float(c) for c in changed]
        assert metrics["realised_cosine"] > 0  # of what was edited, not of what was left


def test_half_of_the_modules_unless_a_number_is_given() -> None:
    assert made().active_modules == 2
    for count in (0, 5):
        with pytest.raises(ValueError, match=f"active_modules: {count} of 4.*from 1 to 4"):
            made(active_modules=count)


@pytest.mark.parametrize("form", [{}, OUTER], ids=["normal equation", "outer product"])
def test_the_gate_learns_from_the_loss_of_every_module(form: dict[str, Any]) -> None:
    """⟨∂L/∂S_j, S_j⟩ against differences of the loss, for modules that are left out too."""

    def loss(scales: Tensor) -> float:
        editor = made(**form, **settings)
        batch = batches(editor.model)[0]
        reward = editor._new_reward()
        reward.observe(batch)
        with torch.no_grad():
            captured = editor.propose(batch).captured
            whole = HypernetworkEditor.shift_by(editor, captured).shifts
        for (name, shift), scale in zip(whole.items(), scales.tolist(), strict=True):
            value = editor.model.weights.original(name) + scale * shift.dense().T
            editor.model.weights.set(name, value)
        leaves = {name: shift.detached(requires_grad=True) for name, shift in whole.items()}
        return reward.backward(leaves).total

    settings: dict[str, Any] = {"active_modules": 2, "reg_coef": 0.0, "max_grad_norm": 1e9}
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64, requires_grad=True)
    editor = made(**form, **settings)
    editor.gate.register_forward_hook(lambda *_: logits)
    accumulate(editor, batches(editor.model)[0])
    assert logits.grad is not None
    chosen = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    for j in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[j] = 1e-3
        slope = (loss(chosen + step) - loss(chosen - step)) / 2e-3  # layer norms are in float32
        assert abs(slope) > 1e-8
        assert float(logits.grad[j]) == pytest.approx(slope, rel=2e-3)


def test_without_the_norm_the_gate_still_learns_in_paper_and_nothing_in_official() -> None:
    for recipe, learns in (("paper", True), ("official", False)):
        editor = made(reference=recipe, reg_coef=0.0, moments="exact")
        accumulate(editor, batches(editor.model)[0])
        assert (gradients(list(editor.gate.parameters())) > 0) is learns
        assert gradients(list(editor.networks[next(iter(editor.shapes))].parameters())) > 0


def test_official_the_norm_alone_reaches_the_gate() -> None:
    """Numbers of the modules that are edited fall with the norm of their shifts; no other moves."""
    editor = made(reference="official", moments="exact", reg_coef=0.5, active_modules=2)
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64, requires_grad=True)
    editor.gate.register_forward_hook(lambda *_: logits)
    batch = batches(editor.model)[0]
    accumulate(editor, batch)
    sizes = [editor.model.weights.delta_norm(name) ** 2 for name in editor.model.modules]
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx([0.5 * 2 * size for size in sizes], rel=1e-6)
    assert [size > 0 for size in sizes] == [False, True, True, False]


@pytest.mark.parametrize(("recipe", "normalised"), [("official", False), ("paper", True)])
def test_official_the_gates_normaliser_never_sees_a_row(recipe: str, normalised: bool) -> None:
    editor = made(reference=recipe, moments="exact")
    seen: list[dict[tuple[int, int], Tensor]] = []
    editor.gate.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for batch in batches(editor.model, 2):
        editor.edit(batch)
    for shape, names in editor.shapes.items():
        proposal = editor.propose(batch, update_moments=False)
        captured = proposal.captured
        raw = torch.stack([torch.cat([captured.keys[n], captured.values[n]], -1) for n in names])
        moments = editor.moments[shape]
        expected = moments.normalise(raw) if normalised else raw / torch.finfo(torch.float32).eps
        torch.testing.assert_close(seen[-1][shape], expected)
        assert (float(seen[-1][shape].abs().max()) < 100) is normalised


def test_the_gate_is_clipped_by_itself() -> None:
    one, other = made(max_grad_norm=1e-3), made(max_grad_norm=1e9)
    for editor in (one, other):
        accumulate(editor, batches(editor.model)[0])
        editor._clip()
    for mine, free in (
        (list(one.gate.parameters()), list(other.gate.parameters())),
        ([p for n in one.networks.values() for p in n.parameters()],
         [p for n in other.networks.values() for p in n.parameters()]),
    ):  # fmt: skip
        norm = nn.utils.get_total_norm([p.grad for p in mine if p.grad is not None])
        whole = nn.utils.get_total_norm([p.grad for p in free if p.grad is not None])
        assert float(norm) == pytest.approx(1e-3, rel=1e-2) and float(whole) > 1e-3


def test_training_moves_the_gate_which_is_saved_with_its_moments() -> None:
    editor, other = made(), made()
    start = editor.state_dict()
    editor.train_step(batches(editor.model))
    state = editor.state_dict()
    moved = [k for k in state if k.startswith("gate.") and not torch.equal(state[k], start[k])]
    assert {k.split(".")[1] for k in moved} == {"encoders", "head"}
    assert any(k.startswith("moments.") and k.endswith(".mean") for k in state)
    other.load_state_dict(state)
    (batch,) = batches(editor.model, 1, seed=7)
    masks = [[e.edit(batch)[f"active_{i}"] for i in range(4)] for e in (editor, other)]
    assert masks[0] == masks[1]


def test_it_is_not_safe_to_take_a_longer_stream_for_a_shorter_one() -> None:
    assert not HiEdit.prefix_safe


@pytest.mark.parametrize("cut", [1, 20])
def test_the_gate_does_not_depend_on_how_prompts_are_cut_into_passes(cut: int) -> None:
    """A batch edited in one pass, or in several with other company, gives the same mask."""
    whole = made()
    pieces = HiEdit(opened(token_budget=cut), whole.config)
    (batch,) = batches(whole.model, 1)
    found = [e.edit(batch) for e in (whole, pieces)]
    for name in whole.model.modules:
        torch.testing.assert_close(whole.model.weights.read(name), pieces.model.weights.read(name))
    assert all(found[0][f"active_{i}"] == found[1][f"active_{i}"] for i in range(4))

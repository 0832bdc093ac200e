"""DAFNet: its network against plain loops, the weights of edits, its signals and its training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from rledit.capture import capture
from rledit.editors.dafnet import DAFNet, DAFNetConfig
from rledit.editors.dafnet_network import Past, SequenceNetwork, edit_weights
from rledit.editors.dafnet_sizes import Averaged, Sizes
from rledit.editors.dafnet_training import Curriculum, edits_trained_on, prompts_of
from rledit.model import EditableModel
from rledit.records import Edit
from rledit.step_size import SettingError
from rledit.tokenization import EditBatch
from tests.unit.helpers.text_edits import random_edits, tiny_tokenizer
from tests.unit.helpers.tiny_models import double_arithmetic, tiny_model, two_shapes

SMALL: dict[str, Any] = {
    "hidden_width": 8,
    "head_width": 6,
    "weighing_width": 4,
    "inner_width": 8,
    "initial_step": 1e-2,
}
SIZES = Sizes(hidden=8, heads=2, head_width=6, weighing_heads=2, weighing_width=4, inner=8)
BOTH: tuple[Averaged, ...] = ("products", "shares")
COUNTS = [3, 1, 4, 2]


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    double_arithmetic(monkeypatch)


def made(**settings: Any) -> DAFNet:
    model = tiny_model("llama")
    editable = EditableModel(model, tiny_tokenizer("llama"), two_shapes(model))
    return DAFNet(editable, DAFNetConfig(modules=editable.modules, **(SMALL | settings)))


def encoded(editor: DAFNet, edits: Sequence[Edit]) -> EditBatch:
    return editor.encode(edits)


def deltas(editor: DAFNet) -> dict[str, Tensor]:
    weights = editor.model.weights
    return {name: weights.read(name) - weights.original(name) for name in weights.names}


def worst(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[k] - b[k]).abs().max() / b[k].abs().max()) for k in b)


def network(n_blocks: int = 2) -> SequenceNetwork:
    torch.manual_seed(1)
    return SequenceNetwork(
        5, 3, 2, n_blocks=n_blocks, sizes=SIZES, initial_step=0.1
    ).double()  # fmt: skip


def rows(counts: Sequence[int] = COUNTS) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(sum(counts), 8, dtype=torch.float64)


def plain_block(
    block: Any, x: Tensor, counts: Sequence[int], module: int
) -> tuple[Tensor, list[Tensor]]:
    """A block of a sequence that begins, edit by edit and row by row."""
    edits, within = [], []
    for part in x.split(list(counts)):
        mixed = [block.mix(row) for row in part]
        alpha = torch.softmax(torch.stack([block.score(m)[0] for m in mixed]), 0)
        weighed = [a * m for a, m in zip(alpha, mixed, strict=True)]
        within.append(torch.stack(weighed))
        edits.append(sum(weighed))
    x = block.norms[0](x + torch.cat(within))
    told, shares = [], []
    for i, edit in enumerate(edits):
        heads, weights = [], []
        for h in range(2):
            own, weighing = slice(6 * h, 6 * h + 6), slice(4 * h, 4 * h + 4)
            logits = [block.query(edit)[own] @ block.key(e)[own] / 6**0.5 for e in edits[: i + 1]]
            seen = torch.softmax(torch.stack(logits), 0)
            values = [block.value(e)[own] for e in edits[: i + 1]]
            heads.append(sum(a * v for a, v in zip(seen, values, strict=True)))
            query = block.weighing_query(edit)[weighing]
            logits = [query @ block.weighing_key(e)[weighing] / 2 for e in edits[: i + 1]]
            weights.append(torch.softmax(torch.stack(logits), 0)[-1])
        told.append(block.out(torch.cat(heads)))
        shares.append((weights[0] + weights[1]) / 2)
    x = block.norms[1](x + torch.cat([told[i].expand(n, -1) for i, n in enumerate(counts)]))
    x = block.norms[2](x + block.inner(x))
    return x + F.relu(block.scale[module] * x + block.shift[module]), shares


def test_a_network_equals_plain_loops() -> None:
    net, x = network(), rows()
    with torch.no_grad():
        for block in net.blocks:
            block.scale.add_(torch.randn_like(block.scale))  # type: ignore[operator]
            block.shift.add_(torch.randn_like(block.shift))  # type: ignore[operator]
        out = net(x, COUNTS, 1)
        shares = []
        for block in net.blocks:
            x, own = plain_block(block, x, COUNTS, 1)
            shares.append(torch.stack(own))
    assert torch.allclose(torch.cat([out.keys, out.values], 1), x, atol=1e-12)
    assert torch.allclose(out.shares, torch.stack(shares), atol=1e-12)


@pytest.mark.parametrize("averaged", BOTH)
def test_weights_add_up_to_one_and_the_first_edit_has_all_of_it(averaged: Averaged) -> None:
    shares = network()(rows(), COUNTS, 0).shares
    assert torch.equal(shares[:, 0], torch.ones(2, dtype=torch.float64))
    weights, left = edit_weights(shares, averaged)
    assert (weights.sum() + left).item() == pytest.approx(1, abs=1e-15)
    assert left.item() == 0.0
    later = torch.rand(2, 5, dtype=torch.float64)  # edits of a sequence that goes on
    weights, left = edit_weights(later, averaged)
    assert (weights.sum() + left).item() == pytest.approx(1, abs=1e-15)
    assert 0 < left.item() < 1
    one, nothing = edit_weights(shares[:, :1], averaged)
    assert one.item() == 1.0 and nothing.item() == 0.0


def test_later_edits_do_not_change_the_rows_of_earlier_ones() -> None:
    net, x = network(), rows()
    out, first = net(x, COUNTS, 0), net(x[:4], COUNTS[:2], 0)
    assert torch.allclose(out.keys[:4], first.keys, atol=1e-13)
    assert torch.allclose(out.values[:4], first.values, atol=1e-13)
    assert torch.allclose(out.shares[:, :2], first.shares, atol=1e-13)


def test_permuted_rows_of_an_edit_give_permuted_rows() -> None:
    net, x = network(), rows()
    order = torch.tensor([0, 1, 2, 3, 6, 4, 7, 5, 8, 9])  # those of the third edit
    out, other = net(x, COUNTS, 0), net(x[order], COUNTS, 0)
    assert torch.allclose(out.keys[order], other.keys, atol=1e-13)
    assert torch.allclose(out.values[order], other.values, atol=1e-13)
    assert torch.allclose(out.shares, other.shares, atol=1e-13)


def test_an_edit_without_rows_is_looked_at_and_adds_nothing() -> None:
    net = network()
    out = net(rows([3, 0, 2]), [3, 0, 2], 0)
    assert bool(out.keys.isfinite().all()) and bool(out.shares.isfinite().all())
    assert out.shares.shape == (2, 3)
    out.keys.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)


def test_earlier_edits_carry_no_gradient() -> None:
    net = network()
    earlier = net(rows(), COUNTS, 0)
    past = [
        old.followed_by(new) for old, new in zip(net.beginning(rows()), earlier.past, strict=True)
    ]
    assert isinstance(past[0], Past) and len(past[0]) == 4
    assert not any(t.requires_grad for p in past for t in vars(p).values())


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({"n_blocks": 1, "reference": "official"}, 1e-12),
        ({"n_blocks": 1, "reference": "paper"}, 1e-12),
        ({"n_blocks": 2, "reference": "paper"}, 1e-12),
        ({"n_blocks": 2, "reference": "official"}, 1e-1),
    ],
)
def test_a_batch_is_its_edits_one_at_a_time(settings: dict[str, Any], most: float) -> None:
    """With one block, or shares averaged; the release's average of products is another number."""
    batch, single = made(**settings), made(**settings)
    edits = random_edits(5)
    batch.edit(encoded(batch, edits))
    for edit in edits:
        single.edit(encoded(single, [edit]))
    found = worst(deltas(batch), deltas(single))
    assert found < most
    if most > 1e-3:
        assert found > 1e-10


def test_an_update_equals_plain_loops() -> None:
    editor = made(n_blocks=1)
    edits = random_edits(3)
    batch = encoded(editor, edits)
    captured = capture(editor.model, batch.edit, "all", token_weight=1.0)
    editor.edit(batch)
    for (d_in, d_out), names in editor.shapes.items():
        net = editor.networks[d_in, d_out]
        for j, name in enumerate(names):
            alive = captured.keys[name].abs().sum(1) * captured.values[name].abs().sum(1) > 0
            own = torch.cat([captured.keys[name], captured.values[name]], 1)[alive]
            counts = [int((captured.row_group[alive] == i).sum()) for i in range(3)]
            x, shares = plain_block(net.blocks[0], own, counts, j)
            delta = torch.zeros(d_out, d_in, dtype=torch.float64)
            for i, part in enumerate(x.split(counts)):
                delta = (1 - shares[i]) * delta
                for row in part:
                    delta += net.step[j] * shares[i] / counts[i] * torch.outer(
                        row[d_in:], row[:d_in]
                    )  # fmt: skip
            assert torch.allclose(deltas(editor)[name], delta, atol=1e-13)


def test_signals_come_from_the_unedited_model() -> None:
    editor = made(initial_step=1.0)
    first, second = encoded(editor, random_edits(3)), encoded(editor, random_edits(3, seed=1))
    loss = editor.edit(first)["edit_loss"]
    editor.edit(second)
    assert editor.edit(first)["edit_loss"] == pytest.approx(loss, rel=1e-12)
    assert capture(editor.model, first.edit, "all", 1.0).loss != pytest.approx(loss, rel=1e-3)


def test_the_loss_is_a_sum_over_target_tokens_whatever_the_loss_groups() -> None:
    editor = made()
    batch = encoded(editor, random_edits(4))
    apart = [
        capture(editor.model, replace(batch.edit, samples=(s,)), "all") for s in batch.edit.samples
    ]
    tokens = [len(s.answer_ids) for s in batch.edit.samples]
    grouped = replace(batch.edit, group_size=2)
    together = capture(editor.model, grouped, "all", token_weight=1.0)
    assert together.loss == pytest.approx(
        sum(n * one.loss for n, one in zip(tokens, apart, strict=True)), rel=1e-9
    )
    name = editor.model.modules[0]
    expected = torch.cat([n * one.values[name] for n, one in zip(tokens, apart, strict=True)])
    assert torch.allclose(together.values[name], expected, atol=1e-12)


def test_rows_without_a_gradient_are_left_out() -> None:
    """Of MLPs of the last layer, all but answer positions."""
    model = tiny_model("llama")
    editable = EditableModel(model, tiny_tokenizer("llama"), ("down:2,3",))
    editor = DAFNet(editable, DAFNetConfig(modules=editable.modules, **SMALL))
    seen: dict[int, list[int]] = {}
    net = next(iter(editor.networks.values()))

    def note(_: Any, args: tuple[Any, ...]) -> None:
        seen[args[2]] = args[1]

    net.register_forward_pre_hook(note)
    batch = encoded(editor, random_edits(4))
    editor.edit(batch)
    assert seen[1] == [len(s.answer_ids) for s in batch.edit.samples]
    assert all(n > m for n, m in zip(seen[0], seen[1], strict=True))


def test_the_weights_learn_in_the_paper_s_recipe_alone() -> None:
    for recipe, learns in (("official", False), ("paper", True)):
        editor = made(reference=recipe, meta_lr=1e-2)
        editor.curriculum.cap = 6
        before = {k: v.clone() for k, v in editor.state_dict().items()}
        for seed in range(3):
            editor.train_step([encoded(editor, random_edits(6, seed=seed))])
        after = editor.state_dict()
        weighing = [k for k in before if "weighing_query.weight" in k]
        others = [k for k in before if k.endswith((".query.weight", ".inner.0.weight", ".step"))]
        assert weighing and others
        assert all(torch.equal(before[k], after[k]) is not learns for k in weighing)
        assert not any(torch.equal(before[k], after[k]) for k in others)


def test_gradients_of_training_equal_those_through_the_edited_weights() -> None:
    """Against a loss that is differentiated through W_0 + ΔWᵀ as it stands."""
    editor = made(meta_lr=0.0, step_lr=0.0, max_grad_norm=math.inf)
    model = editor.model.model
    batch = encoded(editor, random_edits(4))
    editor.curriculum.cap = 4
    caught: dict[str, Tensor] = {}
    parameters = {
        f"{shape}.{name}": p
        for shape, net in editor.networks.items()
        for name, p in net.named_parameters()
    }
    step = editor.optimiser.step

    def catch(*args: Any) -> Any:
        caught.update({k: p.grad.clone() for k, p in parameters.items() if p.grad is not None})
        return step(*args)

    editor.optimiser.step = catch  # type: ignore[method-assign]
    measured = editor.train_step([batch])
    n = int(measured["sequence_length"])
    # The moments are those of this sequence now, so that it is proposed again alike.
    shifts = _again(editor, batch, n)
    edited = dict(model.named_parameters())
    for name, shift in shifts.items():
        edited[f"{name}.weight"] = edited[f"{name}.weight"] + shift.T
    total = torch.zeros((), dtype=torch.float64)
    for coef, phase, compared in (
        (0.1, batch.edit, False), (0.1, batch.equivalent, False), (0.2, batch.unrelated, True),
    ):  # fmt: skip
        losses = []
        for sample in phase.samples[:n]:
            ids, at = sample.input_ids[None], sample.answer_positions
            now = functional_call(model, edited, (ids,)).logits[0, at].log_softmax(-1)
            if compared:
                then = model(ids).logits[0, at].log_softmax(-1)
                losses.append((then.exp() * (then - now)).sum(-1))
            else:
                losses.append(-now.gather(1, sample.answer_ids[:, None])[:, 0])
        total = total + coef * torch.cat(losses).mean()
    assert measured["loss"] == pytest.approx(float(total), rel=1e-9)
    expected = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    for (name, _), grad in zip(parameters.items(), expected, strict=True):
        if grad is not None:
            assert torch.allclose(caught[name], grad, rtol=1e-7, atol=1e-12), name


@pytest.mark.parametrize("scored", [[0, 2], [1, 4], [3]])
def test_the_loss_is_of_the_scored_edits_of_a_sequence(scored: list[int]) -> None:
    """Their prompts, found across the batches that the sequence is tokenised in."""
    editor = made()
    edits = random_edits(5)
    batches = [encoded(editor, edits[:2]), encoded(editor, edits[2:])]
    coefs = {"edit": 0.1, "equivalent": 0.1, "unrelated": 0.2}
    found = prompts_of(batches, scored, coefs)
    kinds = [[s for batch in batches for s in getattr(batch, kind).samples] for kind in coefs]
    expected = [own[i] for own in kinds for i in scored]
    assert [id(s) for s in found.samples] == [id(s) for s in expected]
    assert found.related == 2 * len(scored)
    tokens = [len(s.answer_ids) for s in expected]
    total = [sum(tokens[k : k + len(scored)]) for k in range(0, len(tokens), len(scored))]
    weights = [c / n for c, n in zip(coefs.values(), total, strict=True) for _ in scored]
    assert found.weights.tolist() == pytest.approx(weights)


def test_a_step_draws_a_length_up_to_the_cap_and_scores_no_more_than_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    editor = made(scored_edits_per_step=3, sequence_cap=8, first_cap=8)
    drawn: list[list[int]] = []

    def noting(taken: Any, scored: Sequence[int], coefs: Any) -> Any:
        drawn.append(list(scored))
        return prompts_of(taken, scored, coefs)

    monkeypatch.setattr("rledit.editors.dafnet.prompts_of", noting)
    batches = [encoded(editor, random_edits(4, seed=s)) for s in (0, 1)]
    lengths = [int(editor.train_step(batches)["sequence_length"]) for _ in range(30)]
    assert set(lengths) == set(range(1, 9))
    for n, scored in zip(lengths, drawn, strict=True):
        assert len(set(scored)) == len(scored) == min(3, n) and max(scored) < n
    assert len({place for scored in drawn for place in scored}) > 3  # not the first three alone


def _again(editor: DAFNet, batch: EditBatch, n: int) -> dict[str, Tensor]:
    captured = capture(
        editor.model, replace(batch.edit, samples=batch.edit.samples[:n]), "all", 1.0
    )
    found: dict[str, Tensor] = {}
    for shape, names in editor.shapes.items():
        net, moments = editor.networks[shape], editor.moments[shape]
        for j, name in enumerate(names):
            own = torch.cat([captured.keys[name], captured.values[name]], 1)
            alive = (captured.keys[name] != 0).any(1) & (captured.values[name] != 0).any(1)
            counts = torch.bincount(captured.row_group[alive], minlength=n)
            out = net(moments.normalise(own[alive]), counts.tolist(), j)
            weights, _ = edit_weights(out.shares, "shares")
            scale = net.step[j] * (weights / counts).repeat_interleave(counts)
            found[name] = out.keys.T @ (scale[:, None] * out.values)
    return found


@pytest.mark.long
def test_training_lowers_its_loss() -> None:
    editor = made(meta_lr=3e-3, step_lr=3e-3, curriculum_patience=10**6)
    batch = encoded(editor, random_edits(1))
    losses = [editor.train_step([batch])["equivalence"] for _ in range(80)]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_moments_and_networks_are_frozen_while_editing() -> None:
    editor = made()
    editor.train_step([encoded(editor, random_edits(4))])
    before = {k: v.clone() for k, v in editor.state_dict().items()}
    editor.edit(encoded(editor, random_edits(4, seed=1)))
    after = editor.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert {k.partition(".")[0] for k in after.keys() - before.keys()} == {"past"}


def test_sequences_grow_once_the_average_loss_stays() -> None:
    curriculum = Curriculum(most=30, patience=4)
    curriculum.observe(1.0)
    for n in range(3):
        curriculum.observe(1.0)
        assert (curriculum.cap, curriculum.since) == (1, n + 1)
    curriculum.observe(1.0)
    assert (curriculum.cap, curriculum.since) == (11, 0)
    assert curriculum.average == pytest.approx(1.3) and math.isnan(curriculum.best)
    curriculum.observe(0.3)  # 1.3 + 0.01 (0.3 - 1.3)
    assert curriculum.average == curriculum.best == pytest.approx(1.29)
    for _ in range(4):
        curriculum.observe(5.0)
    assert curriculum.cap == 21  # 4 / log10(11) = 3.8: the fourth step without a better average
    for _ in range(40):
        curriculum.observe(9.0)
    assert curriculum.cap == 30
    assert Curriculum(1000, 1).cap == 1 and Curriculum(30, 1, first=50).cap == 30


def test_a_plan_counts_the_edits_of_a_training() -> None:
    """Sequences are half as long as they may be; lengths grow as fast as they can."""
    assert edits_trained_on(4, most=1, patience=3) == 4
    assert edits_trained_on(3, most=100, patience=3) == 3
    assert edits_trained_on(5, most=100, patience=3) == 3 + 2 * 6
    assert edits_trained_on(10, most=11, patience=10**6, first=11) == 60


def test_a_plan_counts_the_parameters_of_a_block_and_what_it_keeps_of_an_edit() -> None:
    """Of Llama-3's gate, up and down in three layers as published: 1.13 billion, 332 KB an edit."""
    net = network(n_blocks=1)
    matrices = {n: p for n, p in net.blocks[0].named_parameters() if n.endswith("weight")}
    weights = sum(p.numel() for p in matrices.values() if p.dim() == 2)
    assert SIZES.parameters(8) == weights
    (past,) = net(rows(), COUNTS, 0).past
    assert SIZES.past * len(COUNTS) == sum(t.numel() for t in vars(past).values())
    config = DAFNetConfig(modules=("down:29-31",))
    assert 2 * 2 * config.sizes.parameters(4096 + 14336) == pytest.approx(1.13e9, rel=0.01)
    assert 9 * 2 * config.sizes.past * 4 == pytest.approx(332e3, rel=0.01)


def test_an_untrained_network_is_refused() -> None:
    """It goes up its loss: the sign of a step is learned."""
    with pytest.raises(SettingError, match="train_steps.*moves an edit's loss up"):
        DAFNetConfig(modules=("down:0",), train_steps=0)
    editor = made(initial_step=1e-2)
    batch = encoded(editor, random_edits(1))
    before = editor.edit(batch)["edit_loss"]
    assert capture(editor.model, batch.edit, "all", token_weight=1.0).loss > before


def test_a_longer_cap_grows_by_a_quarter_of_itself() -> None:
    curriculum = Curriculum(most=1000, patience=1)
    curriculum.cap = 61
    curriculum.observe(1.0)
    curriculum.observe(2.0)
    assert curriculum.cap == 76


def test_the_curriculum_comes_back_with_the_training_state() -> None:
    straight, resumed = (made(curriculum_patience=1, meta_lr=1e-3) for _ in range(2))
    steps = [[encoded(straight, random_edits(8, seed=s))] for s in range(9)]
    straight.curriculum.best = -math.inf  # no average is better
    for step in steps[:5]:
        straight.train_step(step)
    assert straight.curriculum.cap > 1
    resumed.load_training_state_dict(straight.training_state_dict())
    rest = [[e.train_step(s) for s in steps[5:]] for e in (straight, resumed)]
    assert rest[0] == rest[1]
    a, b = straight.training_state_dict(), resumed.training_state_dict()
    assert (
        all(torch.equal(a[k], b[k]) or bool(a[k].isnan().any()) for k in a) and a.keys() == b.keys()
    )


def test_training_draws_as_many_edits_whatever_the_stream() -> None:
    editor = made(sequence_cap=50)
    assert [editor.trajectory_batches(n, 20) for n in (2, 400)] == [3, 3]
    assert editor.trajectory_batches(10, 50) == 1
    assert editor.trajectory_length(7) == 50


def test_bf16_weights_keep_what_is_too_small_for_them() -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    editable = EditableModel(model, tiny_tokenizer("llama"), two_shapes(model))
    editor = DAFNet(editable, DAFNetConfig(modules=editable.modules, **SMALL))
    editor.edit(encoded(editor, random_edits(3)))
    name = editable.modules[0]
    master = editable.weights.read(name)
    assert master.dtype == torch.float32
    assert torch.equal(editable.weights.parameter(name).detach(), master.to(torch.bfloat16))


def test_settings_that_teach_nothing_are_refused() -> None:
    with pytest.raises(SettingError, match="training would teach no edit"):
        DAFNetConfig(modules=("down:0",), edit_coef=0.0, rephrase_coef=0.0)
    with pytest.raises(SettingError, match="expected official or paper"):
        DAFNetConfig(modules=("down:0",), reference="converged")  # type: ignore[arg-type]
    assert isinstance(made().networks, dict) and isinstance(network(), nn.Module)


def test_the_network_s_gradient_is_clipped_at_a_hundred_and_that_of_the_steps_is_not() -> None:
    """The loss is blown up, as gradients of a network at its start are far below the norm."""
    found: dict[float, list[dict[str, Tensor]]] = {}
    for norm in (DAFNetConfig(modules=("down:0",)).max_grad_norm, math.inf):
        editor = made(max_grad_norm=norm, edit_coef=1e8, rephrase_coef=0.0, loc_coef=0.0)
        caught: list[dict[str, Tensor]] = [{}, {}]

        def catch(*_: Any, editor: DAFNet = editor, caught: Any = caught) -> None:
            for shape, net in editor.networks.items():
                for name, p in net.named_parameters():
                    if p.grad is not None:
                        caught[name == "step"][f"{shape}.{name}"] = p.grad.clone()

        editor.optimiser.step = catch  # type: ignore[method-assign]
        editor.train_step([encoded(editor, random_edits(4))])
        found[norm] = caught
    assert list(found) == [100.0, math.inf]
    (clipped, steps), (whole, same_steps) = found.values()
    total = math.sqrt(sum(float(g.square().sum()) for g in whole.values()))
    assert total > 200
    assert all(torch.allclose(clipped[k], g * 100 / total, rtol=1e-6) for k, g in whole.items())
    assert all(torch.equal(steps[k], g) for k, g in same_steps.items()) and steps


def test_rows_are_normalised_by_all_rows_so_far_in_training_and_by_those_while_editing() -> None:
    """z = (x − mean) / (sample deviation + 1e-8), updated before use, frozen along a stream."""
    editor = made(curriculum_patience=10**6)
    editor.curriculum.cap = 5
    seen: dict[tuple[int, int], list[Tensor]] = {shape: [] for shape in editor.shapes}
    for shape, net in editor.networks.items():

        def note(_: Any, args: tuple[Any, ...], shape: tuple[int, int] = shape) -> None:
            seen[shape].append(args[0].detach())

        net.register_forward_pre_hook(note)
    batches = [encoded(editor, random_edits(5, seed=s)) for s in range(3)]
    so_far: dict[tuple[int, int], list[Tensor]] = {shape: [] for shape in editor.shapes}
    for i, batch in enumerate(batches):
        trains = i < 2
        n = int(editor.train_step([batch])["sequence_length"]) if trains else 5
        if not trains:
            editor.edit(batch)
            editor.model.weights.restore()
        taken = replace(batch.edit, samples=batch.edit.samples[:n])
        captured = capture(editor.model, taken, "all", 1.0)
        for shape, names in editor.shapes.items():
            own = []
            for name in names:
                keys, values = captured.keys[name], captured.values[name]
                alive = [j for j in range(len(keys)) if bool(keys[j].any() and values[j].any())]
                own.append(torch.cat([keys, values], 1)[alive])
            so_far[shape] += own if trains else []
            rows = torch.cat(so_far[shape])
            mean = rows.sum(0) / len(rows)
            deviation = ((rows - mean).square().sum(0) / (len(rows) - 1)).sqrt()
            for one, given in zip(own, seen[shape], strict=True):
                assert torch.allclose(
                    given, (one - mean) / (deviation + 1e-8), rtol=1e-7, atol=1e-9
                )
            seen[shape].clear()

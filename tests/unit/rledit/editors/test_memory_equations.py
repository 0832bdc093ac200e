"""WISE and MEMOIR against plain computations of their equations in float64, prompt by prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rledit.editors.memoir import MEMOIR, MEMOIRConfig
from rledit.editors.side_memories import LONG, SideMemories
from rledit.editors.templated_editor import settled
from rledit.editors.wise import WISE, WISEConfig
from rledit.model import EditableModel
from rledit.records import Edit
from rledit.tokenization import Sample
from tests.unit.helpers.text_edits import equip, random_edits, tiny_tokenizer
from tests.unit.helpers.tiny_models import INNER, double_arithmetic, tiny_model

MODULE = "model.layers.2.mlp.down_proj"
TEMPLATES = ("w01 {}", "w02 w03 {}")
Recipe = Literal["official", "paper"]
RECIPES: tuple[Recipe, ...] = ("official", "paper")
Change = Callable[[Tensor, Tensor], Tensor]
"""What becomes of a linear's inputs (T, d_in) and outputs (T, d_out)."""


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    double_arithmetic(monkeypatch)


class Plain:
    """The tiny model without anything of the project's but how text becomes tokens."""

    def __init__(self) -> None:
        self.model: Any = tiny_model("llama")
        self.linear: Any = self.model.get_submodule(MODULE)
        self.encoder = EditableModel(self.model, tiny_tokenizer("llama"), ("down:2",)).encoder

    @contextmanager
    def changed(self, change: Change) -> Iterator[None]:
        handle = self.linear.register_forward_hook(
            lambda _, args, output: change(args[0][0], output[0])[None]
        )
        try:
            yield
        finally:
            handle.remove()

    def inputs(self, prompt: Tensor) -> Tensor:
        """(T, d_in) inputs of the linear."""
        seen: list[Tensor] = []
        handle = self.linear.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
        with torch.no_grad():
            self.model(input_ids=prompt[None])
        handle.remove()
        return seen[0]

    def samples(self, edit: Edit) -> list[Sample]:
        """Bare first, then behind every template."""
        texts = [edit.prompt, *(t.replace("{}", edit.prompt) for t in TEMPLATES)]
        return [self.encoder.sample(text, edit.target) for text in texts]

    def logprobs(self, sample: Sample) -> Tensor:
        """(answer tokens,) log-probabilities of the answer."""
        logits = self.model(input_ids=sample.input_ids[None]).logits[0]
        asked = logits[sample.answer_positions].log_softmax(-1)
        return asked.gather(1, sample.answer_ids[:, None])[:, 0]

    def mean_loss(self, samples: list[Sample]) -> Tensor:
        return -torch.cat([self.logprobs(s) for s in samples]).mean()


def unrelated_prompts(plain: Plain, number: int) -> list[Tensor]:
    """Those of a draw that `equip` gives an editor."""
    edits = random_edits(4, 1000 + number)
    return [torch.tensor(plain.encoder.prompt_ids(e.locality[0].prompt)) for e in edits]


@pytest.mark.parametrize(
    ("losses", "ends"),
    [
        ([], False),
        ([0.001], False),  # nothing before it
        ([0.001 + 2e-4, 0.001], False),  # still falling
        ([0.001 + 5e-5, 0.001], True),
        ([0.03, 0.03], False),  # still, and not small
        ([0.001, 0.001, 0.03], False),
    ],
)
def test_training_of_an_edit_ends_where_its_loss_is_small_and_stays(
    losses: list[float], ends: bool
) -> None:
    assert settled(losses) is ends


@pytest.mark.parametrize("name", ["wise", "memoir"])
def test_an_edit_takes_no_step_once_its_training_has_ended(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended at the third loss, an edit is what two steps make of it."""
    edits = random_edits(2)
    ended, short = (_made(name, steps) for steps in (50, 2))
    monkeypatch.setattr(f"rledit.editors.{name}.settled", lambda losses: len(losses) == 3)
    ended.edit(ended.encode(edits))
    monkeypatch.setattr(f"rledit.editors.{name}.settled", lambda losses: False)
    short.edit(short.encode(edits))
    found, expected = ended.memory.tensors(), short.memory.tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def _made(name: str, steps: int) -> WISE | MEMOIR:
    return wise(steps=steps) if name == "wise" else memoir(steps=steps)


# WISE


def wise(**settings: Any) -> WISE:
    modules = ("down:2",)
    model = EditableModel(tiny_model("llama"), tiny_tokenizer("llama"), modules)
    chosen = {"contexts": TEMPLATES, "save_freq": 9, "merge_freq": 9, "lr": 0.5, **settings}
    editor = WISE(model, WISEConfig(modules=modules, **chosen))
    equip(editor)
    return editor


def moved(weight: Tensor, difference: Tensor, inputs: Tensor, statistic: str) -> Tensor:
    """Δ of a prompt, token by token."""
    shifts = []
    for x in inputs:
        shift = difference @ x
        if statistic == "activation":
            shift = F.silu(weight @ x + difference @ x) - F.silu(weight @ x)
        shifts.append(torch.linalg.vector_norm(shift))
    most = statistic == "activation" and len(shifts) > 100
    return max(shifts) if most else sum(shifts) / len(shifts)  # type: ignore[return-value,type-var]


def positive_mean(values: list[Tensor]) -> Tensor:
    positive = [value for value in values if value > 0]
    return sum(positive, torch.zeros((), dtype=torch.float64)) / max(1, len(positive))


@pytest.mark.parametrize("recipe", RECIPES)
def test_wise_steps_equal_a_plain_computation_in_float64(recipe: Recipe) -> None:
    """Likelihood, the three hinges, the mask and the decay, over two edits of a shard."""
    hinges = {"alpha": 0.05, "beta": 0.62 if recipe == "official" else 1.0, "gamma": 0.5}
    editor, plain = wise(reference=recipe, steps=4, **hinges), Plain()
    edits = random_edits(2)
    editor.edit(editor.encode(edits))
    weight = plain.linear.weight.detach()
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(weight.shape, generator=generator) < 0.2).double()
    statistic = {"official": "activation", "paper": "shift"}[recipe]
    difference, threshold = torch.zeros_like(weight), float("inf")
    partly = set()  # hinges that some of the samples come under, and others do not
    for number, edit in enumerate(edits):
        samples = plain.samples(edit)
        inside = [plain.inputs(s.prompt) for s in samples]
        outside = plain.inputs(unrelated_prompts(plain, number)[0])
        n_tokens = len(samples[0].answer_ids)
        for _ in range(4):
            own = difference.clone().requires_grad_()
            with plain.changed(lambda x, y, own=own: y + x @ own.T):  # type: ignore[misc]
                loss = plain.mean_loss(samples)
            if recipe == "official":
                loss = loss * n_tokens / (n_tokens + 1)
            delta_in = [moved(weight, own, x, statistic) for x in inside]
            delta_out = moved(weight, own, outside, statistic)
            parts = {
                "alpha": [delta_out - hinges["alpha"]],
                "beta": [hinges["beta"] - delta for delta in delta_in],
                "gamma": [hinges["gamma"] - (delta - delta_out) for delta in delta_in],
            }
            partly |= {k for k, v in parts.items() if 0 < sum(p > 0 for p in v) < len(v)}
            loss = loss + sum(positive_mean(part) for part in parts.values())
            (gradient,) = torch.autograd.grad(loss, own)
            step = mask * gradient
            if recipe == "official":
                step = step + 1e-5 * (weight + difference)
            difference = difference - 0.5 * step
        reached = [float(moved(weight, difference, x, statistic)) for x in inside]
        threshold = min(threshold, sum(reached) / len(reached))
    assert partly & {"beta", "gamma"}
    assert torch.allclose(editor.memory.current, difference, rtol=1e-9, atol=1e-12)
    assert float(difference.abs().max()) > 1e-3
    assert editor.memory.threshold == pytest.approx(threshold, rel=1e-9)


def test_every_hinge_is_a_mean_over_the_samples_that_come_under_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    editor = wise(alpha=2.0, beta=5.0, gamma=0.0)
    deltas = iter([torch.tensor([1.0, 3.0, 7.0]), torch.tensor([4.0])])
    monkeypatch.setattr(SideMemories, "moved", lambda *_: next(deltas))
    none: Any = None
    # [4 − 2] + mean of 5 − 1 and 5 − 3 + mean of 4 − 1 and 4 − 3.
    assert float(editor._hinges(none, none, none)) == 2 + 3 + 2


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_release_takes_the_largest_token_of_long_prompts(recipe: Recipe) -> None:
    memory = wise(reference=recipe).memory
    generator = torch.Generator().manual_seed(0)
    difference = torch.randn(memory.current.shape, generator=generator, dtype=torch.float64)
    prompts = [
        torch.randn(n, INNER, generator=generator, dtype=torch.float64)
        for n in (3, LONG, LONG + 1, LONG + 20)
    ]
    statistic = {"official": "activation", "paper": "shift"}[recipe]
    weight = memory.model.weights.original(memory.module)
    expected = torch.stack([moved(weight, difference, x, statistic) for x in prompts])
    assert LONG == 100
    found = memory.moved(memory.prompt_rows(prompts), difference)
    assert torch.allclose(found, expected, rtol=1e-12)


# MEMOIR


def memoir(**settings: Any) -> MEMOIR:
    modules = ("down:2",)
    model = EditableModel(tiny_model("llama"), tiny_tokenizer("llama"), modules)
    chosen = {"contexts": TEMPLATES, "k": 6, "steps": 4, **settings}
    editor = MEMOIR(model, MEMOIRConfig(modules=modules, **chosen))
    equip(editor)
    return editor


class TopHash:
    """Masks of prompts, by loops; the first token, BOS, left out or not."""

    def __init__(self, plain: Plain, permutation: list[int], first: int) -> None:
        self._plain, self._permutation, self._first = plain, permutation, first
        prompts: dict[tuple[int, ...], Tensor] = {}
        number = 0
        while len(prompts) < 100 and number < 100:
            for prompt in unrelated_prompts(plain, number):
                prompts.setdefault(tuple(prompt.tolist()), prompt)
            number += 1
        means = [self._mean(prompt) for prompt in list(prompts.values())[:100]]
        self._background = sum(means) / len(means)  # type: ignore[arg-type]

    def _mean(self, prompt: Tensor) -> Tensor:
        return self._plain.inputs(prompt)[self._first :].sum(0) / (len(prompt) - self._first)

    def __call__(self, prompt: Tensor, k: int) -> Tensor:
        """(d_in,) of 0 and 1."""
        features: list[float] = (self._mean(prompt) - self._background).abs().tolist()
        largest = sorted(range(INNER), key=lambda i: -features[i])[:k]
        mask = torch.zeros(INNER, dtype=torch.float64)
        for i in largest:
            mask[self._permutation[i]] = 1
        return mask


@pytest.mark.parametrize("recipe", RECIPES)
def test_memoir_equals_a_plain_computation_in_float64(recipe: Recipe) -> None:
    """Masks, clipped steps on the columns of the bare prompt's, and what answers other prompts."""
    editor, plain = memoir(reference=recipe, overlap=0.5), Plain()
    edits = random_edits(3)
    editor.edit(editor.encode(edits))
    tophash = TopHash(plain, editor.memory.permutation.tolist(), int(recipe == "paper"))
    memory = torch.zeros_like(plain.linear.weight)
    masks: list[Tensor] = []
    norms: list[float] = []
    for edit in edits:
        samples = plain.samples(edit)
        mask = tophash(samples[0].prompt, 6)
        for _ in range(4):
            own = memory.clone().requires_grad_()
            with plain.changed(lambda x, y, m=mask, w=own: y + (x * m) @ w.T):  # type: ignore[misc]
                loss = plain.mean_loss(samples)
            (gradient,) = torch.autograd.grad(loss, own)
            norms.append(float(gradient.norm()))
            gradient = gradient * min(1.0, 1.0 / norms[-1])
            if recipe == "official":
                gradient = gradient + 1e-5 * memory
            memory = memory - gradient
        masks.append(mask)
    assert min(norms) < 1 < max(norms)  # clipped, and not
    assert torch.equal(editor.memory.masks.double(), torch.stack(masks))
    assert torch.allclose(editor.memory.weight, memory, rtol=1e-9, atol=1e-12)
    # Prompts that share a part of a mask are answered through all of it, at every position.
    answered, own_mask_differs = 0, 0
    for edit in [*edits, *random_edits(20, seed=3)]:
        (sample,) = editor.encode([edit]).edit.samples
        mask = tophash(sample.prompt, 6)
        shares = [float((mask * one).sum()) / 6 for one in masks]
        best = max(range(3), key=lambda i: (shares[i], i))  # of equal ones the newest
        used = masks[best] if shares[best] >= 0.5 else torch.zeros(INNER, dtype=torch.float64)
        with plain.changed(lambda x, y, m=used: y + (x * m) @ memory.T):  # type: ignore[misc]
            expected = plain.logprobs(sample)
        (micro_batch,) = editor.model.micro_batches([sample])
        logits = editor.model.prefix_cache.logits(micro_batch).log_softmax(-1)
        found = logits.gather(1, sample.answer_ids[:, None])[:, 0]
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
        answered += bool(used.any())
        own_mask_differs += bool(used.any()) and not torch.equal(used, mask)
    assert 3 < answered < 23 and own_mask_differs

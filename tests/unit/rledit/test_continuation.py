"""Texts that are written side by side are those that each prompt has alone, in fewer passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from rledit import continuation
from rledit.decoding import decode
from rledit.model import EditableModel, Execution
from tests.unit.helpers.text_edits import WORDS, tiny_tokenizer
from tests.unit.helpers.tiny_families import LISTED, RARER, UNLIKE
from tests.unit.helpers.tiny_models import tiny_model

FAMILIES = [
    "llama",
    "mistral",  # a window of four tokens
    "gptj",
    *(
        pytest.param(name, marks=pytest.mark.long)
        for name in ("llama3.1", "gemma2", "qwen2", *LISTED, *UNLIKE, *RARER)
    ),
]
LENGTHS = (1, 4, 2, 7, 4, 4, 3, 9, 2, 5)
LIMITS = (6, 12, 1, 9, 3, 12, 0, 8, 12, 12)


def prompts(lengths: Sequence[int] = LENGTHS) -> list[str]:
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randint(0, len(WORDS), (n,), generator=generator).tolist() for n in lengths]
    return [" ".join(WORDS[i] for i in row) for row in drawn]


def opened(family: str, tokens: int = 320) -> EditableModel:
    return EditableModel(
        tiny_model(family), tiny_tokenizer(family), ("down:2",), Execution(token_budget=tokens)
    )


def stop(token: int) -> bool:
    return token % 5 == 0


class Passes:
    """Rows and tokens of a model's passes."""

    def __init__(self, model: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, int]] = []
        whole = model.model.forward

        def forward(**named: Any) -> Any:
            self.shapes.append(tuple(named["input_ids"].shape))  # type: ignore[arg-type]
            return whole(**named)

        monkeypatch.setattr(model.model, "forward", forward)

    @property
    def steps(self) -> list[int]:
        """Rows of the passes over one token of each text."""
        return [rows for rows, tokens in self.shapes if tokens == 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_those_that_each_prompt_has_alone(family: str) -> None:
    model = opened(family)
    together = decode(model, prompts(), LIMITS, stop)
    alone = [decode(model, [p], n, stop)[0] for p, n in zip(prompts(), LIMITS, strict=True)]
    assert together == alone
    assert max(map(len, together)) > 2


def test_texts_of_one_length_share_a_pass_whatever_their_prompts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = opened("llama")
    passes = Passes(model, monkeypatch)
    decode(model, prompts(), 12)
    lengths = {len(model.encoder.prompt_ids(p)) for p in prompts()}
    n_prompts = len(lengths)
    n_steps = len(passes.shapes) - n_prompts
    assert n_steps == max(lengths) + 12 - min(lengths) - 1  # not eleven for each length
    assert max(passes.steps) > 6


def test_a_text_that_has_ended_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened("llama")
    passes = Passes(model, monkeypatch)
    written = decode(model, prompts((4,) * 10), 12, stop)
    read = [len(text) if len(text) < 12 else 11 for text in written]  # the last one is not read
    assert sorted(read)[0] < sorted(read)[-1]
    assert sum(passes.steps) == sum(read)


def test_passes_are_bounded_by_tokens_and_so_is_what_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = prompts((4, 4, 4, 4, 4, 6, 6, 6, 6, 6, 6, 6))
    expected = decode(opened("llama"), asked, 10)
    model = opened("llama", tokens=16)
    monkeypatch.setitem(continuation.KEPT_TOKENS, "cpu", 70)
    passes = Passes(model, monkeypatch)
    most: list[int] = []
    whole = continuation.Continuation._step

    def step(self: Any, stream: Any) -> None:
        whole(self, stream)
        most.append(stream.state["past_key_values"].layers[0].keys.shape[0])

    monkeypatch.setattr(continuation.Continuation, "_step", step)
    assert decode(model, asked, 10) == expected
    assert max(rows * tokens for rows, tokens in passes.shapes) <= 16
    assert max(most) * (max(len(model.encoder.prompt_ids(p)) for p in asked) + 10) <= 70 + 17


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_cache_that_cannot_be_put_together_is_left_apart(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of layers with a state of another kind."""
    expected = decode(opened(family), prompts(), LIMITS, stop)
    monkeypatch.setattr(continuation, "_is_plain", lambda _: False)
    model = opened(family)
    passes = Passes(model, monkeypatch)
    assert decode(model, prompts(), LIMITS, stop) == expected
    assert max(passes.steps) == 3  # the prompts of the commonest length


def test_each_text_is_drawn_at_a_step_of_its_own() -> None:
    model = opened("llama")
    draws = torch.rand(len(LENGTHS), 12, generator=torch.Generator().manual_seed(0))

    def chosen(places: Sequence[int]) -> list[list[int]]:
        def choose(logits: Tensor, among: Sequence[int], steps: Sequence[int]) -> Tensor:
            drawn = draws[[places[i] for i in among], list(steps)].to(logits)[:, None]
            return (logits.softmax(-1).cumsum(-1) < drawn).sum(-1).clamp_max(logits.shape[-1] - 1)

        return decode(model, [prompts()[i] for i in places], 12, choose=choose)

    assert chosen(range(len(LENGTHS))) == [chosen([i])[0] for i in range(len(LENGTHS))]

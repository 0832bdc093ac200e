"""Scoring written from the definitions alone: one prompt at a time, a plain forward, no padding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from rledit.records import Edit

Scores = dict[str, tuple[float | None, ...]]
NAMES = ("efficacy", "generalization", "specificity", "specificity_self")


@dataclass(frozen=True, kw_only=True)
class PlainScorer:
    """Scores edits with a model, an unedited copy of it, and a tokenizer."""

    model: nn.Module
    unedited: nn.Module
    tokenizer: Any
    bos: bool
    longest: int

    def prompt(self, text: str) -> list[int]:
        ids = list(self.tokenizer(text.rstrip(), add_special_tokens=False)["input_ids"])
        return [self.tokenizer.bos_token_id, *ids] if self.bos else ids

    def answer(self, text: str) -> list[int]:
        return list(self.tokenizer(" " + text.strip(), add_special_tokens=False)["input_ids"])

    @torch.no_grad()
    def logits(self, model: nn.Module, prompt: str, answer: list[int]) -> Tensor:
        """(answer tokens, vocabulary)"""
        ids = self.prompt(prompt)
        out = model(input_ids=torch.tensor([ids + answer]), use_cache=False).logits[0]
        return out[len(ids) - 1 : -1]

    def token_accuracy(self, prompt: str, answer: str) -> float:
        want = self.answer(answer)
        got = self.logits(self.model, prompt, want).argmax(-1).tolist()
        return sum(a == b for a, b in zip(want, got, strict=True)) / len(want)

    def nll(self, model: nn.Module, prompt: str, answer: str) -> float:
        want = self.answer(answer)
        logits = self.logits(model, prompt, want)
        return -float(logits.log_softmax(-1)[range(len(want)), want].mean())

    def preferred(self, model: nn.Module, prompt: str, answer: str, rival: str) -> list[bool]:
        new, old = self.answer(answer), self.answer(rival)
        rows = self.logits(model, prompt, new)
        return [bool(row[a] > row[b]) for row, a, b in zip(rows, new, old, strict=False)]

    @torch.no_grad()
    def written(self, model: nn.Module, prompt: str, most: int = 30) -> list[int]:
        ids = self.prompt(prompt)
        start = len(ids)
        while len(ids) < min(start + most, self.longest):
            token = int(
                model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()
            )
            if token == self.tokenizer.eos_token_id:
                break
            ids.append(token)
        return ids[start:]

    def text(self, model: nn.Module, prompt: str) -> str:
        """Up to the end of a line."""
        ids = self.written(model, prompt)
        breaks = [i for i, token in enumerate(ids) if "\n" in self.tokenizer.decode([token])]
        kept = ids[: breaks[0]] if breaks else ids
        return bare(self.tokenizer.decode(kept, skip_special_tokens=True))

    def score(self, edit: Edit) -> Scores:
        """Percent under every protocol, in the order of `NAMES`, all probes."""
        text = cache(self.text)  # two protocols judge the same one
        asked = [
            [(edit.prompt, edit.target, edit.old_target)],
            [(prompt, edit.target, edit.old_target) for prompt in edit.rephrases],
            [(probe.prompt, probe.answer, edit.target) for probe in edit.locality],
        ]
        one: dict[str, Any] = {
            "token_accuracy": lambda p, a, r: self.token_accuracy(p, a),
            "exact_match": lambda p, a, r: float(self.token_accuracy(p, a) == 1),
            "choice": self._choice,
            "choice_official": self._official,
            "generation": lambda p, a, r: float(text(self.model, p) == bare(a)),
            "generation_contains": lambda p, a, r: holds(text(self.model, p), bare(a)),
        }
        same: dict[str, Any] = {
            "token_accuracy": self._same_tokens,
            "exact_match": lambda p, a, r: float(self._same_tokens(p, a, r) == 1),
            "choice": self._same_choice,
            "choice_official": self._same_preference,
            "generation": lambda p, a, r: float(text(self.model, p) == text(self.unedited, p)),
            "generation_contains": lambda p, a, r: holds(
                text(self.model, p), text(self.unedited, p)
            ),
        }
        return {
            name: (
                *(_percent([one[name](*q) for q in kind]) for kind in asked),
                _percent([same[name](*q) for q in asked[2]]),
            )
            for name in one
        }

    def _choice(self, prompt: str, answer: str, rival: str | None) -> float | None:
        if rival is None or rival == answer:
            return None
        return float(self.nll(self.model, prompt, answer) < self.nll(self.model, prompt, rival))

    def _official(self, prompt: str, answer: str, rival: str | None) -> float | None:
        if rival is None or rival == answer:
            return None
        wins = self.preferred(self.model, prompt, answer, rival)
        return sum(wins) / len(wins)

    def _same_tokens(self, prompt: str, answer: str, _: str | None) -> float:
        want = self.answer(answer)
        now, before = (self.logits(m, prompt, want) for m in (self.model, self.unedited))
        return float((now.argmax(-1) == before.argmax(-1)).double().mean())

    def _same_choice(self, prompt: str, answer: str, rival: str | None) -> float | None:
        if rival is None or rival == answer:
            return None
        now, before = (
            self.nll(m, prompt, answer) < self.nll(m, prompt, rival)
            for m in (self.model, self.unedited)
        )
        return float(now == before)

    def _same_preference(self, prompt: str, answer: str, rival: str | None) -> float | None:
        if rival is None or rival == answer:
            return None
        now, before = (
            self.preferred(m, prompt, answer, rival) for m in (self.model, self.unedited)
        )
        return sum(a == b for a, b in zip(now, before, strict=True)) / len(now)


def bare(text: str) -> str:
    """Lower case, without ASCII punctuation and articles."""
    kept = "".join(c for c in text.lower() if not c.isascii() or c.isalnum() or c.isspace())
    return " ".join(w for w in kept.split() if w not in ("a", "an", "the")) or text.strip().lower()


def holds(text: str, answer: str) -> float:
    """Whether all words of an answer stand in a text, one behind the other."""
    words, wanted = text.split(" "), answer.split(" ")
    starts = range(len(words) - len(wanted) + 1)
    return float(any(words[i : i + len(wanted)] == wanted for i in starts))


def _percent(values: list[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return 100 * sum(defined) / len(defined) if defined else None

"""Collects a model's greedy answers to the prompts of some edits, for the lake's table `answers`.

The prompts are those that the protocols score, and the questions that follow from an edit. An
answer is written from the prompt alone and ends at an end-of-sequence token, a line break, or
`MORE_TOKENS` more tokens than its target has; blank lines before it are passed over, as models that
were not taught to answer at once put them behind a question. Nothing here changes a score: no
random number is drawn from torch, and the model's prefix cache is not touched.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from rledit.decoding import Line, line_of, write_lines
from rledit.finite import NonFiniteError
from rledit.lazy_torch import F, torch
from rledit.model import SINGLE_PASS_TOKENS, EditableModel
from rledit.protocols import generation
from rledit.ranks import shard
from rledit.records import Consequence, Edit
from rledit.scoring import Probes, Question, questions
from rledit.superseded import Facts, Standing
from rledit.tokenization import Sample, TokenizationError

MORE_TOKENS = 10

Kind = Literal["edit", "rephrase", "locality", "portability"]
"""What a prompt is to its edit."""
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model says behind one prompt of an edit.

    Attributes:
        edit_index: Place of the edit in the stream.
        probe: What the prompt is to the edit.
        probe_index: Which of the edit's prompts of that kind that were asked.
        prompt: The prompt as the data has it, without an instruction that it may be asked with.
        target: The answer that should be there: the edit's target, of a locality prompt that of the
            dataset, of a consequence its preferred wording.
        answer: What the model writes; None where it gives no numbers behind the prompt.
        tokens: The same as tokens of the model.
        target_logprob: Log-probability of the target behind the prompt, teacher-forced, the sum
            over its tokens in nats; None where it is not finite.
        is_target: Whether the answer is the target, compared as in protocol `generation`; of a
            consequence, any of its wordings.
        has_target: Whether it contains the target as whole words.
        superseded: A later edit of those made says something else of the question, or, of a
            locality prompt, anything at all.
    """

    edit_index: int
    probe: Kind
    probe_index: int
    prompt: str
    target: str
    answer: str | None
    tokens: tuple[int, ...]
    target_logprob: float | None
    is_target: bool
    has_target: bool
    superseded: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class _Asked:
    """A question to the model; without a sample where the pair breaks the token contract."""

    edit_index: int
    probe: Kind
    probe_index: int
    prompt: str
    asked: str
    wordings: tuple[str, ...]
    sample: Sample | None
    consequence: Consequence | None = None

    @property
    def most_tokens(self) -> int:
        """Tokens that its answer may have."""
        return 0 if self.sample is None else len(self.sample.answer_ids) + MORE_TOKENS


def sampled(n_edits: int, wanted: int, seed: int) -> list[int]:
    """Places of a sample of a stream's edits, ascending: one by lot of each of equal parts of it.

    So early, middle and late edits are among them, and the same ones whatever edits them.

    Args:
        n_edits: Edits of the stream.
        wanted: Edits in the sample; all, where there are no more.
        seed: Seed of the lots.
    """
    count = min(n_edits, wanted)
    lots = random.Random(f"answers/{seed}/{n_edits}/{count}")
    ends = [i * n_edits // count for i in range(count)] + [n_edits] if count else []
    return [lots.randrange(first, end) for first, end in pairwise(ends)]


class Answers:
    """Asks a model for its answers to prompts of some edits of a stream.

    Args:
        model: The model.
        edits: All edits of the stream, in order.
        sample: Places of those that are asked.
        probes: Which rephrases and locality prompts of an edit are asked. Of the questions that
            follow from it, the first of each kind, or under `all` every one.
        seed: Seed of the lots, where probes are drawn.

    Raises:
        TokenizationError: A prompt that is scored breaks the token contract.
    """

    def __init__(
        self,
        model: EditableModel,
        edits: Sequence[Edit],
        sample: Sequence[int],
        probes: Probes = "first",
        seed: int = 0,
    ) -> None:
        self._model = model
        self._facts = Facts(edits)
        self._asked = [
            one for i in sample for one in _questions_of(model, i, edits[i], probes, seed)
        ]

    def ask(self, n_edits: int) -> list[Answer]:
        """The answers on the current weights.

        Args:
            n_edits: Edits made. Those of the sample that are among them are asked; 0: all, as
                before the first edit.
        """
        standing = Standing(self._facts, n_edits)
        asked = [one for one in self._asked if one.edit_index < n_edits or not n_edits]
        lines = self._written(asked)
        likely = iter(
            target_logprobs(self._model, [q.sample for q in asked if q.sample is not None])
        )
        return [
            self._answer(
                one, line, None if one.sample is None else next(likely), _replaced(standing, one)
            )
            for one, line in zip(asked, lines, strict=True)
        ]

    def _answer(
        self, one: _Asked, line: Line | None, logprob: float | None, superseded: bool
    ) -> Answer:
        text = None if line is None else line.text
        said = text or ""
        return Answer(
            edit_index=one.edit_index,
            probe=one.probe,
            probe_index=one.probe_index,
            prompt=one.prompt,
            target=one.wordings[0],
            answer=text,
            tokens=() if line is None else line.tokens,
            target_logprob=logprob,
            is_target=any(is_answer(said, wording) for wording in one.wordings),
            has_target=any(generation.within(wording, said) > 0 for wording in one.wordings),
            superseded=superseded,
        )

    def _written(self, asked: Sequence[_Asked]) -> list[Line | None]:
        """Each question's line; of equal prompts, one is written, and cut to what each may have."""
        longest: dict[str, int] = {}
        for one in asked:
            if one.sample is not None:
                longest[one.asked] = max(longest.get(one.asked, 0), one.most_tokens)
        lines = _lines(self._model, longest)
        return [self._cut(lines.get(one.asked), one.most_tokens) for one in asked]

    def _cut(self, line: Line | None, most: int) -> Line | None:
        if line is None or most == 0:
            return None
        if len(line.tokens) <= most:
            return line
        tokens = line.tokens[:most]
        return Line(tokens=tokens, text=line_of(self._model, tokens))


def is_answer(text: str, answer: str) -> bool:
    """Whether a text is an answer, case, punctuation and articles aside."""
    return generation.normalised(text) == generation.normalised(answer)


@torch.no_grad()
def target_logprobs(model: EditableModel, samples: Sequence[Sample]) -> list[float | None]:
    """Log-probability of each sample's answer, summed over its tokens, in nats.

    None where it is not finite. Several ranks share the samples out; every rank gets all values.
    """
    found = torch.zeros(len(samples), dtype=torch.float64)
    passes = model.prefix_cache
    if passes.store is None:
        # One of its own that keeps nothing: what the model's holds, scores depend on to the last
        # bit, unless a store holds it.
        passes = passes.another(cache_bytes=0)
    own = shard(samples, model.ranks)
    for micro_batch in model.own_micro_batches(samples, own, SINGLE_PASS_TOKENS):
        logits = passes.logits(micro_batch).to(model.compute_dtype)
        labels = micro_batch.labels.to(logits.device)
        losses = F.cross_entropy(logits, labels, reduction="none").double().cpu()
        found.index_add_(0, micro_batch.row_sample, -losses)
    if model.ranks.size > 1 and samples:
        model.ranks.all_reduce_(found)
    fine = found.isfinite().tolist()
    return [value if known else None for value, known in zip(found.tolist(), fine, strict=True)]


def _questions_of(
    model: EditableModel, i: int, edit: Edit, probes: Probes, seed: int
) -> Iterator[_Asked]:
    """The questions of one edit, in the order of `KINDS`."""
    scored = questions(model.encoder, edit, (), probes, seed)
    groups: tuple[tuple[Kind, Sequence[Question]], ...] = (
        ("edit", (scored.edit,)),
        ("rephrase", scored.equivalent),
        ("locality", scored.unrelated),
    )
    for kind, own in groups:
        for n, question in enumerate(own):
            yield _Asked(
                edit_index=i,
                probe=kind,
                probe_index=n,
                prompt=question.prompt,
                asked=question.asked,
                wordings=(question.answer,),
                sample=question.sample,
            )
    for n, item in enumerate(_consequences(edit, probes)):
        asked = model.encoder.asked(item.prompt)
        yield _Asked(
            edit_index=i,
            probe="portability",
            probe_index=n,
            prompt=item.prompt,
            asked=asked,
            wordings=item.answers,
            sample=_encoded(model, asked, item.answers[0]),
            consequence=item,
        )


def _consequences(edit: Edit, probes: Probes) -> list[Consequence]:
    """The first of each kind, or all."""
    if probes == "all":
        return list(edit.consequences)
    first: dict[str, Consequence] = {}
    for item in edit.consequences:
        first.setdefault(item.kind, item)
    return list(first.values())


def _encoded(model: EditableModel, prompt: str, answer: str) -> Sample | None:
    """A question that nothing else asks of the model; None where it breaks the token contract."""
    try:
        return model.encoder.sample(prompt, answer)
    except TokenizationError:
        return None


def _lines(model: EditableModel, limits: dict[str, int]) -> dict[str, Line | None]:
    """Prompt → what is written behind it; None where the model gives no numbers there."""
    prompts = list(limits)
    try:
        return dict(zip(prompts, _write(model, prompts, list(limits.values())), strict=True))
    except NonFiniteError:
        found: dict[str, Line | None] = {}
        for prompt, most in limits.items():
            try:
                (found[prompt],) = _write(model, [prompt], [most])
            except NonFiniteError:
                found[prompt] = None
        return found


def _write(model: EditableModel, prompts: Sequence[str], limits: Sequence[int]) -> list[Line]:
    return write_lines(model, prompts, limits, blank_first=True)


def _replaced(standing: Standing, one: _Asked) -> bool:
    """Whether the question has another answer after the edits made."""
    if one.consequence is not None:
        return standing.consequence(one.edit_index, one.consequence)
    if one.probe == "locality":
        return standing.locality(one.prompt)
    if one.probe == "rephrase":
        return standing.rephrase(one.edit_index, one.prompt) or standing.edit(one.edit_index)
    return standing.edit(one.edit_index)

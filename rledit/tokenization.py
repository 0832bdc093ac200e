"""Prompt + answer → token ids, shifted labels and loss groups.

The contract, checked for every pair: exactly one space before the answer where its script has
spaces, no BOS inside it, BOS on the prompt where the tokenizer itself writes it, and no text taken
for a control token that it spells. Inside a chat template the answer begins the assistant's turn,
with no space of its own, as chat evaluation has it; a BOS that the template writes is the only one.
Samples carry no padding, so nothing downstream can depend on it; loss groups are explicit, so the
loss does not depend on the physical batch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from rledit.bos import before_text, written_around
from rledit.chat import ChatTemplate, PromptStyle, Rendered
from rledit.control_tokens import TextEncoder, TokenizationError, Tokens, Turn
from rledit.instructions import Instruction
from rledit.lazy_torch import Tensor, torch
from rledit.records import Edit, Probe, has_probe
from rledit.writing_systems import AnswerSpace, space_between

IGNORED = -100

Order = Literal["stream", "longest_first"]
"""Order of a batch's samples: as the stream has them, or by length with ties in stream order."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One prompt with its answer as tokens, unpadded.

    Attributes:
        input_ids: (T,) int64, prompt followed by all answer tokens but the last.
        labels: (T,) int64, the token predicted at each position, -100 off the answer.
    """

    input_ids: Tensor
    labels: Tensor

    @classmethod
    def of(cls, prompt: Sequence[int], answer: Sequence[int]) -> Sample:
        """The tokens of a prompt and those behind it, at least one of each."""
        ids = torch.tensor([*prompt, *answer[:-1]], dtype=torch.long)
        labels = torch.full_like(ids, IGNORED)
        labels[len(prompt) - 1 :] = torch.tensor(answer, dtype=torch.long)
        return cls(ids, labels)

    @cached_property
    def key(self) -> bytes:
        """Identity of the input tokens: equal inputs have equal hidden states."""
        return self.input_ids.numpy().tobytes()

    @cached_property
    def answer_positions(self) -> Tensor:
        """(a,) int64, the positions that predict answer tokens."""
        return (self.labels != IGNORED).nonzero().flatten()

    @cached_property
    def answer_ids(self) -> Tensor:
        """(a,) int64, the answer's tokens."""
        return self.labels[self.labels != IGNORED]

    @property
    def prompt(self) -> Tensor:
        """(p,) int64, the tokens before the answer; all where there is none."""
        positions = self.answer_positions
        return self.input_ids[: int(positions[0]) + 1] if len(positions) else self.input_ids

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, eq=False)
class Phase:
    """The samples of one prompt kind of one batch, in loss groups of consecutive samples.

    The loss of a phase is the sum over its groups of the token-mean cross-entropy of the group.
    """

    samples: tuple[Sample, ...]
    group_size: int

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def group_of(self) -> Tensor:
        """(samples,) int64, loss group of each sample."""
        return torch.arange(len(self.samples)) // self.group_size

    @cached_property
    def weights(self) -> Tensor:
        """(samples,) float64, the weight of each answer token: 1 / (answer tokens in its group)."""
        counts = torch.tensor([len(s.answer_ids) for s in self.samples], dtype=torch.float64)
        n_groups = -(-len(self.samples) // self.group_size)
        totals = torch.zeros(n_groups, dtype=torch.float64)
        totals.index_add_(0, self.group_of, counts)
        return 1.0 / totals[self.group_of]

    @property
    def n_complete_groups(self) -> int:
        """Loss groups that are full; at most one, the last, is not."""
        return len(self.samples) // self.group_size


@dataclass(frozen=True, eq=False)
class EditBatch:
    """One batch of the stream: the edits and their three kinds of tokenised prompts.

    Attributes:
        edit: A prompt of every edit.
        equivalent: A rephrase of those edits that have one.
        unrelated: A locality prompt of those edits that have one.
        edits: The edits as text; empty where the batch was made of tokens.
    """

    edit: Phase
    equivalent: Phase
    unrelated: Phase
    edits: tuple[Edit, ...] = field(default=())

    def require(self, probes: Collection[Probe]) -> None:
        """Check that every edit of the batch brings what somebody learns from.

        Raises:
            TokenizationError: One does not; names file and row.
        """
        for probe in probes:
            phase = self.equivalent if probe == "rephrase" else self.unrelated
            if len(phase) < len(self.edit):
                lacking = next((e for e in self.edits if not has_probe(e, probe)), None)
                where = "a batch" if lacking is None else lacking.source or lacking.edit_id
                raise TokenizationError(
                    f"{where}: the edit has no {probe}, and the editor learns from one; take "
                    "training data that has it"
                )


class Encoder:
    """Turns prompt / answer text into samples under the token contract of one tokenizer.

    Args:
        tokenizer: A Hugging Face tokenizer.
        max_length: Longest input the model takes, in tokens (None: unlimited).
        style: How prompts are put; running text is always bare.
        bos: Whether texts begin with BOS; None: as the tokenizer itself has it.
        answer_space: Whether a space stands before an answer; `auto`: as its script has it, and
            none inside a chat template.
        instruction: What edits' own prompts and their rephrases are asked with, see `asked`; all
            other text is as it is.

    Raises:
        TokenizationError: The tokenizer lacks a BOS token, or a chat template, that is asked for,
            or its chat template cannot be used.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_length: int | None = None,
        style: PromptStyle = "bare",
        bos: bool | None = None,
        answer_space: AnswerSpace = "auto",
        instruction: Instruction | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.instruction = instruction
        self.max_length = max_length
        self.style = style
        self.answer_space = answer_space
        self.lead = before_text(tokenizer, bos)
        self._chat = ChatTemplate(tokenizer) if style == "chat" else None
        self._text = TextEncoder(tokenizer)
        if bos is False and self._chat is not None and self._chat.writes_bos:
            raise TokenizationError(
                "bos: false, but the chat template writes BOS itself; leave `bos` out of the "
                "model's entry, or take prompt_style plain"
            )

    def instructed(self, instruction: Instruction | None) -> Encoder:
        """The same encoder with another instruction, or none."""
        other = copy(self)
        other.instruction = instruction
        return other

    def asked(self, prompt: str) -> str:
        """The text by which an edit's prompt, a rephrase or a consequence is asked.

        Prompts that an edit must leave alone are asked as they are.
        """
        return prompt if self.instruction is None else self.instruction.around(prompt)

    def answer_lead(self, prompt: str, answer: str) -> str:
        """What stands between a rendered prompt and its answer: a space, or nothing."""
        if self.answer_space != "auto":
            return " " if self.answer_space == "always" else ""
        return " " if self._chat is None and space_between(prompt, answer) else ""

    def rendered(self, prompt: str) -> Rendered:
        """The text a model sees for a prompt, without a BOS that the tokenizer adds.

        Raises:
            TokenizationError: The chat template does not hold the prompt verbatim.
        """
        if self._chat is None:
            return Rendered(prompt.rstrip(), 0)
        return self._chat.render(prompt)

    @cached_property
    def prompting(self) -> dict[str, Any]:
        """How prompts really reach the model, for the record.

        ``template``: the style; ``bos``: whether they begin with BOS, whoever puts it there; in a
        chat ``text``: what is written around a prompt, which stands there as ``{}``, and
        ``without_thinking``: by which variables of the template, where it has some;
        ``answer_space``: where it was set; ``instruction``: what stands around an edit's prompts,
        where the method has one.
        """
        begins = bool(self.lead) or (self._chat is not None and self._chat.writes_bos)
        found: dict[str, Any] = {"template": self.style, "bos": begins}
        if self._chat is not None:
            found["text"] = self.rendered("{}").text
            if self._chat.without_thinking:
                found["without_thinking"] = dict(self._chat.without_thinking)
        if self.answer_space != "auto":
            found["answer_space"] = self.answer_space
        if self.instruction is not None:
            found["instruction"] = self.instruction.around("{}")
        return found

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt as the model is asked it, BOS included where it begins with one.

        Raises:
            TokenizationError: It spells a control token, and the tokenizer has no tokens for that.
        """
        return self._with_bos(self._turn(prompt).ids)

    def prompt_tokens(self, prompt: str) -> Tokens:
        """A rendered prompt as tokens with their places in it, without BOS.

        Raises:
            TokenizationError: See `prompt_ids`.
        """
        return self._turn(prompt, spans=True)

    def text_ids(self, text: str) -> list[int]:
        """Token ids of running text, which is never put into a chat template, with its BOS.

        Raises:
            TokenizationError: See `prompt_ids`.
        """
        return self._with_bos(self.plain_ids(text.rstrip()))

    def plain_ids(self, text: str) -> list[int]:
        """Token ids of a text alone: nothing before it, no control token in it.

        Raises:
            TokenizationError: See `prompt_ids`.
        """
        return self._text.as_text(text).ids

    def with_special_tokens(self, text: str) -> list[int]:
        """Token ids of a text as the tokenizer writes it alone, its BOS and EOS around it.

        Raises:
            TokenizationError: See `prompt_ids`.
        """
        if not self._text.spelled(text):
            return list(self.tokenizer(text)["input_ids"])
        before, behind = written_around(self.tokenizer)
        return [*before, *self.plain_ids(text), *behind]

    def bos_before(self, ids: Sequence[int]) -> list[int]:
        """The BOS that a text of these tokens still lacks, as a list of one or none."""
        begun = tuple(ids[: len(self.lead)]) == self.lead
        return [] if begun else list(self.lead)

    def _with_bos(self, ids: list[int]) -> list[int]:
        return [*self.bos_before(ids), *ids]

    def _turn(self, prompt: str, answer: str = "", spans: bool = False) -> Tokens:
        """A rendered prompt with what stands behind it."""
        shown = self.rendered(prompt)
        if self._chat is None:
            return self._text.as_text(f"{shown.text}{answer}", spans)
        turn = Turn(self._chat.head, prompt.strip(), self._chat.tail, answer)
        return self._text.as_turn(turn, spans)

    def answer_ids(self, prompt: str, answer: str) -> list[int]:
        """Token ids of an answer as they continue the prompt, its space among them if it has one.

        Raises:
            TokenizationError: The answer is blank, or merges with the last token before it.
        """
        return self._answer_ids(prompt, answer, self._turn(prompt).ids)

    def _answer_ids(self, prompt: str, answer: str, alone: list[int]) -> list[int]:
        """As `answer_ids`, of a prompt whose rendered tokens are known."""
        text = answer.strip()
        if not text:
            raise TokenizationError(f"blank answer for the prompt {prompt!r}")
        lead = self.answer_lead(prompt, text)
        both = self._turn(prompt, f"{lead}{text}").ids
        ids = both[len(alone) :] if both[: len(alone)] == alone else self._apart(prompt, lead, text)
        if not ids:
            raise TokenizationError(f"the answer {text!r} of {prompt!r} has no tokens")
        if self.tokenizer.unk_token_id is not None and self.tokenizer.unk_token_id in ids:
            raise TokenizationError(
                f"the tokenizer has no token for a part of the answer {text!r} of {prompt!r}; "
                "another model or another target is needed"
            )
        return ids

    def _apart(self, prompt: str, lead: str, text: str) -> list[int]:
        """Tokens of an answer that no space sets off and that would merge with the prompt's last.

        They are those that follow a line break, where nothing merges: a model that goes on from the
        prompt's own tokens can write no others.

        Raises:
            TokenizationError: A space or a template stands before the answer, or it merges anyway.
        """
        if self._chat is None and not lead:
            alone, both = self.plain_ids("\n"), self.plain_ids(f"\n{text}")
            if both[: len(alone)] == alone:
                return both[len(alone) :]
        raise TokenizationError(self._merges(prompt, text))

    def _merges(self, prompt: str, answer: str) -> str:
        if self._chat is None:
            return (
                f"the answer {answer!r} merges with the end of the prompt {prompt!r} into one "
                "token; end the prompt on a complete word"
            )
        return (
            f"the answer {answer!r} merges into one token with the end of the chat template, "
            f"{self._chat.tail!r}; take prompt_style plain"
        )

    def sample(self, prompt: str, answer: str, where: str = "") -> Sample:
        """Encode one prompt with its answer; arguments and errors are those of `pair_ids`."""
        return Sample.of(*self.pair_ids(prompt, answer, where))

    def pair_ids(self, prompt: str, answer: str, where: str = "") -> tuple[list[int], list[int]]:
        """Token ids of a prompt, and of the answer behind it.

        Args:
            prompt: The prompt, without the answer.
            answer: The answer; white space around it is replaced by `answer_lead`.
            where: File and row, for error messages.

        Raises:
            TokenizationError: The pair breaks the contract, or leaves no room for the answer.
        """
        try:
            alone = self._turn(prompt).ids
            head, tail = self._with_bos(alone), self._answer_ids(prompt, answer, alone)
        except TokenizationError as error:
            raise TokenizationError(f"{where}: {error}" if where else str(error)) from None
        if not head:
            raise TokenizationError(f"{where}: the prompt is empty, nothing predicts the answer")
        if self.max_length is not None and len(head) + len(tail) - 1 > self.max_length:
            raise TokenizationError(
                f"{where + ': ' if where else ''}prompt ({len(head)} tokens) and answer "
                f"({len(tail)}) exceed the model's {self.max_length} positions; shorten the prompt"
            )
        return head, tail

    def batch(self, edits: Sequence[Edit], group_size: int, order: Order = "stream") -> EditBatch:
        """Tokenise a batch of edits: edit, first rephrase, first locality prompt of each.

        Args:
            edits: The edits. What one of them lacks is left out of its phase, which may be empty.
            group_size: Samples per loss group.
            order: Order of the samples of each prompt kind, on its own. Sorted by length, the three
                kinds no longer align row by row.
        """
        if not edits:
            raise ValueError("a batch needs at least one edit")
        kinds: tuple[list[Sample], ...] = ([], [], [])
        for edit in edits:
            where = edit.source or edit.edit_id
            kinds[0].append(self.sample(self.asked(edit.prompt), edit.target, where))
            kinds[1].extend(
                self.sample(self.asked(p), edit.target, where) for p in edit.rephrases[:1]
            )
            kinds[2].extend(self.sample(x.prompt, x.answer, where) for x in edit.locality[:1])
        if order == "longest_first":
            # A reversed sort keeps ties in their order, as the releases' does.
            kinds = tuple(sorted(kind, key=len, reverse=True) for kind in kinds)
        phases = [Phase(tuple(kind), group_size) for kind in kinds]
        return EditBatch(phases[0], phases[1], phases[2], tuple(edits))

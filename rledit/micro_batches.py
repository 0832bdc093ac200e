"""Micro-batches: samples bucketed by length under a token budget, with their answer rows.

How samples are cut into micro-batches changes no number beyond floating-point round-off; the loss
weights travel with the samples (see `rledit.tokenization.Phase`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rledit.lazy_torch import Tensor, nn, torch
from rledit.tokenization import IGNORED, Sample

LENGTH_SPREAD = 1.25
"""Lengths in one micro-batch, longest over shortest, above which a micro-batch is cut early."""
TOKENS_PER_ROW = 8
"""Padded tokens of the budget for each answer row that a micro-batch may have.

Each answer row brings a few vectors as long as the vocabulary. Short prompts are many to a
micro-batch; unless their rows are counted too, the largest matrices of a pass are theirs.
"""


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Samples run together, right-padded to the longest.

    Attributes:
        samples: The samples, in micro-batch order.
        index: (b,) int64, place of each sample in the caller's sequence.
        rows: (r,) int64, positions of answer tokens in the flattened (b*T) layout, sample by
            sample.
        row_sample: (r,) int64, the caller's sample of each row.
        labels: (r,) int64, the token to predict at each row.
    """

    samples: tuple[Sample, ...]
    index: Tensor
    rows: Tensor
    row_sample: Tensor
    labels: Tensor

    @classmethod
    def empty(cls) -> MicroBatch:
        """A pass of one made-up token that answers nothing: no sample, no row, no loss.

        It runs every layer forward and backward, as ranks that hold slices of one model have to
        where only others have prompts left.
        """
        nothing = torch.zeros(0, dtype=torch.long)
        token = Sample(torch.zeros(1, dtype=torch.long), torch.full((1,), IGNORED))
        return cls((token,), nothing, nothing, nothing, nothing)

    @property
    def is_empty(self) -> bool:
        """Whether it is one of `empty`."""
        return len(self.index) == 0

    def among(self, places: Sequence[int]) -> MicroBatch:
        """The same pass, its samples counted among others: sample i as `places[i]`."""
        place = torch.tensor(places, dtype=torch.long)
        return replace(self, index=place[self.index], row_sample=place[self.row_sample])

    @property
    def width(self) -> int:
        """Padded length T."""
        return max(len(s) for s in self.samples)

    def input_ids(self) -> Tensor:
        """(b, T) int64, right-padded with 0."""
        return nn.utils.rnn.pad_sequence([s.input_ids for s in self.samples], batch_first=True)

    def real_rows(self) -> tuple[Tensor, Tensor]:
        """All unpadded positions, flattened, and the caller's sample of each."""
        if self.is_empty:
            return self.rows, self.row_sample
        width = self.width
        rows = [torch.arange(len(s)) + b * width for b, s in enumerate(self.samples)]
        lengths = torch.tensor([len(s) for s in self.samples])
        return torch.cat(rows), self.index.repeat_interleave(lengths)


def make_micro_batches(
    samples: Sequence[Sample], token_budget: int, tokens_per_row: int = TOKENS_PER_ROW
) -> list[MicroBatch]:
    """Cut samples into length-bucketed micro-batches of at most `token_budget` padded tokens.

    Answer rows are bounded alike: one for `tokens_per_row` tokens of the budget. A sample above
    either bound gets a micro-batch of its own. A micro-batch that has filled a quarter of the
    budget takes no
    sample much longer than its first: the 20 prompts of a batch in one micro-batch would be a third
    padding, and a quarter keeps a device nearly as busy as the whole.
    """
    order = sorted(range(len(samples)), key=lambda i: len(samples[i]))
    micro_batches: list[MicroBatch] = []
    members: list[int] = []
    rows = 0
    for i in order:
        own = len(samples[i].answer_ids)
        padded = (len(members) + 1) * len(samples[i])
        long = members and len(samples[i]) > LENGTH_SPREAD * len(samples[members[0]])
        full = padded > token_budget or tokens_per_row * (rows + own) > token_budget
        if members and (full or (long and 4 * padded > token_budget)):
            micro_batches.append(_micro_batch(samples, members))
            members, rows = [], 0
        members.append(i)
        rows += own
    if members:
        micro_batches.append(_micro_batch(samples, members))
    return micro_batches


def _micro_batch(samples: Sequence[Sample], members: list[int]) -> MicroBatch:
    chosen = tuple(samples[i] for i in members)
    width = max(len(s) for s in chosen)
    index = torch.tensor(members)
    counts = torch.tensor([len(s.answer_ids) for s in chosen])
    return MicroBatch(
        samples=chosen,
        index=index,
        rows=torch.cat([s.answer_positions + b * width for b, s in enumerate(chosen)]),
        row_sample=index.repeat_interleave(counts),
        labels=torch.cat([s.answer_ids for s in chosen]),
    )

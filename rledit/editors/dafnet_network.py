"""DAFNet's network: the gradient rows of a sequence of edits → rows of an update, and weights.

One network per linear shape; the modules that share it are told apart by a scale and a shift at the
end of each block. A block lets the rows of an edit look at each other, then the edits of the
sequence at those before them, and says how much an edit leaves of what came before
(arXiv 2405.20588; equations of its release).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rledit.editors.dafnet_sizes import Averaged, Sizes


@dataclass(frozen=True, eq=False)
class Past:
    """What the attentions of one block read of earlier edits of one module; it has no gradient.

    Attributes:
        keys: (P, heads · head_width), keys of the attention between edits.
        values: (P, heads · head_width), its values.
        weighing: (P, weighing_heads · weighing_width), keys of the attention that weighs.
    """

    keys: Tensor
    values: Tensor
    weighing: Tensor

    def __len__(self) -> int:
        return len(self.keys)

    def followed_by(self, later: Past) -> Past:
        """The edits of both, one after another."""
        parts = zip(vars(self).values(), vars(later).values(), strict=True)
        return Past(*(torch.cat([a, b.detach()]) for a, b in parts))


@dataclass(frozen=True, eq=False)
class Transformed:
    """What the network says of a sequence's rows in one module.

    Attributes:
        keys: (T, d_in), pseudo keys.
        values: (T, d_out), pseudo values.
        shares: (blocks, n), the attention that each edit pays to itself; 1 of the very first.
        past: Per block, what later edits read of these.
    """

    keys: Tensor
    values: Tensor
    shares: Tensor
    past: list[Past]


class DAFNetBlock(nn.Module):
    """One block: within an edit, between edits, the weights of edits, and a network by itself."""

    def __init__(self, width: int, n_modules: int, sizes: Sizes) -> None:
        super().__init__()
        between = sizes.heads * sizes.head_width
        weighing = sizes.weighing_heads * sizes.weighing_width
        self._heads, self._weighing_heads = sizes.heads, sizes.weighing_heads
        self.mix = _two_layers(width, sizes.hidden, width)
        self.score = _two_layers(width, sizes.hidden, 1)
        self.query = nn.Linear(width, between)
        self.key = nn.Linear(width, between)
        self.value = nn.Linear(width, between)
        self.out = nn.Linear(between, width)
        self.weighing_query = nn.Linear(width, weighing)
        self.weighing_key = nn.Linear(width, weighing)
        self.inner = _two_layers(width, sizes.inner, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.scale = nn.Parameter(torch.ones(n_modules, width))
        self.shift = nn.Parameter(torch.zeros(n_modules, width))

    def nothing(self, like: Tensor) -> Past:
        """The past of a sequence that begins."""
        none = like.new_zeros(0, self.key.out_features)
        return Past(none, none, like.new_zeros(0, self.weighing_key.out_features))

    def forward(
        self, x: Tensor, counts: Sequence[int], module: int, past: Past
    ) -> tuple[Tensor, Tensor, Past]:
        """Rows (T, d) of edits one after another, `counts` each → rows, shares (n,), their past."""
        within, edits = self._within(x, counts)
        x = self.norms[0](x + within)
        own = Past(self.key(edits), self.value(edits), self.weighing_key(edits))
        whole = Past(*map(torch.cat, zip(vars(past).values(), vars(own).values(), strict=True)))
        seen = _seen(len(past), len(counts), x.device)
        found = _attention(self.query(edits), whole.keys, seen, self._heads)
        between = torch.einsum("hnp,phk->nhk", found, _split(whole.values, self._heads))
        lengths = torch.tensor(list(counts), device=x.device)
        told = self.out(between.flatten(1)).repeat_interleave(lengths, 0)
        x = self.norms[1](x + told)
        x = self.norms[2](x + self.inner(x))
        # Not relu, whose slope at 0 is 0.
        x = x + (self.scale[module] * x + self.shift[module]).clamp(min=0)
        weighed = _attention(
            self.weighing_query(edits), whole.weighing, seen, self._weighing_heads
        ).mean(0)
        return x, weighed[:, len(past) :].diagonal(), own

    def _within(self, x: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(T, d) what an edit's rows add to each of them, and (n, d) its sum over each edit."""
        mixed = self.mix(x)
        scores = self.score(mixed).squeeze(-1)
        lowest = torch.finfo(scores.dtype).min
        padded = pad_sequence(list(scores.split(list(counts))), True, lowest)
        lengths = torch.tensor(list(counts), device=x.device)
        real = torch.arange(padded.shape[1], device=x.device) < lengths[:, None]
        mixed = padded.softmax(-1)[real][:, None] * mixed
        return mixed, pad_sequence(list(mixed.split(list(counts))), True).sum(1)


class SequenceNetwork(nn.Module):
    """DAFNet's network for the M modules of one linear shape.

    Args:
        d_in: Input width of the linear layers.
        d_out: Output width of the linear layers.
        n_modules: Number of modules that share it.
        n_blocks: Blocks, one behind the other.
        sizes: Their widths.
        initial_step: Step η of every module at the start; it is learned as it is, sign and all.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        n_modules: int,
        *,
        n_blocks: int,
        sizes: Sizes,
        initial_step: float,
    ) -> None:
        super().__init__()
        self.d_in = d_in
        self.blocks = nn.ModuleList(
            DAFNetBlock(d_in + d_out, n_modules, sizes) for _ in range(n_blocks)
        )
        self.step = nn.Parameter(torch.full((n_modules,), initial_step))

    def forward(
        self,
        rows: Tensor,
        counts: Sequence[int],
        module: int,
        past: Sequence[Past] = (),
    ) -> Transformed:
        """Transform the normalised rows of a sequence of edits in one module.

        Args:
            rows: (T, d_in + d_out), those of an edit one after another, the edits in order.
            counts: Rows of each edit; an edit may have none.
            module: Which of the modules it is.
            past: Per block, what came before; empty at the start of a sequence.
        """
        shares: list[Tensor] = []
        made: list[Past] = []
        for block, earlier in zip(self.blocks, past or self.beginning(rows), strict=True):
            rows, share, own = block(rows, counts, module, earlier)
            shares.append(share)
            made.append(own)
        return Transformed(rows[:, : self.d_in], rows[:, self.d_in :], torch.stack(shares), made)

    def beginning(self, like: Tensor) -> list[Past]:
        """Per block, the past of a sequence that begins, on the device of a tensor."""
        return [block.nothing(like) for block in self.blocks]  # type: ignore[operator]


def edit_weights(shares: Tensor, averaged: Averaged) -> tuple[Tensor, Tensor]:
    """(n,) weights of edits and () the weight of what was there before; they add up to 1.

    An edit that has the share u of the attention leaves 1 − u of everything before it.

    Args:
        shares: (blocks, n), the attention that each edit pays to itself.
        averaged: What is averaged over blocks. `products`: the weights. `shares`: the shares, so
            that a batch weighs its edits as they would be weighed one at a time.
    """
    if averaged == "shares":
        shares = shares.mean(0, keepdim=True)
    left = 1 - shares
    ones = left.new_ones(len(left), 1)
    later = torch.cat([left[:, 1:], ones], 1).flip(1).cumprod(1).flip(1)
    return (shares * later).mean(0), left.prod(1).mean()


def _two_layers(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out))


def _split(rows: Tensor, heads: int) -> Tensor:
    """(n, heads, k) of (n, heads · k)."""
    return rows.unflatten(1, (heads, -1))


def _seen(earlier: int, n: int, device: torch.device) -> Tensor:
    """(n, P + n) bool, which edits each of the last n may look at: those before it, and itself."""
    places = torch.arange(earlier + n, device=device)
    return places <= places[earlier:, None]


def _attention(queries: Tensor, keys: Tensor, seen: Tensor, heads: int) -> Tensor:
    """(heads, n, P + n) attention of edits on edits."""
    q, k = _split(queries, heads), _split(keys, heads)
    scores = torch.einsum("nhk,phk->hnp", q, k) * q.shape[-1] ** -0.5
    return scores.masked_fill(~seen, float("-inf")).softmax(-1)

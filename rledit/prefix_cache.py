"""Prefix cache: keeps what each prompt begins with at the first edited layer.

No edit changes a layer below the first edited one, nor that layer's attention, so the hidden states
that enter the layer and the output of its attention are constants of the prompt: they are recorded
once (see `rledit.prefix_passes`) and kept under a budget of memory.

With a store (see `rledit.prefix_store`) they outlive the process, and are found by others. Each
then has the bits that its prompt has by itself, or on a card in a pass of one shape, where it
otherwise has those of its company.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import TYPE_CHECKING, Any

from rledit.families import Family
from rledit.lazy_torch import Tensor, nn, torch
from rledit.micro_batches import MicroBatch
from rledit.prefix_passes import CARD_LONG, LONG, PrefixPasses, Top
from rledit.prefix_sharing import shared_out
from rledit.prefix_store import Prefix, PrefixStore, passes_of_one_length, passes_of_one_shape
from rledit.ranks import MostPasses
from rledit.tokenization import Sample

if TYPE_CHECKING:
    from rledit.overlay import Overlay

logger = logging.getLogger(__name__)


class PrefixCache(PrefixPasses):
    """Runs a causal language model from its first edited layer up.

    Args:
        model: The language model (evaluation mode, frozen). Its `forward` is called as it is, so
            a sharded module works the same way.
        family: The model's family.
        first_layer: The lowest edited layer.
        cache_bytes: Budget of the prefix cache; the least recently used prompts leave first and
            are computed again when needed. 0 switches the cache off.
        cache_device: Where cached prefixes lie; None: in host memory.
        most_passes: For a model that is sharded over ranks, which record together: see
            `rledit.ranks`.

    Attributes:
        store: Where prefixes are looked for first and kept, see `keep_in`; None: in memory alone.
        overlay: Is told of every pass where the prompts end; None: nobody is.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        first_layer: int,
        *,
        cache_bytes: int = 2 << 30,
        cache_device: torch.device | None = None,
        most_passes: MostPasses | None = None,
    ) -> None:
        super().__init__(model, family, first_layer)
        self._element_size = next(model.parameters()).element_size()
        self._cache: OrderedDict[bytes, Prefix] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._cache_device = cache_device or torch.device("cpu")
        self._most_passes = most_passes
        self._cached = 0
        self._full = False
        self.store: PrefixStore | None = None
        self.overlay: Overlay | None = None
        self.hits = 0
        self.misses = 0

    @property
    def hit_rate(self) -> float:
        """Share of prompts found in the cache since the start."""
        return self.hits / max(1, self.hits + self.misses)

    def keep_in(self, store: PrefixStore) -> None:
        """Look for prefixes in a store from now on, and keep there those that it lacks.

        Each then has bits that depend on its prompt alone, see `PrefixPasses.same_bits` and
        `fixed_rows`.

        Raises:
            ValueError: The model is sharded over ranks.
        """
        if self._most_passes is not None:
            raise ValueError(
                "the ranks of a sharded model record prefixes together, and a store may hold "
                "other prompts when each of them looks; leave the store out"
            )
        self.clear()
        self.store = store

    def another(self, cache_bytes: int | None = None) -> PrefixCache:
        """An empty cache of the same model, with the same store, and budget unless one is given."""
        other = PrefixCache(
            self._model,
            self._family,
            self.first_layer,
            cache_bytes=self._cache_bytes if cache_bytes is None else cache_bytes,
            cache_device=self._cache_device,
            most_passes=self._most_passes,
        )
        other.store = self.store
        other._same_bits, other._fixed_rows = self._same_bits, self._fixed_rows
        other.overlay = self.overlay
        return other

    def same_bits(self, length: int) -> tuple[int, ...]:
        """As `PrefixPasses.same_bits`; tried once for all processes where there is a store."""
        if self.store is None or length in self._same_bits or length >= LONG:
            return super().same_bits(length)
        found = self.store.tried(length)
        if found is None:
            found = super().same_bits(length)
            self.store.keep_tried(length, found)
        self._same_bits[length] = found
        return found

    def fixed_rows(self, length: int) -> int:
        """As `PrefixPasses.fixed_rows`; tried once for all processes where there is a store."""
        if self.store is None or length in self._fixed_rows or length >= CARD_LONG:
            return super().fixed_rows(length)
        found = self.store.tried(length)
        if found is None:
            rows = super().fixed_rows(length)
            self.store.keep_tried(length, (rows,) if rows > 1 else ())
        else:
            rows = max(found, default=1)
        self._fixed_rows[length] = rows
        return rows

    def clear(self) -> None:
        """Forget all prefixes that lie in memory.

        The last bits of a prefix depend on which prompts it was recorded with, so work that must
        repeat bit by bit begins with an empty cache; unless there is a store, see `keep_in`.
        """
        self._cache.clear()
        self._cached = 0

    def forget(self, keys: Collection[bytes]) -> None:
        """Forget the prefixes of these prompts, see `rledit.tokenization.Sample.key`."""
        for key in keys:
            if (prefix := self._cache.pop(key, None)) is not None:
                self._cached -= sum(t.nbytes for t in prefix)

    def keep(self, keys: Collection[bytes]) -> None:
        """Forget the prefixes of all prompts but these."""
        self.forget(self._cache.keys() - keys)

    def fits(self, samples: Sequence[Sample]) -> bool:
        """Whether the budget holds the prefixes of all these samples at once."""
        if self.store is not None:
            samples = self.store.missing(samples)
        n_bytes = self.n_bytes(samples)
        return n_bytes <= self._cache_bytes or (self.store is not None and self._has_room(n_bytes))

    def n_bytes(self, samples: Sequence[Sample]) -> int:
        """What the prefixes of samples take, each input counted once."""
        config: Any = self._model.config
        unique = {s.key: len(s) for s in samples}
        size: int = 2 * config.hidden_size * self._element_size * sum(unique.values())
        return size

    def _has_room(self, n_bytes: int) -> bool:
        return self.store is not None and n_bytes <= self.store.room

    def prefetch(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Record the prefixes of micro-batches that are not in the cache yet."""
        if self.store is not None:
            samples = [s for m in micro_batches for s in m.samples]
            for _ in chain(self.store_ahead(samples), self._recorded(samples)):
                pass
            return
        for micro_batch in micro_batches:
            self.prefix_of(micro_batch)

    def store_ahead(self, samples: Sequence[Sample]) -> Iterator[int]:
        """Put prefixes that will be needed into the store, if it has room for all of them.

        Many prompts at once have more companions of their own length than those of one batch.
        Processes that lack the same ones at the same time share them out, length by length.

        Yields:
            How many of those that the store lacks are there, now and then.
        """
        if self.store is None or not (missing := self.store.missing(samples)):
            return
        self.store.refresh()
        missing = self.store.missing(missing)
        if not self._has_room(self.n_bytes(missing)):
            return
        if self.store.claim is None:
            yield from self._recorded(missing)
        else:
            yield from shared_out(
                missing, self.store, self.store.claim, self._recorded, self.n_bytes
            )

    def logits(self, micro_batch: MicroBatch, *, narrow: bool = True) -> Tensor:
        """Logits at the micro-batch's answer rows, differentiable where gradients are enabled.

        Args:
            micro_batch: The samples to run.
            narrow: Run the last layer's MLP on answer rows only. Off where something inside that
                MLP has to see every position.

        Returns:
            (rows, vocabulary), in the model's output type.
        """
        return self.run(micro_batch, narrow=narrow).logits

    def run(
        self, micro_batch: MicroBatch, *, narrow: bool = True, prefix: Prefix | None = None
    ) -> Top:
        """As `logits`, with the states that the output embedding saw.

        Args:
            micro_batch: The samples to run.
            narrow: See `logits`.
            prefix: What `prefix_of` gives of it, for passes that are repeated; None: it is looked
                for.
        """
        if prefix is None:
            prefix = self.prefix_of(micro_batch)
        rows = micro_batch.rows.to(self._device)
        with self._announced(micro_batch), self._output_rows(rows) as states:
            logits = self._pass(prefix, rows, narrow)
        return Top(states=states[0], logits=logits.flatten(0, -2))

    def states(self, micro_batch: MicroBatch, *, narrow: bool = True) -> Tensor:
        """As `logits`, short of the output embedding: (rows, hidden), to go into `logits_of`."""
        prefix, rows = self.prefix_of(micro_batch), micro_batch.rows.to(self._device)
        with self._announced(micro_batch), self.before_output(rows) as states:
            self._pass(prefix, rows, narrow)
        return states[0]

    def _announced(self, micro_batch: MicroBatch) -> AbstractContextManager[None]:
        return nullcontext() if self.overlay is None else self.overlay.announced(micro_batch)

    def prefix_of(self, micro_batch: MicroBatch) -> Prefix:
        """Padded (b, T, hidden) prefixes of a micro-batch, from the cache where it has them.

        Every rank of a sharded model makes this call.
        """
        if self.store is not None:
            return self._padded(self._found(micro_batch.samples))
        asked = () if micro_batch.is_empty else micro_batch.samples
        missing = [b for b, s in enumerate(asked) if s.key not in self._cache]
        self.hits += len(asked) - len(missing)
        self.misses += len(missing)
        if self._cache_bytes == 0:
            return self._record(micro_batch.input_ids())
        if self._most_passes is not None and self._most_passes(int(bool(missing))) > len(missing):
            self._record(torch.zeros(1, 1, dtype=torch.long))  # together with ranks that need to
        if micro_batch.is_empty:
            return self._nothing()
        fresh: dict[bytes, Prefix] = {}
        if missing:
            ids = nn.utils.rnn.pad_sequence(
                [micro_batch.samples[b].input_ids for b in missing], batch_first=True
            )
            # Moved in one piece: a copy of each prompt's would make the host wait for each.
            hidden, attention = (t.to(self._cache_device) for t in self._record(ids))
            for i, b in enumerate(missing):
                sample = micro_batch.samples[b]
                fresh[sample.key] = (
                    hidden[i, : len(sample)].clone(),
                    attention[i, : len(sample)].clone(),
                )
        found = [fresh.get(s.key) or self._touch(s.key) for s in micro_batch.samples]
        for key, prefix in fresh.items():
            self._insert(key, prefix)
        return self._padded(found)

    def _nothing(self) -> Prefix:
        """(1, 1, hidden) prefix of an empty micro-batch."""
        config: Any = self._model.config
        kind = next(self._model.parameters()).dtype
        hidden = torch.zeros(1, 1, config.hidden_size, dtype=kind, device=self._device)
        return hidden, hidden

    def _padded(self, found: Sequence[Prefix]) -> Prefix:
        return self._together([p[0] for p in found]), self._together([p[1] for p in found])

    def _together(self, parts: Sequence[Tensor]) -> Tensor:
        """Padded, on the model's device; what lies elsewhere is moved in one piece.

        A store's lie in host memory, where those that it had no room for may lie on the device.
        """
        parts = list(parts)
        away = [i for i, part in enumerate(parts) if part.device != self._device]
        if away and len(away) < len(parts):
            there = self._together([parts[i] for i in away])
            for i, part in zip(away, there, strict=True):
                parts[i] = part[: len(parts[i])]
        return moved(nn.utils.rnn.pad_sequence(parts, batch_first=True), self._device)

    def _found(self, samples: Sequence[Sample]) -> list[Prefix]:
        """Prefixes of samples from memory and store, those that are in neither recorded first."""
        there = {s.key: prefix for s in samples if (prefix := self._stored(s)) is not None}
        missing = [s for s in samples if s.key not in there]
        self.hits += len(samples) - len(missing)
        self.misses += len(missing)
        if missing:
            fresh: dict[bytes, Prefix] = {}
            for _ in self._recorded(missing, fresh):
                pass
            there |= fresh
        return [there[s.key] for s in samples]

    def _stored(self, sample: Sample) -> Prefix | None:
        if sample.key in self._cache:
            return self._touch(sample.key)
        return None if self.store is None else self.store.get(sample)

    def _recorded(
        self, samples: Sequence[Sample], into: dict[bytes, Prefix] | None = None
    ) -> Iterator[int]:
        """Record prompts, each with bits that it has in any company, and keep what is not kept yet.

        Args:
            samples: The prompts; those that are kept already are left out.
            into: Takes the prefixes, for a caller that needs them at once.

        Yields:
            How many are done, after every pass.
        """
        assert self.store is not None
        lacking = [s for s in {s.key: s for s in samples}.values() if self._stored(s) is None]
        done = 0
        passes = (
            passes_of_one_shape(lacking, self.fixed_rows)
            if self.is_on_card
            else passes_of_one_length(lacking, self.same_bits)
        )
        for part, rows in passes:
            filler = [part[0]] * (rows - len(part))
            recorded = self._record(torch.stack([s.input_ids for s in part + filler]))
            # In one piece, and to where a store has them, see `prefix_of`.
            hidden, attention = (t[: len(part)].cpu() for t in recorded)
            for i, sample in enumerate(part):
                prefix = hidden[i].clone(), attention[i].clone()
                if into is not None:
                    into[sample.key] = prefix
                if not self.store.put(sample, prefix):
                    where = self._cache_device
                    self._insert(sample.key, (prefix[0].to(where), prefix[1].to(where)))
            done += len(part)
            yield done

    def _touch(self, key: bytes) -> Prefix:
        self._cache.move_to_end(key)
        return self._cache[key]

    def _insert(self, key: bytes, prefix: Prefix) -> None:
        self._cache[key] = prefix
        self._cached += sum(t.nbytes for t in prefix)
        if self._cached > self._cache_bytes and not self._full:
            self._full = True
            logger.warning(
                "the prefix cache is full at %.2f GB (hit rate so far %.2f): prompts used least "
                "recently will run through the layers below again; Execution.cache_bytes is the "
                "budget",
                self._cache_bytes / 1e9,
                self.hit_rate,
            )
        while self._cached > self._cache_bytes and self._cache:
            _, old = self._cache.popitem(last=False)
            self._cached -= sum(t.nbytes for t in old)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; from the host's memory to a card by way of pinned pages.

    The host then goes on while it is copied. Pinned pages are kept by PyTorch for later copies.
    """
    if tensor.device.type != "cpu" or device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)

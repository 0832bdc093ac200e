"""Overlays: edits that lie in a memory beside the model, not in its matrices.

An overlay owns a hook on one linear layer. For every prompt it decides once which entry of its
memory answers, or none, and the hook changes the linear's output accordingly. The decision rests on
the prompt's own tokens alone: whoever builds a pass announces where each prompt ends
(`Overlay.announced`), and the decision is held for all passes inside the announcement. So the
teacher-forced answer, its rival and a text that is written token by token get the same one,
whatever stands behind the prompt, beside it or around it as padding.

A pass that nobody announces (another library's, the user's own) is decided by its last real
position and held while it is continued from its cache; such prompts are counted in `unannounced`.

The matrices stay the unedited ones. `EditedWeights.unedited` switches the overlay off for its
length, and `EditedWeights.restore` empties it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rledit.errors import UserError
from rledit.lazy_torch import Tensor, nn, torch
from rledit.prompt_inputs import PromptInputs

if TYPE_CHECKING:
    from rledit.micro_batches import MicroBatch
    from rledit.model import EditableModel

SUMMARY_BYTES = 1 << 30
"""Host memory for what is known of prompts; those used least recently are run again when needed."""
NONE = -1
"""The entry of a prompt that the model itself answers."""


class OverlayError(UserError, RuntimeError):
    """A pass, or a model, that an overlay cannot go with; says what to do."""


@dataclass(frozen=True, eq=False)
class Places:
    """Where the rows that a linear sees stand.

    Attributes:
        entry: (rows,) int64, the entry that answers the row's prompt; `NONE` for none.
        position: (rows,) int64, the row's token within its sample.
        end: (rows,) int64, the last token of the row's prompt.
    """

    entry: Tensor
    position: Tensor
    end: Tensor


@dataclass(eq=False)
class _Held:
    """A decision, with what tells the rows of a pass apart.

    Attributes:
        entries: (b,) int64.
        ends: (b,) int64, last token of each prompt.
        rows: Flattened positions that a narrow last MLP sees; None where there is none.
        width: Tokens of the pass under way.
        offset: Tokens of the passes before it that it is continued from.
    """

    entries: Tensor
    ends: Tensor
    rows: Tensor | None = None
    width: int = 0
    offset: int = 0

    def places(self, n_rows: int, device: torch.device) -> Places:
        """The places of the rows that the linear is given."""
        if n_rows == len(self.entries) * self.width:
            flat = torch.arange(n_rows)
        elif self.rows is not None and n_rows == len(self.rows):
            flat = self.rows
        else:
            raise OverlayError(
                f"a pass over {len(self.entries)} prompts of {self.width} tokens gives the linear "
                f"{n_rows} rows; an overlay cannot tell whose they are"
            )
        sample = flat // max(1, self.width)
        position = flat % max(1, self.width) + self.offset
        found = (self.entries[sample], position, self.ends[sample])
        return Places(*(tensor.to(device) for tensor in found))


class Overlay(ABC):
    """Host of a memory at one linear layer of a model.

    Args:
        model: The model; it has this overlay from now on.
        module: Name of the linear, one of the model's target modules: passes begin at or below it.

    Attributes:
        unannounced: Prompts of passes that nobody announced, decided by their last position.

    Raises:
        OverlayError: The model carries another editor's memory, which is not empty.
    """

    def __init__(self, model: EditableModel, module: str) -> None:
        self.model, self.module = model, module
        self.unannounced = 0
        self._inputs = PromptInputs(model, module)
        self._summaries: OrderedDict[bytes, Tensor] = OrderedDict()
        self._summary_bytes = 0
        self._off = 0
        self._forced: Tensor | None = None
        self._held: _Held | None = None
        self._announced = False
        self._raw: tuple[Tensor | None, Tensor | None] = (None, None)
        self._pass = (0, 0, 0)  # prompts, tokens and tokens before of the pass under way
        model.attach(self)
        self._hooks = (
            model.model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.linear(module).register_forward_hook(self._apply),
        )

    def leave(self) -> None:
        """Take its hooks off the model, which is then as it was before this memory."""
        for hook in self._hooks:
            hook.remove()

    # What a method says of itself.

    @property
    @abstractmethod
    def entries(self) -> int:
        """Entries of the memory; with none of them the model is the unedited one, bit by bit."""

    @property
    @abstractmethod
    def n_bytes(self) -> int:
        """What the memory takes."""

    @abstractmethod
    def summarise(self, inputs: Tensor) -> Tensor:
        """What decisions need to know of a prompt, of its inputs (tokens, d_in) of the linear."""

    @abstractmethod
    def decide(self, summaries: Sequence[Tensor]) -> Tensor:
        """(b,) int64 on the host: the entry that answers each prompt, or `NONE`."""

    @abstractmethod
    def output(self, inputs: Tensor, output: Tensor, places: Places) -> Tensor:
        """The linear's output (rows, d_out) with the memory; rows of `NONE` stay bit by bit.

        Args:
            inputs: (rows, d_in).
            output: (rows, d_out), what the linear gives itself. Not to be changed in place.
            places: Where the rows stand.
        """

    @abstractmethod
    def right(self, edit: int, entry: int) -> bool:
        """Whether an entry, or `NONE`, is the one that answers the edit of this place."""

    @abstractmethod
    def empty(self) -> None:
        """Forget everything."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The memory as flat tensors, copies on the host."""

    @abstractmethod
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put saved tensors back."""

    def broken(self) -> list[str]:
        """Names of tensors of the memory that hold what is no number."""
        floats = {k: v for k, v in self.tensors().items() if v.is_floating_point()}
        return [name for name, value in floats.items() if not bool(value.isfinite().all())]

    # What the model and its passes call.

    @property
    def active(self) -> bool:
        """Whether passes are changed at all."""
        return not self._off and (self.entries > 0 or self._forced is not None)

    def clear(self) -> None:
        """Empty the memory: the model is the unedited one."""
        self.empty()
        self.unannounced = 0
        self.forget_prompts()

    def forget_prompts(self) -> None:
        """Forget what is known of prompts, for a memory that will look at them otherwise."""
        self._summaries.clear()
        self._summary_bytes = 0

    @contextmanager
    def off(self) -> Iterator[None]:
        """Let passes inside the context be the unedited model's."""
        self._off += 1
        try:
            yield
        finally:
            self._off -= 1

    @contextmanager
    def forced(self, entries: Tensor) -> Iterator[None]:
        """Let passes inside the context take these entries, by the samples' places, undecided.

        Args:
            entries: (samples,) int64, see `MicroBatch.index`.
        """
        before, self._forced = self._forced, entries
        try:
            yield
        finally:
            self._forced = before

    @contextmanager
    def announced(self, micro_batch: MicroBatch) -> Iterator[None]:
        """Decide for the samples of a micro-batch; the pass inside the context is of these."""
        prompts = [sample.prompt for sample in micro_batch.samples]
        with self._holding(prompts, micro_batch.rows, micro_batch.index):
            yield

    @contextmanager
    def announced_prompts(self, ids: Tensor) -> Iterator[None]:
        """Decide for prompts (b, T) of one length, which the passes inside the context continue."""
        with self._holding(list(ids), None, torch.zeros(0, dtype=torch.long)):
            yield

    @contextmanager
    def _holding(
        self, prompts: Sequence[Tensor], rows: Tensor | None, index: Tensor
    ) -> Iterator[None]:
        if not self.active:
            yield
            return
        ends = torch.tensor([len(prompt) - 1 for prompt in prompts], dtype=torch.long)
        if self._forced is None:
            entries = self.route(prompts)
        elif len(index) == len(prompts):
            entries = self._forced[index]
        else:  # the pass of a rank of a sharded model that has no prompts left
            entries = torch.full((len(prompts),), NONE)
        before = (self._held, self._announced)
        self._held, self._announced = _Held(entries, ends, rows), True
        try:
            yield
        finally:
            self._held, self._announced = before

    def route(self, prompts: Sequence[Tensor]) -> Tensor:
        """(b,) int64: the entry that answers each prompt (tokens,), or `NONE`.

        Every rank of a sharded model makes this call.
        """
        return self.decide(self.summaries(prompts))

    def summaries(self, prompts: Sequence[Tensor]) -> list[Tensor]:
        """What is known of each prompt (tokens,), which is looked at where it is not known yet."""
        keys = [prompt.cpu().numpy().tobytes() for prompt in prompts]
        missing = {k: p for k, p in zip(keys, prompts, strict=True) if k not in self._summaries}
        known = {key: self._summaries[key] for key in keys if key in self._summaries}
        for key in known:
            self._summaries.move_to_end(key)
        with self.off():
            names = list(missing)
            for place, inputs in self._inputs.of(list(missing.values())):
                known[names[place]] = self._keep(names[place], self.summarise(inputs).cpu())
        return [known[key] for key in keys]

    def _keep(self, key: bytes, summary: Tensor) -> Tensor:
        self._summaries[key] = summary
        self._summary_bytes += summary.nbytes
        while self._summary_bytes > SUMMARY_BYTES and len(self._summaries) > 1:
            _, old = self._summaries.popitem(last=False)
            self._summary_bytes -= old.nbytes
        return summary

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before every pass of the model: whose rows its layers are about to see."""
        if not self.active:
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        tokens = ids if ids is not None else kwargs.get("inputs_embeds")
        past = kwargs.get("past_key_values")
        offset = 0 if past is None else int(past.get_seq_length())
        if not self._announced and not offset:
            self._held, self._raw = None, (ids, kwargs.get("attention_mask"))
        if tokens is not None:
            self._pass = (len(tokens), tokens.shape[1], offset)

    def _decided(self) -> _Held:
        """The decision for the pass under way.

        One that nobody announced is decided when the linear sees it, and not before: passes that
        end below it need none.

        Raises:
            OverlayError: Nothing tells the prompts of the pass.
        """
        if self._held is None:
            ids, mask = self._raw
            if ids is None:
                raise OverlayError(
                    "a pass that begins with hidden states was not announced, so the memory cannot "
                    "tell its prompts; give it token ids, or announce it (rledit.overlay)"
                )
            real = torch.ones_like(ids) if mask is None or mask.dim() != 2 else mask
            real = real[:, -ids.shape[1] :].bool().cpu()
            ends = ids.shape[1] - 1 - real.flip(1).int().argmax(1)
            prompts = [row[keep] for row, keep in zip(ids.cpu(), real, strict=True)]
            self.unannounced += len(prompts)
            under_way = self._pass
            self._held = _Held(self.route(prompts), ends)
            self._pass = under_way
        size, self._held.width, self._held.offset = self._pass
        if size != len(self._held.entries):
            raise OverlayError(
                f"a pass over {size} prompts continues one over {len(self._held.entries)}: a "
                "memory holds one decision per prompt, which stays with its row of the batch"
            )
        return self._held

    def _apply(self, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not self.active:
            return None
        held = self._decided()
        if self._forced is None and bool((held.entries == NONE).all()):
            return None
        flat = output.flatten(0, -2)
        places = held.places(len(flat), output.device)
        return self.output(args[0].flatten(0, -2), flat, places).view_as(output)

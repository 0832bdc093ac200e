"""A loaded model, its unedited matrices, and the batches that are in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rledit.editing.deltas import Delta, Recorder, full
from rledit.editing.ledger import ModelRecord
from rledit.editors import Editor
from rledit.errors import UserError
from rledit.model import EditableModel
from rledit.weights import EditedWeights

_KEPT = "_rledit_host"
_PART = 1 << 24  # numbers that are hashed at once


class HostError(UserError, ValueError):
    """A model that cannot be edited as it is."""


class Host:
    """A model that batches are written into and taken out of again.

    The matrices are always the unedited ones with the changes of `shown` added in their order.

    Args:
        model: A causal language model of transformers; it is edited in place.
        tokenizer: Its tokenizer.
        prompting: How prompts are put: keyword arguments of `EditableModel`.

    Attributes:
        shown: The changes that are in the model, in their order.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, prompting: Mapping[str, Any] | None = None
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.prompting = dict(prompting or {})
        self.shown: list[Delta] = []
        self._matrices: dict[str, EditedWeights] = {}
        self._seen: dict[str, tuple[float, float]] = {}
        self._fingerprint: str | None = None
        self._last: tuple[EditedWeights, dict[str, Tensor]] | None = None
        self._aside: ExitStack | None = None  # what shows the unedited model, while it does

    @classmethod
    def of(cls, model: nn.Module, tokenizer: Any | None = None) -> Host:
        """The host of a loaded model; the same one for the same model.

        Raises:
            HostError: Its weights have been changed by something else since it was last edited.
        """
        # Kept on the model itself, and so no longer than it.
        known: Host | None = vars(model).get(_KEPT)
        if known is None:
            known = vars(model)[_KEPT] = cls(model, tokenizer or _tokenizer_of(model))
        elif tokenizer is not None:
            known.tokenizer = tokenizer
        known.require_untouched()
        return known

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.model.parameters()).device

    @property
    def fingerprint(self) -> str:
        """Hash of the unedited weights: names, types, shapes and bits."""
        if self._fingerprint is None:
            with self.unedited():
                self._fingerprint = fingerprint_of(self.model)
        return self._fingerprint

    def record(self, reference: str = "") -> ModelRecord:
        """The model as a ledger names it."""
        config: Any = self.model.config
        count = sum(p.numel() for p in self.model.parameters())
        return ModelRecord(
            fingerprint=self.fingerprint,
            reference=reference or str(getattr(config, "name_or_path", "") or ""),
            dtype=str(next(self.model.parameters()).dtype).removeprefix("torch."),
            architecture=f"{type(self.model).__name__}, {count / 1e6:,.0f} M parameters",
            prompting=self.prompting,
        )

    def open(self, modules: Sequence[str] = ()) -> EditableModel:
        """The model as it is now, ready for an editor of these modules.

        What it calls unedited is the model as it is now: an editor that begins anew from there
        changes nothing that earlier batches wrote.
        """
        opened = EditableModel(self.model, self.tokenizer, modules, **self.prompting)
        for name in opened.modules:
            own = self._matrix(name)
            precise = own.read(name)
            # Inside `unedited`, what edits have added up to is not in the model.
            if self._aside is None and precise.dtype != opened.weights.read(name).dtype:
                opened.weights.set(name, precise)
        return opened

    def edit(self, editor: Editor, edits: Sequence[Any]) -> tuple[Delta, dict[str, float]]:
        """Write a batch with an editor of a model that `open` gave.

        Returns:
            What it changed, which is in the model now, and what the editor measured. Where the
            editor fails, the matrices are bit by bit what they were.
        """
        weights = editor.model.weights
        before = {name: full(self._matrix(name).read(name)).clone() for name in weights.names}
        recorder = Recorder(weights)
        try:
            with recorder.recording():
                metrics = editor.edit(editor.encode(edits))
            delta = recorder.delta()
        except BaseException:
            self._put_back(weights, before)
            raise
        for name, value in before.items():
            self._matrices[name].set(name, value)
        self._add(delta)
        for name in weights.names:
            weights.set(name, self._matrices[name].read(name))
        self.shown.append(delta)
        self._last = (weights, before)
        self._look()
        return delta, metrics

    def take_back(self) -> None:
        """Take the last `edit` back; the matrices are bit by bit what they were before it."""
        assert self._last is not None
        self._put_back(*self._last)
        self.shown.pop()
        self._last = None

    def _put_back(self, weights: EditedWeights, before: Mapping[str, Tensor]) -> None:
        """Give matrices their earlier values, here and in what an editor works on."""
        for name, value in before.items():
            self._matrices[name].set(name, value)
            weights.set(name, value)
        self._look()

    def show(self, deltas: Sequence[Delta]) -> None:
        """Make the model the unedited one with these changes, and no others."""
        for matrix in self._matrices.values():
            matrix.restore()
        self.shown, self._last = [], None
        for delta in deltas:
            self._add(delta)
            self.shown.append(delta)
        self._look()

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """Look at the unedited model inside the context; what is written to it there is dropped."""
        before = self._aside
        with ExitStack() as stack:
            stack.callback(setattr, self, "_aside", before)
            self._aside = stack
            for matrix in self._matrices.values():
                stack.enter_context(matrix.unedited(copied=True))
            yield

    def matrix(self, name: str) -> Tensor:
        """The current matrix of a module (d_out x d_in) at full precision. Do not modify."""
        return full(self._matrix(name).read(name))

    def original(self, name: str) -> Tensor:
        """Its unedited matrix. Do not modify."""
        return self._matrix(name).original(name)

    def require_untouched(self) -> None:
        """Refuse a model whose edited matrices are not as they were left.

        Raises:
            HostError: Names the matrix.
        """
        for name, seen in self._seen.items():
            if self._sums(name) != seen:
                raise HostError(
                    f"{name}.weight was changed by something else than edits since the last one; "
                    "load the model again, or take the edits back (undo) before other changes"
                )

    def _sums(self, name: str) -> tuple[float, float]:
        """What tells a parameter from another: its sum, and that of its squares."""
        value = self._matrices[name].parameter(name).detach().double()
        return float(value.sum()), float(value.square().sum())

    def _look(self) -> None:
        self._seen = {name: self._sums(name) for name in self._matrices}

    def _matrix(self, name: str) -> EditedWeights:
        """A module's matrix; the first call comes before anything has changed it."""
        if name not in self._matrices:
            self._matrices[name] = EditedWeights(self.model, [name])
            if self._aside is not None:
                self._aside.enter_context(self._matrices[name].unedited(copied=True))
        return self._matrices[name]

    def _add(self, delta: Delta) -> None:
        for name, terms in delta.to(self.device).terms.items():
            for term in terms:
                self._matrix(name).add(name, term)


def fingerprint_of(model: nn.Module) -> str:
    """sha256 over all parameters: their names, types, shapes and bits."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        value = parameter.detach().contiguous()
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        for part in value.flatten().split(_PART):
            digest.update(part.cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tokenizer_of(model: nn.Module) -> Any:
    """The tokenizer that lies where a model was loaded from.

    Raises:
        HostError: There is none.
    """
    from transformers import AutoTokenizer

    place = str(getattr(model.config, "name_or_path", "") or "")
    try:
        return AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, TypeError):
        raise HostError(
            f"the model was loaded from {place or 'nowhere that it names'!r}, which has no "
            "tokenizer; pass one: edit(model, facts, tokenizer=...)"
        ) from None

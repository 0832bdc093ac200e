"""Uncentred covariance C = E[k kᵀ] of the inputs of target modules over a text corpus.

A moment is a running sum: it grows micro-batch by micro-batch, the sums of several workers add up
to one worker's, and an interrupted one goes on where it was saved. It carries what it was made
from, and is refused where something else is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Protocol, get_args

from rledit.errors import UserError
from rledit.families import layer_index
from rledit.finite import NonFiniteError, origin
from rledit.lazy_torch import Tensor, nn, torch
from rledit.locate.restart import stopping_after
from rledit.model import EditableModel
from rledit.ranks import Ranks, shard
from rledit.tokenization import IGNORED, Sample

MomentType = Literal["float32", "float64"]
_TYPES: tuple[str, ...] = get_args(MomentType)
OUTPUT_GRADIENTS = ".output_gradients"
"""Ends the name of a covariance that is of a linear's output gradients, not of its inputs; see
`rledit.locate.output_gradients`."""


def called(name: str) -> str:
    """What a person calls the covariance of that name."""
    linear = name.removesuffix(OUTPUT_GRADIENTS)
    what = "key covariance" if linear == name else "covariance of output gradients"
    return f"{what} of {linear!r}"


class CovarianceError(UserError, ValueError):
    """Key covariance that do not fit what is asked for."""


@dataclass(frozen=True, kw_only=True)
class CovarianceFingerprint:
    """What a key covariance was made from.

    Attributes:
        model_hash: Content hash of the model.
        module: Name of the linear; of its output gradients where it ends with `OUTPUT_GRADIENTS`.
        corpus_hash: Content hash of the corpus, its tokenisation and its window included.
        dtype: Precision of the sum.
    """

    model_hash: str
    module: str
    corpus_hash: str
    dtype: MomentType = "float32"

    def require(self, other: CovarianceFingerprint) -> None:
        """Refuse a moment of another identity.

        Raises:
            CovarianceError: Names the first thing that differs, and both values.
        """
        for name in (f.name for f in fields(CovarianceFingerprint)):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                what = name.replace("_", " ")
                raise CovarianceError(
                    f"{called(other.module)}: it was made for the {what} {theirs!r}, "
                    f"but {mine!r} is asked for; compute it again for this one"
                )


class KeyCovariance:
    """The sum of k kᵀ over the tokens seen so far, and their number.

    Args:
        identity: What it is made from.
        width: d_in of the linear.
        device: Where the sum lies.
    """

    def __init__(
        self, identity: CovarianceFingerprint, width: int, device: torch.device | str = "cpu"
    ) -> None:
        if identity.dtype not in _TYPES:
            raise CovarianceError(
                f"{called(identity.module)}: precision {identity.dtype!r} is not one "
                f"of {', '.join(_TYPES)}"
            )
        self.identity = identity
        self.total = torch.zeros(width, width, dtype=getattr(torch, identity.dtype), device=device)
        self.count = 0

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Add rows (n, d_in), in place: the sum is the only matrix in work."""
        rows = rows.to(self.total)
        self.total.addmm_(rows.T, rows)
        self.count += len(rows)

    def reset(self) -> None:
        """Begin anew, with nothing seen."""
        self.total.zero_()
        self.count = 0

    def merge(self, other: KeyCovariance) -> None:
        """Add another worker's sum.

        Raises:
            CovarianceError: It was made from something else.
        """
        self.identity.require(other.identity)
        self.total += other.total.to(self.total)
        self.count += other.count

    def mean(self) -> Tensor:
        """C = E[k kᵀ] (d_in, d_in).

        Raises:
            CovarianceError: No token was seen.
        """
        if self.count == 0:
            raise CovarianceError(
                f"{called(self.identity.module)}: no token seen; the corpus is empty"
            )
        return self.total / self.count

    @property
    def finite(self) -> bool:
        """Whether every input so far was a number: one that was not shows on the diagonal."""
        return bool(self.total.diagonal().isfinite().all())

    def tensors(self) -> dict[str, Tensor]:
        """What to put into a safetensors file, with `metadata` beside it."""
        return {"total": self.total, "count": torch.tensor(self.count)}

    def metadata(self) -> dict[str, str]:
        """Identity and count as the strings that safetensors takes."""
        return {**asdict(self.identity), "count": str(self.count)}

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> KeyCovariance:
        """A moment from the tensors and metadata of a file.

        Raises:
            CovarianceError: Something is missing, or tensors and metadata contradict each other.
        """
        names = [f.name for f in fields(CovarianceFingerprint)]
        missing = [n for n in names if n not in metadata]
        missing += [n for n in ("total", "count") if n not in tensors]
        if missing:
            raise CovarianceError(
                f"this is no file of key covariance: {', '.join(missing)} missing"
            )
        values: dict[str, Any] = {name: metadata[name] for name in names}
        total = tensors["total"]
        moment = cls(CovarianceFingerprint(**values), total.shape[-1], total.device)
        if total.dtype != moment.total.dtype or total.shape != moment.total.shape:
            raise CovarianceError(
                f"{called(values['module'])}: the file holds {total.dtype} of shape "
                f"{list(total.shape)}, its metadata says {values['dtype']}"
            )
        moment.total = total
        moment.count = int(tensors["count"])
        if not moment.finite:
            raise CovarianceError(
                f"{called(values['module'])}: the file holds entries that are no "
                "numbers; delete it, and compute it again"
            )
        return moment


class RowSum(Protocol):
    """What inputs are added to."""

    @property
    def finite(self) -> bool:
        """Whether every input so far was a number."""

    def update(self, rows: Tensor) -> None:
        """Add rows (n, d_in)."""


@torch.no_grad()
def accumulate(
    model: EditableModel, texts: Iterable[Sequence[int]], covariances: Mapping[str, RowSum]
) -> int:
    """Add the inputs of linear layers at every token of some texts.

    Several ranks share the texts out; each adds what it has seen to its own moments, see
    `sum_over_ranks`.

    Args:
        model: The unedited model.
        texts: Token ids of each text; a text no longer than one pass takes.
        covariances: Linear → the moment to add to.

    Returns:
        Number of tokens seen by this rank.

    Raises:
        NonFiniteError: A moment is not finite; names the linear and the layer it comes from.
    """
    samples = [_text(ids) for ids in texts if len(ids)]
    top = max(layer_index(model.family, name) for name in covariances)
    seen = 0
    for micro_batch in model.own_micro_batches(samples, shard(samples, model.ranks)):
        rows, _ = micro_batch.real_rows()
        seen += len(rows)
        with ExitStack() as stack:
            stack.enter_context(stopping_after(model, top))
            for name, moment in covariances.items():
                hook = _adding(moment, rows.to(model.device))
                stack.callback(model.linear(name).register_forward_hook(hook).remove)
            model.prefix_cache.logits(micro_batch, narrow=False)
    broken = torch.tensor([not moment.finite for moment in covariances.values()]).long()
    model.ranks.all_reduce_(broken)
    for name, is_broken in zip(covariances, broken.tolist(), strict=True):
        if is_broken:
            raise NonFiniteError(
                f"key covariance of {name!r}: an input of this linear is not finite; "
                f"{origin(model, samples)}"
            )
    return seen


def sum_over_ranks(ranks: Ranks, covariances: Mapping[str, KeyCovariance]) -> None:
    """Give every rank the sums of all, after which one of them may add to them."""
    for moment in covariances.values():
        count = torch.tensor(moment.count)
        ranks.all_reduce_(moment.total)
        ranks.all_reduce_(count)
        moment.count = int(count)


def _adding(moment: RowSum, rows: Tensor) -> Any:
    def hook(_: nn.Module, args: tuple[Tensor, ...], __: Tensor) -> None:
        moment.update(args[0].flatten(0, -2)[rows])

    return hook


def _text(ids: Sequence[int]) -> Sample:
    """A text as a sample whose last position is labelled, so that one row is predicted."""
    labels = torch.full((len(ids),), IGNORED)
    labels[-1] = 0
    return Sample(torch.as_tensor(ids, dtype=torch.long), labels)

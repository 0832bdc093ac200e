"""Checks for NaN and infinities in weights, logits, losses and shifts; errors name the place.

Refused are: a row of logits with NaN or +inf in it, or with nothing but -inf; a token that is asked
for and whose logit is -inf; NaN or an infinity in a weight, a loss, a shift or a measured value,
infinities of a narrow type (float16, bfloat16) among them. A logit of -inf at a token that nobody
asks for is what models mask tokens with; it changes no answer and is let through.

The checks read numbers that are computed anyway. Only where one fails, a prompt is run once more to
find the layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from rledit.errors import UserError
from rledit.lazy_torch import Tensor, nn, torch
from rledit.tokenization import Sample

if TYPE_CHECKING:
    from rledit.model import EditableModel

_LONGEST_PROMPT = 80


class NonFiniteError(UserError, ValueError):
    """A number that is not finite where an answer is needed; says which, where and why."""

    def at(self, when: str) -> NonFiniteError:
        """The same error with the moment in front of it."""
        return type(self)(f"{when}: {self}")


class CollapsedError(NonFiniteError):
    """An update so large that its editor gives the model up, before any number of it is broken."""


def usable(logits: Tensor) -> Tensor:
    """(rows,) bool, whether a row of logits (rows, vocabulary) has a soft-max."""
    # The largest entry is NaN where any is, +inf where any is, and -inf where all are.
    return logits.amax(-1).isfinite()


def require_finite_parameters(model: nn.Module) -> None:
    """Refuse a model with a weight that is no number, before anything is made of it.

    An output bias may be -inf: that is how a checkpoint masks tokens.

    Raises:
        NonFiniteError: Names the first such matrix with its entry, and how many others there are.
    """
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    mask = getattr(head, "bias", None)
    names, ends = [], []
    for name, parameter in model.named_parameters():
        if parameter.numel() and parameter.is_floating_point():
            low, high = torch.aminmax(parameter.detach())
            names.append(name)
            ends.append(torch.stack((high if parameter is mask else low, high)).float().cpu())
    # A float64 beyond float32 is a number: looked at again below.
    parameters = dict(model.named_parameters())
    suspects = [n for n, e in zip(names, ends, strict=True) if not bool(e.isfinite().all())]
    broken = [n for n in suspects if bool(_broken(parameters[n], parameters[n] is mask).any())]
    if not broken:
        return
    others = f", and {len(broken) - 1} more matrices have such entries" if broken[1:] else ""
    raise NonFiniteError(
        f"the checkpoint holds weights that are no numbers: {_entries(broken[0], parameters)}"
        f"{others}. No score is made of such a model: the file was saved or fetched broken; fetch "
        "it again, or take a revision without"
    )


def require_finite_weights(model: EditableModel) -> None:
    """Refuse edited matrices that are no numbers, in the precision the model runs in.

    Raises:
        NonFiniteError: Names the matrices.
    """
    broken = broken_matrices(model)
    if broken:
        raise NonFiniteError(f"{_listed(broken)} after the edit; {_REMEDY}")


def broken_matrices(model: EditableModel) -> list[str]:
    """Edited matrices with entries that are not finite, each with what is wrong."""
    found = []
    for name in model.weights.names:
        # The master may be finite where the model's own type has no such number.
        ends = torch.stack(torch.aminmax(model.weights.read(name)))
        kind = model.weights.parameter(name).dtype
        if not bool(ends.isfinite().all()):
            found.append(f"{name} holds weights that are no numbers")
        elif not bool(ends.to(kind).isfinite().all()):
            found.append(f"{name} holds weights beyond {_named_type(kind)}")
    if model.overlay is not None:
        found += [f"the memory's {name} holds no numbers" for name in model.overlay.broken()]
    return found


def require_finite(
    values: Mapping[str, float],
    what: str,
    model: EditableModel | None = None,
    samples: Sequence[Sample] = (),
) -> None:
    """Refuse values that are no numbers.

    Args:
        values: The values by name.
        what: What they are together.
        model: The model they were measured of, to look for the layer.
        samples: Prompts to look for it with.

    Raises:
        NonFiniteError: Names the values, and the layer where one is found.
    """
    tensor = torch.tensor(list(values.values()), dtype=torch.float64)
    if bool(tensor.isfinite().all()):
        return
    named = ", ".join(f"{k} {v}" for k, v in values.items() if not abs(v) < float("inf"))
    where = "" if model is None else f"; {origin(model, samples)}"
    raise NonFiniteError(f"{what} is not finite ({named}){where}")


def refuse(model: EditableModel, samples: Sequence[Sample], n_asked: int, what: str) -> None:
    """Refuse what a model says of prompts.

    Args:
        model: The model.
        samples: The prompts whose numbers are not finite.
        n_asked: Number of prompts that were run with them.
        what: What of them is not finite.

    Raises:
        NonFiniteError: Always; names the first prompt and the layer.
    """
    raise NonFiniteError(
        f"{what} is not finite for {len(samples)} of {n_asked} prompts, the first of them "
        f"{_prompt(model, samples[0])}; {origin(model, samples[:1])}"
    )


def origin(model: EditableModel, samples: Sequence[Sample]) -> str:
    """Where numbers that are not finite come from, as a sentence; runs the prompts once more."""
    if broken := broken_matrices(model):
        return f"{_listed(broken)}; {_REMEDY}"
    for sample in samples:
        if (found := _first_layer(model, sample)) is not None:
            return found
    for sample in samples:
        if (found := _impossible(model, sample)) is not None:
            return found
    if (found := _beside(model)) is not None:
        return found
    return "every layer's output is finite; a later step of the computation overflows"


_REMEDY = (
    "the edits have broken the model: take smaller steps, fewer edits, or a wider type of the model"
)


def _first_layer(model: EditableModel, sample: Sample) -> str | None:
    """The first module whose output is not finite for a prompt, and why; None where all is."""
    found: list[str] = []
    head: nn.Module = model.model.get_output_embeddings()  # type: ignore[operator]
    rows = sample.answer_positions

    def look(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if found or not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
                return
            logits = tensor[0, rows.to(tensor.device)] if module is head else None
            fine = tensor.isfinite() if logits is None else usable(logits)
            if not bool(fine.all()):
                found.append(_why(name, module, args, tensor))

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name, module in model.model.named_modules():
            if name:
                stack.callback(module.register_forward_hook(look(name)).remove)
        stack.enter_context(model.announced(sample.prompt[None]))
        model.model(input_ids=sample.input_ids[None].to(model.device), use_cache=False)
    return found[0] if found else None


def _why(name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> str:
    own = dict(module.named_parameters())
    broken = [n for n, p in own.items() if p.numel() and bool(_broken(p).any())]
    first = f"the first layer to give no numbers is {name}"
    if broken:
        return f"{first}: {_entries(f'{broken[0]}', own)}"
    given = [a for a in args if isinstance(a, torch.Tensor) and a.is_floating_point()]
    if all(bool(a.isfinite().all()) for a in given):
        return f"{first}: its output is beyond {_named_type(output.dtype)}"
    return f"{first}: what it is given is beyond {_named_type(output.dtype)}"


@torch.no_grad()
def _impossible(model: EditableModel, sample: Sample) -> str | None:
    """An answer token that the model can never give; None where there is none."""
    ids = sample.input_ids[None].to(model.device)
    with model.announced(sample.prompt[None]):
        logits = model.model(input_ids=ids, use_cache=False).logits[0, sample.answer_positions]
    own = logits.gather(1, sample.answer_ids.to(logits.device)[:, None]).flatten().cpu()
    for token, value in zip(sample.answer_ids.tolist(), own.tolist(), strict=True):
        if value == -float("inf"):
            return f"the logit of its answer's token {token} is -inf: the model never writes it"
    return None


def _beside(model: EditableModel) -> str | None:
    """A weight that is no number where no prompt meets it by itself; padding beside others may."""
    parameters = dict(model.model.named_parameters())
    broken = [n for n, p in parameters.items() if p.numel() and bool(_broken(p).any())]
    if not broken:
        return None
    return f"{_entries(broken[0], parameters)}; no prompt by itself gives it away, padding may"


def _broken(parameter: Tensor, is_mask: bool = False) -> Tensor:
    """Where a parameter is no number."""
    value = parameter.detach()
    bad = ~value.isfinite()
    return bad & ~value.isneginf() if is_mask else bad


def _entries(name: str, parameters: Mapping[str, Tensor]) -> str:
    """How many entries of a matrix are no numbers, and where the first is."""
    value = parameters[name].detach()
    bad = (~value.isfinite()).nonzero()
    place = bad[0].tolist()
    axes = ("row", "column") if len(place) == 2 else ("entry",)
    at = ", ".join(f"{axis} {i}" for axis, i in zip(axes, place, strict=False))
    count = f"{len(bad)} of {value.numel():,} entries"
    return f"{name} has {float(value[tuple(place)])} in {at} ({count})"


def _listed(broken: Sequence[str]) -> str:
    more = f" ({len(broken) - 1} more like it)" if broken[1:] else ""
    return f"{broken[0]}{more}"


def _named_type(kind: torch.dtype) -> str:
    return f"{str(kind).removeprefix('torch.')} (at most {torch.finfo(kind).max:.3g})"


def _prompt(model: EditableModel, sample: Sample) -> str:
    ids = sample.input_ids[: int(sample.answer_positions[0]) + 1].tolist()
    if not model.has_encoder:
        return f"tokens {ids[:12]}"
    text = model.encoder.tokenizer.decode(ids)
    return repr(text if len(text) <= _LONGEST_PROMPT else f"…{text[-_LONGEST_PROMPT:]}")

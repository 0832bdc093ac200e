"""Value vectors of a batch of edits: optimised together, one by one, and plainly one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rledit.locate.requests import Request
from rledit.locate.sites import BlockOutput
from rledit.locate.value import ValueConfig, optimise_values
from rledit.model import EditableModel
from rledit.records import Edit
from rledit.tokenization import IGNORED, Sample
from tests.benchmarks.clock import Clock, ClockKind, Work, interleave, median_ratio, median_seconds
from tests.benchmarks.models import ModelShape, build
from tests.reference import reference_values


@dataclass(frozen=True, kw_only=True)
class ValuesBenchmark:
    """The batch and how its vectors are optimised.

    Attributes:
        shape: The model.
        layer: Decoder layer at whose output the vectors are.
        edits: Edits of the batch.
        alone_edits: Edits of the batch that are also optimised one by one; cost per edit is what
            both ways of doing so are compared by.
        contexts: Tokens of each context template before the prompt, beside the bare prompt.
        steps: Evaluations of each edit.
        repeats: Timed repeats.
        seed: Seed of weights and prompts.
    """

    shape: ModelShape
    layer: int
    edits: int = 20
    alone_edits: int = 5
    contexts: tuple[int, ...] = (5, 5, 10, 10, 10)
    steps: int = 25
    repeats: int = 3
    seed: int = 0

    @property
    def config(self) -> ValueConfig:
        """The optimisation, with MEMIT's settings."""
        return ValueConfig(steps=self.steps, lr=0.1, decay=0.5, clamp=0.75, kl_factor=0.0625)


def run_values(setting: ValuesBenchmark, device: torch.device, kind: ClockKind) -> dict[str, Any]:
    """Seconds per edit of the three ways, and how far their vectors are apart.

    Returns:
        `values_ratio`: the plain way, one edit after another, over ours; `values_ratio_ours`: ours
        with one edit at a time over ours. `values_difference`: largest relative difference of a
        vector v + δ from the plain way's, and `delta_difference` of δ itself.
    """
    model = build(setting.shape, device=device, seed=setting.seed)
    editable = EditableModel(model, None, (f"down:{setting.layer}",))
    requests = random_requests(setting)
    some = requests[: setting.alone_edits]
    one_by_one = replace(setting.config, edits_per_pass=1)
    site = f"{editable.family.layers}.{setting.layer}"
    found: dict[str, Tensor] = {}

    def ours(config: ValueConfig, chosen: list[Request]) -> Tensor:
        # The prefix cache runs anew for each batch of a stream.
        editable.prefix_cache.clear()
        values = optimise_values(editable, chosen, BlockOutput(editable, setting.layer), config)
        found["initial"] = values.initial
        return values.targets

    ways: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: ours(setting.config, requests),
        "one_by_one": lambda: ours(one_by_one, some),
        "plain": lambda: reference_values(model, some, site, setting.config)[0],
    }

    def timed(name: str) -> Callable[[int], Work]:
        return lambda _: lambda: found.update({name: ways[name]()})

    seconds = interleave({name: timed(name) for name in ways}, setting.repeats, Clock(device, kind))
    per_edit = {
        name: [t / (setting.edits if name == "ours" else len(some)) for t in times]
        for name, times in seconds.items()
    }
    plain, batched, initial = (found[k][: len(some)] for k in ("plain", "ours", "initial"))
    return {
        "values_ratio": median_ratio(per_edit["plain"], per_edit["ours"]),
        "values_ratio_ours": median_ratio(per_edit["one_by_one"], per_edit["ours"]),
        "values_difference": _difference(batched, plain),
        "delta_difference": _difference(batched - initial, plain - initial),
        "seconds_per_edit": median_seconds(per_edit),
    }


def _difference(found: Tensor, expected: Tensor) -> float:
    """Largest relative difference of a row."""
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def random_requests(setting: ValuesBenchmark) -> list[Request]:
    """Edits of random tokens: prompts of 8-24, subjects of 1-4, targets of 1-4."""
    generator = torch.Generator().manual_seed(setting.seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    def tokens(n: int) -> Tensor:
        return torch.randint(setting.shape.vocabulary, (n,), generator=generator)

    contexts = [tokens(0), *(tokens(n) for n in setting.contexts)]
    requests: list[Request] = []
    for i in range(setting.edits):
        prompt, target = tokens(draw(8, 24)), tokens(draw(1, 4))
        subject = draw(1, 4)
        last = draw(subject - 1, len(prompt) - 1)
        rewriting = tuple(_sample(torch.cat([c, prompt]), target) for c in contexts)
        positions = tuple(len(c) + last for c in contexts)
        requests.append(
            Request(
                edit=Edit(edit_id=str(i), prompt=f"random {i}", target="random"),
                rewriting=rewriting,
                positions=positions,
                keys=tuple(
                    _cut(s.input_ids[: p + 1]) for s, p in zip(rewriting, positions, strict=True)
                ),
                essence=_cut(prompt[last + 1 - subject : last + 1]),
            )
        )
    return requests


def _sample(prompt: Tensor, target: Tensor) -> Sample:
    ids = torch.cat([prompt, target])
    labels = torch.full((len(ids) - 1,), IGNORED)
    labels[len(prompt) - 1 :] = target
    return Sample(ids[:-1], labels)


def _cut(ids: Tensor) -> Sample:
    """Tokens with one labelled row, at the last of them."""
    labels = torch.full((len(ids),), IGNORED)
    labels[-1] = 0
    return Sample(ids.clone(), labels)

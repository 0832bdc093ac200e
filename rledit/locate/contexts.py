"""Context templates: an edit's prompt is also seen behind a few unrelated sentences.

The bare prompt always comes first. MEMIT (arXiv 2210.07229) and its relatives average keys group by
group, the bare prompt being a group of its own: it weighs one half. ROME (arXiv 2202.05262)
averages over all prompts alike, as do the value vectors of every method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rledit.lazy_torch import Tensor, torch

BARE = "{}"
Averaging = Literal["groups", "uniform"]


@dataclass(frozen=True)
class Contexts:
    """Templates with one ``{}`` each, in place of which a prompt is put.

    Attributes:
        templates: The templates, without the bare prompt.
    """

    templates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for template in self.templates:
            if template.count(BARE) != 1:
                raise ValueError(f"context template {template!r} must hold {{}} exactly once")
            if template == BARE:
                raise ValueError("the bare prompt {} is always among the contexts; leave it out")

    @property
    def all(self) -> tuple[str, ...]:
        """The bare prompt and the templates."""
        return (BARE, *self.templates)

    def __len__(self) -> int:
        return 1 + len(self.templates)

    def weights(self, averaging: Averaging) -> Tensor:
        """(contexts,) float64, the weight of each context in an averaged key; they sum to 1."""
        n = len(self)
        if averaging == "uniform" or n == 1:
            return torch.full((n,), 1.0 / n, dtype=torch.float64)
        weights = torch.full((n,), 0.5 / (n - 1), dtype=torch.float64)
        weights[0] = 0.5
        return weights


def fill(template: str, prompt: str) -> tuple[str, int]:
    """The prompt inside a template, and the number of characters before it."""
    return template.replace(BARE, prompt, 1), template.index(BARE)


def make_contexts(templates: Sequence[str]) -> Contexts:
    """Contexts of the templates of a configuration.

    Raises:
        ValueError: A template without exactly one ``{}``.
    """
    return Contexts(tuple(templates))

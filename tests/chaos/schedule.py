"""Schedule of faults: kind, phase and moment, all drawn from the seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, TypeVar, get_args

from pipeline.run.reporting import Stage

T = TypeVar("T")
Kind = Literal["worker", "node", "driver", "disk"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PHASES: tuple[Stage, ...] = ("prepare", "statistics", "train", "edit", "score", "commit")
LONGEST_DELAY_SECONDS = 0.03  # of the order of the shortest phases


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The fault of one round.

    Attributes:
        number: Of the round, from 1.
        kind: `worker`: SIGKILL of the worker. `node`: all of its node's processes are killed.
            `driver`: the driver gets SIGTERM or SIGKILL. `disk`: the worker's writes are refused.
        phase: What the worker is doing then.
        moment: Which of the phase's reports, as a share in [0, 1) of all in an undisturbed run.
        delay: Seconds between that report and the fault; 0: the worker is held at the report.
        gentle: The driver gets SIGTERM.
    """

    number: int
    kind: Kind
    phase: Stage
    moment: float
    delay: float
    gentle: bool

    @property
    def name(self) -> str:
        """What a person calls the fault."""
        if self.kind == "driver":
            return f"driver {'SIGTERM' if self.gentle else 'SIGKILL'}"
        return self.kind


def schedule(
    rounds: int,
    seed: int,
    kinds: Sequence[str] = KINDS,
    phases: Sequence[str] = PHASES,
) -> list[Fault]:
    """The faults of a run: every pair of kind and phase once in random order, then random pairs.

    Args:
        rounds: How many.
        seed: Decides everything.
        kinds: Faults to choose from.
        phases: Phases to choose from.

    Raises:
        ValueError: A kind or phase that is not known.
    """
    chance = random.Random(seed)
    pairs = list(product(_known(kinds, KINDS), _known(phases, PHASES)))
    chance.shuffle(pairs)
    pairs += [chance.choice(pairs) for _ in range(rounds - len(pairs))]
    return [
        Fault(
            number=number,
            kind=kind,
            phase=phase,
            moment=chance.random(),
            delay=chance.choice((0.0, chance.uniform(0.0, LONGEST_DELAY_SECONDS))),
            gentle=chance.random() < 0.5,
        )
        for number, (kind, phase) in enumerate(pairs[:rounds], start=1)
    ]


def _known(names: Sequence[str], known: tuple[T, ...]) -> list[T]:
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is none of {', '.join(map(str, known))}")
    return [one for one in known if one in names]

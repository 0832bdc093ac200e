"""How close each kind of value has to come: relative Frobenius errors, first pattern that fits.

Round-off grows along a run, so shifts have one limit for the first step and another for later ones.
A squared norm errs twice as much as the norm.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """A limit and the kind of value it is for."""

    kind: str
    limit: float


EXACT = Tolerance("exact", 0.0)
UNIT = Tolerance("unit", 1e-6)
CAPTURED = Tolerance("keys, values", 5e-5)
MOMENTS = Tolerance("moments", 5e-5)
LOSS = Tolerance("losses", 5e-5)
FIRST_SHIFT = Tolerance("shift, first step", 1e-4)
LATER_SHIFT = Tolerance("shift, later", 1e-3)
FIRST_SQUARE = Tolerance("squared shift norm, first step", 2e-4)
LATER_SQUARE = Tolerance("squared shift norm, later", 2e-3)
KEYS_TIMES_SHIFT = Tolerance("keys @ shift, first step", 5e-6)
WEIGHT_GRADIENT = Tolerance("weight gradient", 5e-4)
GRADIENT = Tolerance("network gradient", 5e-4)
GRADIENT_NORM = Tolerance("gradient norm", 5e-4)
ADAM = Tolerance("network, change", 3e-3)
WEIGHT = Tolerance("final weights, change", 1e-3)
MEAN_SUCCESS = Tolerance("mean success ratios", 1e-6)

_TABLE: tuple[tuple[str, Tolerance], ...] = (
    (r"^init/net/.*normalizer", EXACT),
    (r"/rows_per_minibatch$", EXACT),
    (r"normalizer", MOMENTS),
    (r"/(keys|values_grad)/", CAPTURED),
    (r"/param_shift/", LATER_SHIFT),
    (r"/weight_grad(_gen_only)?/", WEIGHT_GRADIENT),
    (r"/net_grad_(pre|post)clip/", GRADIENT),
    (r"/(net_after_step|final/net)/", ADAM),
    (r"/final/weight/", WEIGHT),
    (r"(^|/)succ/", EXACT),
    (r"^(metrics|before)/|^wandb/\d+/[EGL]S$", MEAN_SUCCESS),
    (r"^losses/\d+/step$", EXACT),
    (r"^losses/\d+/reg_", LATER_SQUARE),
    (r"^(losses|wandb)/", LOSS),
    (r"^grad_norm$", GRADIENT_NORM),
)
_FIRST = {LATER_SHIFT: FIRST_SHIFT, LATER_SQUARE: FIRST_SQUARE}
_FIRST_NAMES = re.compile(r"^(train/step0|losses/0)/")
_FIRST_NAMES_UNTRAINED = re.compile(r"^valid/step0/")


def tolerance(name: str, trained: bool) -> Tolerance:
    """The tolerance of a value of a run; a run without training begins with the valid stream.

    Raises:
        KeyError: No pattern fits the name.
    """
    for pattern, found in _TABLE:
        if re.search(pattern, name):
            first = _FIRST_NAMES if trained else _FIRST_NAMES_UNTRAINED
            return _FIRST.get(found, found) if first.search(name) else found
    raise KeyError(f"no tolerance is known for {name!r}")

"""Tolerances of the golden comparison: relative Frobenius errors, first pattern that fits.

Round-off grows along a run, so shifts have one limit for the first step and another for later ones.
A squared norm errs twice as much as the norm.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    """A limit and the kind of value it is for.

    Attributes:
        kind: What is compared.
        limit: The largest error.
        absolute: Whether the limit is for the largest entry's absolute error.
    """

    kind: str
    limit: float
    absolute: bool = False


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

# A whole run on a real model, from text: per module, over the recorded entries.
SHIFT_FROM_TEXT = Tolerance("shift, first step, from text", 1e-4)
CHANGE_FROM_TEXT = Tolerance("final weights, change, from text", 1e-4)
EDIT_SHIFT_NORM = Tolerance("shift norms, from text", 1e-4)
STEP_FROM_TEXT = Tolerance("network, from text", 1e-4)
SCORE_FROM_TEXT = Tolerance("scores in points, from text", 0.01, absolute=True)

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
# Quantities behind a normal equation that the releases solve in float32: kind of value → factor.
# With A = KᵀK + λI and G the weight's gradient they compute X = A⁻¹G by LU, whose backward error
# moves X by about ε κ(A)‖X‖. The network's gradients see K X; the ridge's is the sum of X times the
# shift, which lies in K's rows where most of X does not: it cancels, and loses more digits still.
# Both are held to a small multiple of ε κ(A), never to more than `UNCERTAIN_AT_MOST`.
UNCERTAIN = {GRADIENT: 8.0, ADAM: 8.0}
UNCERTAIN_AT_MOST = 2e-2


def uncertainty(kind: Tolerance, condition: float) -> float:
    """How far a float32 recording may be from the float64 value.

    Args:
        kind: What is compared.
        condition: The largest condition number of KᵀK + λI that the run met.
    """
    grown = UNCERTAIN.get(kind, 0.0) * torch.finfo(torch.float32).eps * condition
    return max(kind.limit, min(grown, UNCERTAIN_AT_MOST))


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


# Locate sets: what the manifest suggests, as relative errors; projections as the largest entry's.
SPECTRUM = Tolerance("eigenvalues", 1e-5)
_PROJECTION = Tolerance("projection, largest entry", 5e-5, absolute=True)
_SEEN = Tolerance("keys, current values, moments", 1e-5)
_VALUE = Tolerance("value vectors", 2e-5)
_VALUE_LOSS = Tolerance("value vector losses", 1e-5)
_UPDATE = Tolerance("updates, end to end", 5e-5)
_END = Tolerance("weights, end to end", 5e-5)
_ROME = Tolerance("rome", 5e-5)
_TUNED = Tolerance("fine-tuning", 1e-5)
_SOLVE = Tolerance("updates from recorded keys", 5e-6)
_SOLVE_FLOAT32 = Tolerance("updates from recorded keys, recorded in float32", 1e-5)
_INVERSE = Tolerance("inverse moment, recorded in float32", 5e-5)

_LOCATE_TABLE: tuple[tuple[str, Tolerance], ...] = (
    (r"(_iters|lookup_idxs|case_ids|^stats:count)$", EXACT),
    (r"^stats:P$", _PROJECTION),
    (r"^stats:inv_mom2", _INVERSE),
    (r"^ft_", _TUNED),
    (r"losses$", _VALUE_LOSS),
    (r"^rome", _ROME),
    (r"(\.K|\.K_cached|\.cur_z)$|^stats:mom2|cache_c$", _SEEN),
    (r"(^z_earlystop:|\.)z(_delta|_delta_trace)?$|\.resid$", _VALUE),
    (r"\.(upd|dW_applied)$", _UPDATE),
    (r"^prune:.*\.S_", _END),
    (r"\.W$", _END),
)


def locate_tolerance(stem: str, name: str) -> Tolerance:
    """The tolerance of a tensor of a locate set.

    Raises:
        KeyError: No pattern fits the name.
    """
    for pattern, found in _LOCATE_TABLE:
        if re.search(pattern, f"{stem}:{name}"):
            return found
    raise KeyError(f"no tolerance is known for {name!r} of {stem!r}")


def solve_tolerance(stem: str) -> Tolerance:
    """The tolerance of a method's system alone."""
    return _SOLVE_FLOAT32 if stem == "alphaedit" else _SOLVE

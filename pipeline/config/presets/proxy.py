"""Proxy models: the same architecture and module names at toy size, on the synthetic world.

A proxy model shows that a grid runs end to end. Its figures say nothing about the model it stands
for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rledit.families import FAMILIES, layer_index, shorthand_names
from rledit.world import WorldModelSpec

LAYERS = 4
# Evaluation edits that a world is sure to hold in every schema, and the subjects it has for them;
# CounterFact loses edits without a neighbour, in small worlds more of them. Beyond these, four
# times the subjects a step.
SIZES = ((20, 96), (100, 240))
GROWTH = 4
PER_SUBJECT = 0.7

_WORLD = {
    "answers_per_relation": 8,
    "validation_share": 0.1,
    "evaluation_share": 0.25,
    "locality_share": 0.36,
}
# Attention groups its heads where the model stood for does.
_KV_HEADS: Mapping[str, int | None] = {"gptj": None}


def world_settings(n_edits: int, claims: bool = False) -> dict[str, Any]:
    """Settings of the smallest world whose pools hold streams of `n_edits`.

    Sizes grow in steps, so that grids of like size share their models.

    Args:
        n_edits: Length of the longest stream.
        claims: Whether the data asks for verdicts, as FEVER does.
    """
    subjects = _subjects(n_edits)
    return {**_WORLD, "n_subjects": subjects, **({"claims": True} if claims else {})}


def _subjects(n_edits: int) -> int:
    for edits, subjects in SIZES:
        if n_edits <= edits:
            return subjects
    while n_edits > PER_SUBJECT * subjects:
        subjects *= GROWTH
    return subjects


def model_settings(family: str, world: Mapping[str, Any]) -> dict[str, Any]:
    """Architecture and training of a family's proxy, as overrides of its world model."""
    subjects = world.get("n_subjects", 0)
    small = subjects <= SIZES[-1][1]
    sizes: dict[str, Any] = {"hidden": 128, "intermediate": 512, "steps": 400}
    if small:
        steps = 150 if subjects <= SIZES[0][1] else 250
        sizes = {"hidden": 64, "intermediate": 256, "steps": steps}
        sizes |= {"batch": 96, "lr": 5e-3, "warmup": 20}
    if world.get("lessons"):
        sizes["steps"] = 3 * sizes["steps"] // 2  # there is more to learn
    return {
        **sizes,
        "layers": LAYERS,
        "init_std": 0.08 if small else 0.06,
        "kv_heads": _KV_HEADS.get(family, 2),
    }


def taught(spec: WorldModelSpec, world: Mapping[str, Any]) -> WorldModelSpec:
    """How a proxy model is trained on a world: on claims only until it knows their verdicts.

    There are two verdicts to learn in place of many answers. Trained for as long, its lower layers
    become so sure of them that no change of the edited ones can turn a verdict over.
    """
    return replace(spec, steps=2 * spec.steps // 5) if world.get("claims") else spec


def mapped_modules(
    modules: Sequence[str], n_layers: int, family: str, claims: bool = False
) -> tuple[str, ...]:
    """Target modules of a proxy model: the layers at the same relative depth.

    All layers where those alone turn no answer in a model of four, whatever the step: gates and ups
    of a family that normalises an MLP's output before it joins the residual stream, and everything
    where claims are judged by one of two verdicts.

    Args:
        modules: Shorthands for the model stood for, e.g. ``gate:11-15``, or full names there.
        n_layers: Layers of that model.
        family: Its family.
        claims: Whether the data asks for verdicts, as FEVER does.

    Raises:
        ValueError: The model has no such linear layer.
    """
    found: list[str] = []
    taken: set[tuple[str, int]] = set()
    for item in modules:
        kind, numbers = _kind_and_layers(item, n_layers, family)
        layers = {LAYERS * n // n_layers for n in numbers}
        if claims or (FAMILIES[family].norm_after_mlp is not None and kind != "down"):
            layers = set(range(LAYERS))
        new = sorted(n for n in layers if (kind, n) not in taken)
        taken |= {(kind, n) for n in new}
        if new:
            found.append(f"{kind}:{','.join(map(str, new))}")
    return tuple(found)


def _kind_and_layers(item: str, n_layers: int, family: str) -> tuple[str, list[int]]:
    """The kind of linear layer that an item of target modules names, and in which layers."""
    of = FAMILIES[family]
    names = shorthand_names(of, n_layers, [item])
    numbers = [layer_index(of, name) for name in names]
    kinds = {path: kind for kind, path in of.target_modules.items()}
    inner = names[0].removeprefix(f"{of.layers}.{numbers[0]}.")
    if inner not in kinds:
        raise ValueError(
            f"target module {item!r} is no linear layer that is edited; its layers have "
            f"{', '.join(kinds)}"
        )
    if max(numbers) >= n_layers:
        raise ValueError(f"target module {item!r}: the model has layers 0 to {n_layers - 1}")
    return kinds[inner], numbers


_TRAINED = {
    "rank": 32,
    "n_blocks": 2,
    "init_std": 0.05,
    "scalar_lr_factor": 10.0,
    "train_steps": 4,
    "meta_lr": 1e-4,
    "initial_step": "auto",
    "moments_scope": "trajectory",
}
_RETRAINED = {"retrain_every": 1, "retrain_batches": 1}
_TUNED = {"steps": 15, "lr": 1e-2}
_LOCATED = {"value_steps": 15, "value_lr": 0.5, "value_decay": 1e-3, "clamp": 4.0}
_MEMIT = {**_LOCATED, "moment_weight": 0.1}
_PROJECTED = {**_LOCATED, "threshold": 0.2, "ridge": 0.1}

# What cannot be the big model's: steps, which are calibrated, ranks, learning rates, the weight of
# the key covariance. A few trials found these by hand, so that edits take at all; nothing was tuned
# against anything.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "untrained": {"initial_step": "auto"},
    "ultraedit": {"step": "auto"},
    "stableedit": {"step": "auto", "warmup_batches": 1},
    "ft": _TUNED,
    "ft_m": _TUNED,
    "ft_l": {**_TUNED, "norm_constraint": 1e-2},
    "locft": {"passes": 15, "lr": 1e-2},
    "crispedit": {"passes": 25, "lr": 1e-2},
    "rome": _LOCATED,
    "memit": _MEMIT,
    "prune": _MEMIT,
    "rect": _MEMIT,
    "encore": _MEMIT,
    "lyaplock": _MEMIT,
    "betaedit": {**_PROJECTED, "moment_weight": 1.0},
    "deltaedit": _PROJECTED,
    "grace": {"steps": 30, "radius": 1.0},
    "wise": {"steps": 10, "contexts": (), "alpha": 1.0, "beta": 4.0, "gamma": 2.0},
    "memoir": {"steps": 10, "contexts": ()},
    "alphaedit": _PROJECTED,
    "nas": _PROJECTED,
    "rledit": _TRAINED,
    "malmen": _TRAINED,
    "malmen_star": {**_TRAINED, **_RETRAINED},
    "malmen_rledit": _TRAINED,
    "mend": _TRAINED,
    "mend_star": {**_TRAINED, **_RETRAINED},
    "hiedit": {**_TRAINED, "active_modules": None},
    "instructedit": {**_TRAINED, "moments_scope": "lifelong", "accumulation": 0},
    "dafnet": {
        "hidden_width": 32,
        "head_width": 32,
        "weighing_width": 16,
        "inner_width": 48,
        "initial_step": 1e-2,
        "train_steps": 100,
        "sequence_cap": 10,
        "first_cap": 10,
        "curriculum_patience": 20,
        "meta_lr": 3e-3,
        "step_lr": 3e-3,
    },
    "mend_rledit": _TRAINED,
}
# Behind a norm a value can only turn the stream, not outgrow it, and takes longer to find.
METHODS_BEHIND_A_NORM: Mapping[str, Mapping[str, Any]] = {"grace": {"steps": 100}}

"""Ranges of a grid's numbers: the smallest and largest value that each key takes.

A number of a grid is finite, and not negative. Keys of `AT_LEAST_ONE` count things there must be
some of, those of `ABOVE_ZERO` scale something that would vanish. The same key means the same in all
groups of settings, so keys are looked up by name alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field
from typing import Any

AT_LEAST_ONE = frozenset(
    {
        "answers_per_relation", "batch", "batch_size", "checkpoints", "cpus", "depth", "documents",
        "edits_per_pass", "harness_limit", "heads", "hidden", "intermediate", "k", "kv_heads",
        "layers", "loss_group", "max_tokens", "merge_freq", "n_batches", "n_blocks", "n_subjects",
        "passes", "prompts", "rank", "ranks", "retrain_batches", "retrain_every", "save_freq",
        "scored_edits", "shards", "steps", "threads", "trajectories_per_step", "trajectory_batches",
        "validate_every", "validation_batches", "value_steps",
        "attention_heads", "curriculum_patience", "first_cap", "head_width", "hidden_width",
        "inner_width", "scored_edits_per_step", "sequence_cap", "weighing_heads",
        "weighing_width",
        "refresh_every",
        "active_modules", "gate_width",
    }
)  # fmt: skip
ABOVE_ZERO = frozenset(
    {
        "clamp", "density", "keep", "log_base", "lr", "mask_ratio", "max_grad_norm",
        "memory_gb", "recompute_at", "step_search", "value_lr",
        "drift_budget", "initial_ridge",
    }
)  # fmt: skip
# More is a slip of the hand, and whatever is asked to hold it fails without a reason.
_LARGEST = {
    "seed": 2**63 - 1,
    "seeds": 2**63 - 1,
    "threads": 1024,
    "n_subjects": 1_000_000,
    "hidden": 2**17,
    "intermediate": 2**19,
    "layers": 1000,
    "heads": 2**12,
    "kv_heads": 2**12,
    "density": 1,
    "energy": 1,
    "mask_ratio": 1,
    "space_share": 1,
    "sphere_alpha": 1,
    "sphere_share": 1,
}


def number_problem(name: str, value: Any) -> str | None:
    """What is wrong with the number of a key; None where nothing is, or it is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return f"expected a finite number, found {value}"
    if name in AT_LEAST_ONE and value < 1:
        return f"expected at least 1, found {value}"
    if name in ABOVE_ZERO and value <= 0:
        return f"expected a number above 0, found {value}"
    if value < 0:
        return f"expected 0 or more, found {value}"
    if value > _LARGEST.get(name, math.inf):
        return f"expected at most {_LARGEST[name]}, found {value}"
    return None


def number_problems(group: Mapping[str, Any]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every number of a group of settings that does not work: its path, and why."""
    for name, value in group.items():
        many = value if isinstance(value, list | tuple) else None
        for i, item in enumerate([value] if many is None else many):
            if (problem := number_problem(name, item)) is not None:
                yield ((name,) if many is None else (name, i)), problem


def shape_problem(field: Field[Any], value: Any) -> str | None:
    """What is wrong with the shape of a value as it stands in the file, said as YAML says it.

    A list is never made of a single value: `seeds: 3` may mean three seeds or the third.

    Args:
        field: The key's field, whose type is text.
        value: As YAML has read it.
    """
    kind = str(field.type)
    if value is None and kind.endswith("| None"):
        return None
    if kind.startswith("tuple") and not isinstance(value, list | tuple):
        if value is None or isinstance(value, Mapping):
            return f"expected a list, found {_shown(value)}"
        return (
            f"expected a list, found {_shown(value)}; in square brackets it is one: "
            f"{field.name}: [{_shown(value)}]"
        )
    if kind.startswith("dict") and value is not None and not isinstance(value, Mapping):
        return (
            f"expected a mapping, found {_shown(value)}; in braces it is one: "
            f"{field.name}: {{KEY: {_shown(value)}}}"
        )
    if isinstance(value, bool) and "bool" not in kind and kind.startswith(("int", "float")):
        return f"expected a number, found {_shown(value)}"
    return None


def _shown(value: Any) -> str:
    """A value as YAML writes it, shortened."""
    if isinstance(value, bool) or value is None:
        return {None: "nothing", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "a list"
    return str(value)

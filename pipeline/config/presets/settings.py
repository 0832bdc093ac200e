"""Settings of the methods on a model: which linear layers they edit, with which hyper-parameters.

A setting says where it comes from. What no paper gives is our own, and printed as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

OWN = "our own setting"
TABLE_3 = "arXiv 2502.05759, table 3"
RELEASE = "the methods' releases"
CRISPEDIT = "CrispEdit's release (arXiv 2602.15823)"
DAFNET = "DAFNet's release (arXiv 2405.20588); training steps are our own choice"
HIEDIT = "HiEdit's release (arXiv 2604.11214)"
ULTRAEDIT = "UltraEdit's release (arXiv 2505.14679)"
SPHERE = "SPHERE's release (arXiv 2510.01172)"

STEP = 1e-6  # of RLEdit, UltraEdit and their relatives, in all published runs

ANY = "any"  # where a setting does not depend on the dataset

TRAINED = ("rledit", "mend", "malmen", "mend_star", "malmen_star", "mend_rledit", "malmen_rledit")
_SEQUENTIAL = ("lyaplock", "betaedit", "deltaedit")  # AlphaEdit's layers and values
_OWN_RANK = frozenset({"mend", "mend_star", "mend_rledit"})  # rank 1920, whatever RLEdit's is


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Settings of one method on one model and dataset.

    Attributes:
        values: What differs from the method's defaults, `modules` among it.
        origin: Where the values come from.
    """

    values: Mapping[str, Any]
    origin: str


# Editor → schema of the dataset, or `ANY` → setting.
Settings = Mapping[str, Mapping[str, Setting]]


@dataclass(frozen=True, kw_only=True)
class Hyper:
    """RLEdit's setting on one dataset: linear layers, rank of the network, and λ of locality."""

    modules: tuple[str, ...]
    rank: int = 1024
    loc_coef: float = 0.6
    origin: str = TABLE_3


@dataclass(frozen=True, kw_only=True)
class Locate:
    """Layers and value optimisation of the locate-then-edit methods.

    Attributes:
        layers: Layers of MEMIT and its descendants.
        rome_layer: ROME's.
        tuned_layer: Layer of fine-tuning.
        value: Value optimisation of MEMIT and its descendants.
        rome: ROME's own settings.
        origin: Where they come from.
        also_released: Methods of `_SEQUENTIAL` whose release has a file for the model with these
            layers and values; for the others they are our own choice.
    """

    layers: str
    rome_layer: int = 5
    tuned_layer: int = 21
    value: Mapping[str, float] = field(default_factory=dict)
    rome: Mapping[str, Any] = field(default_factory=dict)
    origin: str = RELEASE
    also_released: tuple[str, ...] = ()


# Llama-3 and Mistral edit with the bare key; GPT-J with the key covariance.
ROME_LLAMA = {"value_lr": 0.5, "value_decay": 1e-3, "clamp": 4.0, "second_moment": False}
ROME_GPTJ = {
    "value_steps": 20,
    "value_lr": 0.5,
    "value_decay": 0.5,
    "clamp": 4.0,
    "second_moment": True,
}
VALUE_LLAMA = {"value_lr": 0.1, "value_decay": 0.5, "clamp": 0.75}
VALUE_MISTRAL = {"value_lr": 0.5, "value_decay": 1e-3, "clamp": 4.0}
VALUE_GPTJ = {"value_lr": 0.5, "value_decay": 0.5, "clamp": 0.75}


def hypernetworks(by_schema: Mapping[str, Hyper]) -> dict[str, dict[str, Setting]]:
    """RLEdit and the methods it is compared with, which edit the same linear layers.

    MALMEN keeps rank 1024 and λ 0.6, MEND rank 1920 and λ 1: only RLEdit's follow the table.
    """
    found: dict[str, dict[str, Setting]] = {}
    for editor in (*TRAINED, "untrained"):
        found[editor] = {}
        for schema, hyper in by_schema.items():
            values: dict[str, Any] = {"modules": hyper.modules, "initial_step": STEP}
            if editor == "rledit":
                values |= {"rank": hyper.rank, "loc_coef": hyper.loc_coef}
            elif editor in TRAINED and editor not in _OWN_RANK:
                values |= {"rank": 1024, "loc_coef": 0.6}
            if editor in ("mend", "mend_star", "malmen", "malmen_star"):
                values["reg_coef"] = 1e-2
            found[editor][schema] = Setting(values=values, origin=hyper.origin)
    # No paper gives InstructEdit's settings on these models: MEND's layers. Trajectories of 2,000
    # edits, as in 20 batches of 100, then make the 100,000 examples of its release on Llama-2-7B.
    found["instructedit"] = {
        schema: Setting(values={"modules": hyper.modules, "train_steps": 50}, origin=OWN)
        for schema, hyper in by_schema.items()
    }
    # Nor HiEdit's: RLEdit's layers, and half of them edited, as on Llama-3-8B.
    return found | {"hiedit": {s: _gated(hyper.modules, OWN) for s, hyper in by_schema.items()}}


def _gated(modules: tuple[str, ...], origin: str, **values: Any) -> Setting:
    form = {"initial_step": STEP, "rank": 1024, "loc_coef": 0.6}
    return Setting(values={"modules": modules, **form, **values}, origin=origin)


def gated(modules: tuple[str, ...], active: int) -> dict[str, dict[str, Setting]]:
    """HiEdit as its release has it on a model, in its form on the normal equation."""
    return {"hiedit": {ANY: _gated(modules, HIEDIT, active_modules=active)}}


def sequences(
    modules: tuple[str, ...], origin: str = OWN, **values: Any
) -> dict[str, dict[str, Setting]]:
    """DAFNet, which edits the MLPs of the last layers; how long it trains is our own choice."""
    return {"dafnet": {ANY: Setting(values={"modules": modules, **values}, origin=origin)}}


def converged(
    modules: tuple[str, ...], initial_step: float, untrained_step: float
) -> dict[str, dict[str, Setting]]:
    """RLEdit and its relatives by our own recipe, for a model that no paper edits.

    Args:
        modules: Linear layers that all of them edit.
        initial_step: η at the start of training.
        untrained_step: η of the network that is not trained: the best one without training.
    """
    trained = {"modules": modules, "reference": "converged", "initial_step": initial_step}
    values: dict[str, Mapping[str, Any]] = dict.fromkeys(TRAINED, trained)
    values["hiedit"] = trained
    values["untrained"] = {"modules": modules, "initial_step": untrained_step}
    values["instructedit"] = {**trained, "accumulation": 0}
    return {editor: {ANY: Setting(values=found, origin=OWN)} for editor, found in values.items()}


def training_free(
    by_schema: Mapping[str, tuple[str, ...]],
    origin: str = ULTRAEDIT,
    stable: tuple[str, ...] | None = None,
    step: float = STEP,
) -> dict[str, dict[str, Setting]]:
    """UltraEdit and StableEdit; the latter on linear layers of its own where they are given."""
    ultra = {
        schema: Setting(values={"modules": modules, "step": step}, origin=origin)
        for schema, modules in by_schema.items()
    }
    stable_values = {"modules": stable, "step": step}
    own = {ANY: Setting(values=stable_values, origin="arXiv 2605.11836")} if stable else ultra
    return {"ultraedit": ultra, "stableedit": own}


def remembering(
    layer: int, radius: float = 1.0, steps: int = 100, origin: str = OWN
) -> dict[str, dict[str, Setting]]:
    """The editors that keep a memory at one linear layer.

    Where no file is published for a model: a layer at the relative depth at which Llama-2's is, and
    GRACE's first radius. That is in units of the layer's activations and has to be searched.

    Args:
        layer: The layer whose `down` it is.
        radius: ε of GRACE.
        steps: GRACE's Adam steps on a value.
        origin: Where they come from.
    """
    grace = {"modules": (f"down:{layer}",), "radius": radius, "steps": steps}
    found = {"grace": Setting(values=grace, origin=origin)}
    for editor in ("wise", "memoir"):
        found[editor] = Setting(values={"modules": (f"down:{layer}",)}, origin=OWN)
    return {editor: {ANY: setting} for editor, setting in found.items()}


def side_memory(
    layer: int, lr: float, steps: int, alpha: float, beta: float, gamma: float, ratio: float = 0.88
) -> dict[str, dict[str, Setting]]:
    """WISE as EasyEdit's file for a model has it."""
    values = {"modules": (f"down:{layer}",), "lr": lr, "steps": steps, "alpha": alpha,
              "beta": beta, "gamma": gamma, "ratio": ratio}  # fmt: skip
    return {"wise": {ANY: Setting(values=values, origin=RELEASE)}}


def flat(layers: str, origin: str = OWN, **values: Any) -> dict[str, dict[str, Setting]]:
    """CrispEdit, which edits what some late layers write into the residual stream."""
    found = {"modules": (f"down:{layers}",), **values}
    return {"crispedit": {ANY: Setting(values=found, origin=origin)}}


def published_in(
    origin: str, settings: Mapping[str, Mapping[str, Setting]], *editors: str
) -> dict[str, dict[str, Setting]]:
    """The settings of some editors among others, which a release has."""
    return {
        editor: {schema: replace(one, origin=origin) for schema, one in settings[editor].items()}
        for editor in editors
    }


def locating(locate: Locate) -> dict[str, dict[str, Setting]]:
    """The locate-then-edit methods, and fine-tuning, which the same papers compare with."""
    spread = {"modules": (f"down:{locate.layers}",), **locate.value}
    tuned = {"modules": (f"down:{locate.tuned_layer}",)}
    values: dict[str, dict[str, Any]] = {
        "memit": spread,
        "prune": spread,
        "rect": spread,
        "alphaedit": spread,
        "nas": spread,
        "encore": {**spread, "value_lr": 0.5},
        "rome": {"modules": (f"down:{locate.rome_layer}",), **locate.rome},
        "ft": tuned,
        "ft_m": tuned,
        "ft_l": {"modules": ("down:0",)},
    }
    found = {editor: {ANY: Setting(values=v, origin=locate.origin)} for editor, v in values.items()}
    for editor in _SEQUENTIAL:
        origin = locate.origin if editor in locate.also_released else OWN
        found[editor] = {ANY: Setting(values=spread, origin=origin)}
    return found

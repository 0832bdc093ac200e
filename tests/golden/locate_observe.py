"""Results of our editors under the names of a locate recording."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rledit.editors.alphaedit import AlphaEdit
from rledit.editors.finetuning import FineTuning
from rledit.editors.locate_editor import SpreadEditor
from rledit.editors.memit import MEMIT
from rledit.editors.prune import PRUNE, singular_values
from rledit.editors.rect import RECT
from rledit.editors.rome import ROME
from rledit.editors.tuning import descend
from rledit.families import layer_index
from rledit.locate.keys import subject_keys
from rledit.locate.requests import Request
from rledit.locate.value import Values
from rledit.model import EditableModel

from .locate_set import FamilySet

Tensors = Mapping[str, Tensor]
MAX_FLIPS = 5


@dataclass(frozen=True)
class Plan:
    """What a recording covers.

    Attributes:
        batches: Case ids of each batch.
        names: Every tensor recorded.
    """

    batches: list[list[int]]
    names: frozenset[str]


def plan_of(family: FamilySet, stem: str, recorded: Tensors) -> Plan:
    """The batches a file was recorded with."""
    names = frozenset(recorded)
    if "case_ids" in recorded:
        return Plan([recorded["case_ids"].tolist()], names)
    if stem == "memit_single":
        return Plan([list(range(len(recorded["b0.z"])))], names)
    if stem.startswith("rome"):
        n_edits = 1 + max(int(m[1]) for m in map(re.compile(r"e(\d+)\.").match, names) if m)
        return Plan([[case] for case in range(n_edits)], names)
    found = {int(m[1]) for m in map(re.compile(r"b(\d+)\.").match, names) if m}
    # The restraint's file holds no batches: its trajectory is the repeated one's.
    n_batches = 1 + max(found) if found else len(family.requests["batches"])
    return Plan(family.requests["batches"][:n_batches], names)


def observe(family: FamilySet, stem: str, plan: Plan, recorded: Tensors) -> dict[str, Tensor]:
    """Our values for a file.

    Args:
        family: The family.
        stem: The file, without its suffix.
        plan: What it covers.
        recorded: Its tensors, as inputs where it holds some; empty when a set is being made.
    """
    if stem == "stats":
        return _statistics(family, recorded)
    if stem.startswith("ft_"):
        return _finetuning(family, stem, plan)
    if stem.startswith("rome"):
        return _rome(family, stem, plan)
    if stem == "prune":
        return _prune(family, plan)
    if stem == "z_earlystop":
        return _values_only(family, stem, plan)
    return _spreading(family, stem, plan, recorded)


def _spreading(family: FamilySet, stem: str, plan: Plan, recorded: Tensors) -> dict[str, Tensor]:
    editor = family.editor(stem)
    assert isinstance(editor, SpreadEditor)
    if isinstance(editor, AlphaEdit):
        feed_projections(family, editor)
    found: dict[str, Tensor] = {}
    for b, cases in enumerate(plan.batches):
        weights = editor.model.weights
        before = {name: weights.read(name).clone() for name in editor.modules}
        requests = editor.requests(family.batch(cases))
        values = editor.values(requests, keep_trace=True)
        found |= _named_values(f"b{b}.z", values, requests, family)
        if isinstance(editor, RECT):  # recorded as they are solved and as they are cut
            updates = editor.spread(requests, values)
            editor.cut(updates, before)
        else:
            updates = editor.write(requests, values)
        for update in updates:
            prefix = f"b{b}.l{layer_index(editor.model.family, update.module)}"
            found[f"{prefix}.K"] = update.keys
            found[f"{prefix}.cur_z"] = update.shown
            found[f"{prefix}.resid"] = update.residual
            found[f"{prefix}.upd"] = update.shift.dense().T
            found[f"{prefix}.dW_applied"] = weights.read(update.module) - before[update.module]
        if isinstance(editor, RECT):
            _mend_flips(editor, f"b{b}", found, recorded)
        editor.after(requests, updates)
        keys = subject_keys(editor.model, requests, editor.modules, editor.key_weights)
        for name, rows in keys.items():
            found[f"b{b}.l{layer_index(editor.model.family, name)}.K_cached"] = rows
    past = editor.past if isinstance(editor, MEMIT | AlphaEdit) else None
    if past is not None:
        found["final.cache_c"] = torch.stack([past.sums[name] for name in editor.modules])
    return found | _final(editor.model)


def feed_projections(family: FamilySet, editor: AlphaEdit) -> None:
    """Let the editor use the recorded projections."""
    layers = family.entry["hparams"]["AlphaEdit"]["layers"]
    by_layer = dict(zip(family.entry["layers"], family.stats["P"], strict=True))
    for layer, name in zip(layers, editor.modules, strict=True):
        editor.projections[name] = by_layer[layer]


def _mend_flips(editor: RECT, prefix: str, found: dict[str, Tensor], recorded: Tensors) -> None:
    """Take over the recorded choice for the few entries that lie at the boundary of the mask.

    Which of them is kept is decided by round-off, and a flipped entry changes everything after it.
    """
    for name in editor.modules:
        key = f"{prefix}.l{layer_index(editor.model.family, name)}.dW_applied"
        if key not in recorded:
            continue
        flipped = (found[key] == 0) != (recorded[key] == 0)
        if 0 < int(flipped.sum()) <= MAX_FLIPS:
            change = torch.where(flipped, recorded[key] - found[key], 0.0)
            found[key] = found[key] + change
            editor.model.weights.set(name, editor.model.weights.read(name) + change)


def _values_only(family: FamilySet, stem: str, plan: Plan) -> dict[str, Tensor]:
    editor = family.editor(stem)
    assert isinstance(editor, SpreadEditor)
    (cases,) = plan.batches
    requests = editor.requests(family.batch(cases))
    values = editor.values(requests, keep_trace=True)
    return {"case_ids": torch.tensor(cases)} | _named_values("z", values, requests, family)


def _named_values(
    name: str, values: Values, requests: Sequence[Request], family: FamilySet
) -> dict[str, Tensor]:
    assert values.trace is not None
    # A recording is as wide as its longest optimisation.
    width = int(values.evaluations.max())
    lookups = [[*r.positions, len(r.essence) - 1] for r in requests]
    return {
        name: values.targets,
        f"{name}_delta": values.delta,
        f"{name}_delta_trace": values.trace[:, :width],
        f"{name}_iters": values.evaluations,
        f"{name}_losses": values.losses[:, :width],
        f"{name}_lookup_idxs": torch.tensor(lookups),
    }


def _final(model: EditableModel) -> dict[str, Tensor]:
    return {
        f"final.l{layer_index(model.family, name)}.W": model.weights.read(name).clone()
        for name in model.modules
    }


def _prune(family: FamilySet, plan: Plan) -> dict[str, Tensor]:
    variants = {m[1] for m in map(re.compile(r"(repo|paper_[^l]+)\.l\d").match, plan.names) if m}
    found: dict[str, Tensor] = {}
    for variant in sorted(variants):
        base = variant.removeprefix("paper_")
        if variant == "repo":
            editor = family.editor("prune", variant="release")
        elif base == "e":
            editor = family.editor("prune")
        else:
            editor = family.editor("prune", log_base=float(base))
        assert isinstance(editor, PRUNE)
        for cases in plan.batches:
            editor.edit(family.batch(cases))
        found |= {n.replace("final", variant): w for n, w in _final(editor.model).items()}
        whole = editor.state_dict()
        for name in editor.modules:
            layer = layer_index(editor.model.family, name)
            original = editor.model.weights.original(name)
            update = whole[f"unrestrained.{name}"] - original
            found[f"l{layer}.S_update"] = singular_values(update).flip(0)
            found[f"l{layer}.S_max_orig"] = singular_values(original)[-1]
    return found


def _rome(family: FamilySet, stem: str, plan: Plan) -> dict[str, Tensor]:
    editor = family.editor(stem)
    assert isinstance(editor, ROME)
    found: dict[str, Tensor] = {}
    for e, cases in enumerate(plan.batches):
        (request,) = editor.requests(family.batch(cases))
        values = editor.value(request, keep_trace=True)
        update = editor.write(request, values)
        named = _named_values("z", values, [request], family)
        assert update.shift.left is not None
        found |= {
            f"e{e}.lookup_idxs": named["z_lookup_idxs"][0],
            f"e{e}.delta_trace": named["z_delta_trace"][0],
            f"e{e}.losses": named["z_losses"][0],
            f"e{e}.target": values.targets[0],
            f"e{e}.cur_input": update.keys[0],
            f"e{e}.cur_output": update.shown[0],
            f"e{e}.u": update.shift.left[0],
            f"e{e}.v_right": update.shift.right[0],
            f"e{e}.W_after": editor.model.weights.read(editor.module).clone(),
        }
    return found


class _WholeModules:
    """Weights and biases of linear layers: what the common release tunes."""

    def __init__(self, model: nn.Module, modules: Sequence[str]) -> None:
        self._model = model
        self._parameters = {
            name: parameter
            for name, parameter in model.named_parameters()
            if name.rpartition(".")[0] in modules
        }
        self.names = tuple(self._parameters)

    def read(self, name: str) -> Tensor:
        return self._parameters[name].detach()

    def set(self, name: str, value: Tensor) -> None:
        self._parameters[name].data.copy_(value)

    def linear(self, name: str) -> nn.Module:
        return self._model.get_submodule(name.rpartition(".")[0])

    def gradient(self, name: str, keys: Tensor, values: Tensor) -> Tensor:
        return values.sum(0) if name.endswith(".bias") else values.T @ keys


def _finetuning(family: FamilySet, stem: str, plan: Plan) -> dict[str, Tensor]:
    """The release tunes biases too, which our editor leaves alone: its loop is given them here."""
    editor = family.editor(stem)
    assert isinstance(editor, FineTuning)
    (cases,) = plan.batches
    model, config = editor.model, editor.config
    tuned = _WholeModules(model.model, model.modules)
    passes = [editor.objectives(family.batch(cases))] * config.steps
    losses = descend(model, tuned, passes, config.descent())
    found = {f"final.{name}": tuned.read(name).clone() for name in tuned.names}
    return found | {"losses": torch.tensor(losses), "case_ids": torch.tensor(cases)}


def _statistics(family: FamilySet, recorded: Tensors) -> dict[str, Tensor]:
    """Moments of the recorded corpus; projections and inverses of the recorded moments.

    Of ours, where the recorded moments are sampled.
    """
    found = family.moments(recorded)
    given = found if family.samples_statistics else recorded
    for name in [n for n in found if n.startswith("mom2.") and f"inv_{n}" in recorded]:
        found[f"inv_{name}"] = torch.linalg.inv(given[name].double())
    found["P"] = family.projections(given)
    return found

"""One recorded run: from its manifest entry to a model, an editor and its streams of batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from rledit.editors import Editor, editor_class
from rledit.editors.hypernetwork_config import HypernetworkConfig
from rledit.model import EditableModel
from rledit.tokenization import EditBatch, Phase, Sample

from .sets import GoldenSet

KINDS = ("edit_tuples", "equiv_tuples", "unrel_tuples")
TOKENS = {"ans": "answer", "all": "all"}

# Setting of a recording → field of the editor's configuration.
HYPERNETWORK_SETTINGS = {
    "rank": "rank",
    "n_blocks": "n_blocks",
    "lr": "initial_step",
    "meta_lr": "meta_lr",
    "loc_coef": "loc_coef",
    "max_grad_norm": "max_grad_norm",
    "token": "tokens",
    "reg_coef": "reg_coef",
    "time_decay": "decay",
    "back_depth": "depth",
    "n_epochs": "train_steps",
}
CLOSED_FORM_SETTINGS = {"lr": "step"}


class SettingsError(ValueError):
    """A setting of a recording that this harness cannot honour."""


@dataclass(frozen=True)
class Stream:
    """The batches of one phase, with the old answers of each loss group where they have any.

    Attributes:
        batches: One batch per step.
        groups: Per step and prompt kind, the padded tensors of each loss group.
    """

    batches: list[EditBatch]
    groups: list[dict[str, list[dict[str, Tensor]]]]


@dataclass(frozen=True)
class Spec:
    """A run of a hypernet set."""

    golden: GoldenSet
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The run's settings."""
        return self.golden.runs[self.name]["settings"]

    @property
    def modules(self) -> tuple[str, ...]:
        """Edited modules; their order is the module index."""
        return tuple(self.settings["modules"])

    @property
    def file(self) -> str:
        """The file of the run's tensors; it may not exist."""
        return f"{self.name}.safetensors"

    @property
    def model_file(self) -> str:
        """The file of the model's weights."""
        return f"lm_{self.settings['lm']}.safetensors"

    @property
    def config_file(self) -> str:
        """The file of the model's configuration."""
        return f"lm_{self.settings['lm']}.config.json"

    @property
    def inputs_file(self) -> str:
        """The model's inputs: for CounterFact those with old answers, else those without."""
        stem = f"inputs_{self.settings['lm']}"
        with_old = self.settings["dataset_name"] == "counterfact"
        found = [f for f in self.golden.files if f == f"{stem}.safetensors" or f"{stem}_" in f]
        for file in sorted(found, key=len):
            if with_old == any(n.endswith("/old_labels") for n in self.golden.names(file)):
                return file
        raise SettingsError(f"no inputs for model {self.settings['lm']!r}, old answers: {with_old}")

    @property
    def trained(self) -> bool:
        """Whether the run trains hypernetworks before its stream."""
        return issubclass(editor_class(self.settings["editor"]["name"]).Config, HypernetworkConfig)

    def init_file(self) -> str:
        """The file whose networks the run starts from: its own, or that of the run it varies."""
        others = [Spec(self.golden, name) for name in (self.name, *self.golden.runs)]
        others = [o for o in others if _has_networks(self.golden.names(o.file))]
        # Equal settings first; then equal networks, where a run varies something else.
        for keys in (None, ("name", "rank", "n_blocks", "lr")):
            for other in others:
                if self._varies(other, keys):
                    return other.file
        raise SettingsError(f"run {self.name!r} has no init/net, nor has a run of like settings")

    def model(self, dtype: torch.dtype = torch.float32) -> EditableModel:
        """The unedited model, ready for the run's modules."""
        raw = json.loads((self.golden.root / self.config_file).read_text())
        config = AutoConfig.for_model(**raw)
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=self.settings["attn"]
        )
        missing, unexpected = model.load_state_dict(
            self.golden.load(self.model_file), strict=not config.tie_word_embeddings
        )
        model.tie_weights()
        if unexpected or set(missing) - {"lm_head.weight"}:
            raise SettingsError(f"{self.model_file}: missing {missing}, unexpected {unexpected}")
        return EditableModel(model, None, self.modules)

    def editor(self, model: EditableModel) -> Editor:
        """The editor with the run's settings and the release's conventions.

        Raises:
            SettingsError: A setting this harness does not know.
        """
        settings = dict(self.settings["editor"])
        cls = editor_class(settings.pop("name"))
        common = {"modules": self.modules, "loss_group": self.settings["set"]["batch"]}
        if not self.trained:
            chosen = _translated(settings, CLOSED_FORM_SETTINGS)
            return cls(model, cls.Config(reference="official", **common, **chosen))
        chosen = _translated(settings, HYPERNETWORK_SETTINGS)
        chosen["tokens"] = TOKENS[chosen.get("tokens", "ans")]
        if self.settings["locfix"]:
            chosen["locality_gradient"] = "edited"
        return cls(model, cls.Config(reference="official", **common, **chosen))

    def known_settings(self) -> set[str]:
        """Paths of the settings that this harness honours."""
        table = HYPERNETWORK_SETTINGS if self.trained else CLOSED_FORM_SETTINGS
        known = {f"settings/editor/{key}" for key in (*table, "name")}
        if not self.trained and self.settings["editor"].get("token", "ans") == "ans":
            known.add("settings/editor/token")
        if self.settings["editor"].get("n_epochs", 1) != 1:
            known.discard("settings/editor/n_epochs")
        elif not self.trained:
            known.add("settings/editor/n_epochs")
        rest = ("modules", "lm", "dataset_name", "locfix", "attn")
        return known | {"settings/set/batch"} | {f"settings/{key}" for key in rest}

    def stream(self, phase: str) -> Stream:
        """The batches of the phase `train` or `valid`."""
        nested: dict[int, dict[str, dict[int, dict[str, Tensor]]]] = {}
        for name, tensor in self.golden.load(self.inputs_file).items():
            where, step, kind, group, field = name.split("/")
            if where == phase:
                kinds = nested.setdefault(int(step), {})
                kinds.setdefault(kind, {}).setdefault(int(group), {})[field] = tensor
        groups = [
            {kind: [g[i] for i in sorted(g)] for kind, g in nested[step].items()}
            for step in sorted(nested)
        ]
        size = self.settings["set"]["batch"]
        return Stream([_batch(step, size) for step in groups], groups)

    def _varies(self, other: Spec, editor_keys: Sequence[str] | None) -> bool:
        """Whether another run has the same model and modules, and an editor alike in its keys."""
        if "settings" not in self.golden.runs[other.name]:
            return False
        ours, theirs = self.settings, other.settings
        if any(ours[key] != theirs[key] for key in ("lm", "modules")):
            return False
        mine, recorded = ours["editor"], theirs["editor"]
        return all(mine.get(k) == recorded.get(k) for k in editor_keys or {**mine, **recorded})


def samples_of(group: dict[str, Tensor]) -> list[Sample]:
    """The samples of one padded loss group."""
    real = group["attention_mask"].bool()
    rows = zip(group["input_ids"], group["labels"], real, strict=True)
    return [Sample(ids[keep], labels[keep]) for ids, labels, keep in rows]


def _batch(kinds: dict[str, list[dict[str, Tensor]]], group_size: int) -> EditBatch:
    phases: list[Phase] = []
    for kind in KINDS:
        groups = [samples_of(group) for group in kinds[kind]]
        if any(len(g) != group_size for g in groups[:-1]) or len(groups[-1]) > group_size:
            sizes = [len(g) for g in groups]
            raise SettingsError(f"{kind}: loss groups of {sizes} samples, settings: {group_size}")
        phases.append(Phase(tuple(s for g in groups for s in g), group_size))
    return EditBatch(phases[0], phases[1], phases[2])


def _translated(settings: dict[str, Any], table: dict[str, str]) -> dict[str, Any]:
    return {table[key]: value for key, value in settings.items() if key in table}


def _has_networks(names: set[str]) -> bool:
    return any(name.startswith("init/net/") and name.endswith(".lr.weight") for name in names)

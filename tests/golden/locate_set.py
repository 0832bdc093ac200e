"""A locate set on disk: one model family at a time, with its editors and its edits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rledit.editors import Editor, editor_class
from rledit.editors.locate_editor import LocateEditor
from rledit.locate.covariance import CovarianceFingerprint, KeyCovariance, accumulate
from rledit.locate.nullspace import null_space
from rledit.model import EditableModel
from rledit.records import Edit
from rledit.tokenization import EditBatch, Encoder, Phase

from .sets import GoldenSet, drawn_of
from .spec import SettingsError

# File of a family → (our editor, its hyperparameters in the manifest, settings of our own).
METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "memit_single": ("memit", "MEMIT", {}),
    "memit_repeat": ("memit", "MEMIT", {}),
    "memit_seq": ("memit", "MEMIT", {"past_keys": True}),
    "prune": ("prune", "MEMIT", {}),
    "rect": ("rect", "MEMIT", {"keep": 0.4}),
    "alphaedit": ("alphaedit", "AlphaEdit", {}),
    "z_earlystop": ("memit", "z_earlystop", {}),
    "rome": ("rome", "ROME", {}),
    "rome_nomom2": ("rome", "ROME_nomom2", {}),
    "ft_plain": ("ft", "FT_plain", {"objective": "prompt_end", "stop_loss": 1e-2}),
    "ft_plain_1tok": ("ft", "FT_plain", {"objective": "prompt_end", "stop_loss": 1e-2}),
    "ft_constr": ("ft", "FT_constr", {"objective": "prompt_end", "stop_loss": 1e-2}),
}

# Hyperparameter of a release → setting of ours.
_VALUE = {
    "v_num_grad_steps": "value_steps",
    "v_lr": "value_lr",
    "v_weight_decay": "value_decay",
    "clamp_norm_factor": "clamp",
    "kl_factor": "kl_factor",
}
_TABLES: dict[str, dict[str, str]] = {
    "memit": {**_VALUE, "mom2_update_weight": "moment_weight"},
    "prune": {**_VALUE, "mom2_update_weight": "moment_weight"},
    "rect": {**_VALUE, "mom2_update_weight": "moment_weight"},
    "alphaedit": {**_VALUE, "nullspace_threshold": "threshold", "L2": "ridge"},
    "rome": {**_VALUE, "mom2_adjustment": "second_moment"},
    "ft": {
        "num_steps": "steps",
        "lr": "lr",
        "weight_decay": "weight_decay",
        "batch_size": "batch_size",
        "norm_constraint": "norm_constraint",
    },
}


@dataclass(frozen=True)
class FamilySet:
    """What a locate set holds of one family."""

    golden: GoldenSet
    name: str

    @property
    def entry(self) -> dict[str, Any]:
        """The family's part of the manifest."""
        return self.golden.manifest["families"][self.name]

    def file(self, stem: str) -> str:
        """Name of a file of tensors inside the set."""
        return f"{self.name}/{stem}.safetensors"

    def load(self, stem: str) -> dict[str, Tensor]:
        """Tensors of a file."""
        return load_file(self.golden.root / self.file(stem))

    @cached_property
    def stats(self) -> dict[str, Tensor]:
        """Key covariance and projections; ours, of the recorded corpus, where they are sampled."""
        recorded = self.load("stats")
        if self.samples_statistics:
            recorded |= self.moments(recorded)
            recorded["P"] = self.projections(recorded)
        return recorded

    @property
    def samples_statistics(self) -> bool:
        """Whether the set holds a part only of the moments and projections."""
        names = self.golden.names(self.file("stats"))
        return any(self.golden.is_sampled(self.file("stats"), name) for name in names)

    def moments(self, recorded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our moments of the recorded corpus, and the count of its keys."""
        layers = sorted(int(n.rpartition(".l")[2]) for n in recorded if n.startswith("mom2."))
        template = self.entry["hparams"]["MEMIT"]["rewrite_module_tmp"]
        model = self.model(tuple(template.format(layer) for layer in layers))
        moments = {
            name: KeyCovariance(
                CovarianceFingerprint(model_hash="", module=name, corpus_hash=""),
                model.linear(name).in_features,
            )
            for name in model.modules
        }
        masks = recorded["corpus_mask"].bool()
        rows = zip(recorded["corpus_ids"], masks, strict=True)
        accumulate(model, [ids[mask].tolist() for ids, mask in rows], moments)
        (count,) = {moment.count for moment in moments.values()}
        by_layer = zip(layers, moments.values(), strict=True)
        found = {f"mom2.l{layer}": moment.mean() for layer, moment in by_layer}
        return found | {"count": torch.tensor(count)}

    def projections(self, moments: Mapping[str, Tensor]) -> Tensor:
        """Our projections of some moments, one a layer."""
        threshold = self.entry["hparams"]["AlphaEdit"]["nullspace_threshold"]
        spaces = [
            null_space(moments[f"mom2.l{layer}"], threshold, f"layer {layer}")
            for layer in self.entry["layers"]
        ]
        return torch.stack([space.projection for space in spaces])

    @cached_property
    def tokenizer(self) -> Any:
        """The family's tokenizer."""
        return AutoTokenizer.from_pretrained(self._path("tokenizer_dir"))

    @cached_property
    def requests(self) -> dict[str, Any]:
        """Requests and batches as recorded."""
        return json.loads(self._path("requests").read_text())

    @cached_property
    def edits(self) -> dict[int, Edit]:
        """Our edits by case id."""
        return {
            r["case_id"]: Edit(
                edit_id=str(r["case_id"]),
                prompt=r["prompt"].replace("{}", r["subject"]),
                target=r["target_new"]["str"],
                subject=r["subject"],
                source=f"{self.name}/requests.json:{r['case_id']}",
            )
            for r in self.requests["requests"]
        }

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder of the family's tokenizer."""
        return self.model(()).encoder

    def batch(self, cases: list[int], group_size: int = 4) -> EditBatch:
        """A batch of edits by case id; locating needs no other prompts."""
        edits = tuple(self.edits[case] for case in cases)
        encoder = self.encoder
        phase = Phase(tuple(encoder.sample(e.prompt, e.target) for e in edits), group_size)
        return EditBatch(phase, phase, phase, edits)

    def model(self, modules: tuple[str, ...]) -> EditableModel:
        """The unedited model, fresh from disk or from its seed."""
        folder, weights = self._path("model_dir"), drawn_of(self.entry)
        made: dict[str, Any] = {
            "attn_implementation": self.golden.manifest["env"]["attn"],
            "dtype": torch.float32,
        }
        if weights:
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), **made)
            model.load_state_dict(weights)
        else:
            model = AutoModelForCausalLM.from_pretrained(folder, **made)
        return EditableModel(model, self.tokenizer, modules)

    def modules(self, hparams: dict[str, Any]) -> tuple[str, ...]:
        """The target modules of some hyperparameters."""
        return tuple(hparams["rewrite_module_tmp"].format(layer) for layer in hparams["layers"])

    def editor(self, stem: str, **changes: Any) -> Editor:
        """Our editor for a file, on a fresh model, with the recorded statistics.

        Raises:
            SettingsError: The file or one of its hyperparameters is not known.
        """
        if stem not in METHODS:
            raise SettingsError(f"no method is known for {stem!r}, only {', '.join(METHODS)}")
        name, key, own = METHODS[stem]
        hparams = self.entry["hparams"][key]
        self.require_usual(name, key)
        cls = editor_class(name)
        settings = {ours: hparams[theirs] for theirs, ours in _TABLES[name].items()}
        if name == "ft":
            settings["norm_constraint"] = hparams["norm_constraint"] or None
        else:
            settings["contexts"] = self.contexts(name)
        modules = self.modules(hparams)
        config = cls.Config(modules=modules, **(settings | own | changes))
        editor = cls(self.model(modules), config)
        if isinstance(editor, LocateEditor) and "statistics" in cls.needs_of(config):
            for layer, module in zip(hparams["layers"], modules, strict=True):
                editor.covariances[module] = self.stats[f"mom2.l{layer}"]
        return editor

    def contexts(self, name: str) -> tuple[str, ...]:
        """Context templates, the bare prompt left out.

        Raises:
            SettingsError: They are not grouped as our averaging has it.
        """
        if name == "rome":
            first, *rest = self.entry["context_templates_rome"]
            groups = [[first], rest]
        else:
            groups = self.entry["context_templates_memit"]
        if groups[0] != ["{}"] or len(groups) > 2:
            raise SettingsError(f"contexts in groups other than the bare prompt and one: {groups}")
        return tuple(groups[1]) if len(groups) == 2 else ()

    def honoured(self, name: str) -> set[str]:
        """Hyperparameters of a method that our editor is given, or that were checked."""
        checked = {"kl_factor"} if name == "ft" else {"mom2_adjustment"}
        return set(_TABLES[name]) | set(self._usual) | checked | {"layers"}

    def require_usual(self, name: str, key: str) -> None:
        """Refuse hyperparameters that ask for what our editors do not offer."""
        usual = dict(self._usual)
        if name == "ft":
            usual |= {"kl_factor": 0}
        elif name != "rome":
            usual |= {"mom2_adjustment": True}
        hparams = self.entry["hparams"][key]
        unusual = {k: hparams[k] for k, v in usual.items() if k in hparams and hparams[k] != v}
        if unusual:
            raise SettingsError(f"{key}: hyperparameters that are not offered: {unusual}")

    @cached_property
    def _usual(self) -> dict[str, Any]:
        model = self.model(())
        family = model.family
        layers = family.layers
        n_layers = len(model.model.get_submodule(layers))  # type: ignore[arg-type]
        return {
            "layer_selection": "all",
            "fact_token": "subject_last",
            "v_loss_layer": n_layers - 1,
            "rewrite_module_tmp": f"{layers}.{{}}.{family.target_modules['down']}",
            "layer_module_tmp": f"{layers}.{{}}",
            "mlp_module_tmp": f"{layers}.{{}}.{family.mlp}",
            "attn_module_tmp": f"{layers}.{{}}.{family.attention}",
            "ln_f_module": family.final_norm,
            "lm_head_module": "lm_head",
            "mom2_dtype": "float32",
            "wd_power_law": None,
        }

    def _path(self, key: str) -> Path:
        return self.golden.root / self.entry[key]

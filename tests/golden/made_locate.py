"""Make a small locate set with our own editors, to test the harness itself.

It proves nothing about parity: its numbers are ours. It has what the recorded set at hand lacks:
edited layers that are not neighbours, other sizes, other batches, another order of things.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from rledit.editors.finetuning import prompt_end
from rledit.locate.contexts import make_contexts
from rledit.locate.requests import make_requests
from rledit.world.words import word_tokenizer

from .locate_observe import Plan, observe
from .locate_set import FamilySet
from .sets import DTYPES, GoldenSet

WORDS = [f"w{i:02}" for i in range(36)]
TEMPLATES = ["w30 w31 {}", "w32 {}", "w33 w34 w35 {}"]
LAYERS = [1, 3]
BATCHES = [[0, 1, 2], [3, 4]]
FAMILY = "tiny"
_VALUE: dict[str, Any] = {
    "layers": LAYERS,
    "layer_selection": "all",
    "fact_token": "subject_last",
    "v_num_grad_steps": 5,
    "v_lr": 0.3,
    "v_loss_layer": 4,
    "v_weight_decay": 0.2,
    "clamp_norm_factor": 0.9,
    "kl_factor": 0.1,
    "mom2_adjustment": True,
    "mom2_update_weight": 20.0,
    "rewrite_module_tmp": "model.layers.{}.mlp.down_proj",
    "model_name": "tiny",
    "mom2_dtype": "float32",
}
_RANK_ONE = {k: v for k, v in _VALUE.items() if k != "mom2_update_weight"} | {"layers": [2]}
_TUNING: dict[str, Any] = {
    "layers": [2],
    "num_steps": 3,
    "lr": 0.01,
    "weight_decay": 0.0,
    "kl_factor": 0,
    "norm_constraint": False,
    "rewrite_module_tmp": "model.layers.{}.mlp.down_proj",
    "batch_size": 2,
    "wd_power_law": None,
}
_HPARAMS: dict[str, dict[str, Any]] = {
    "MEMIT": _VALUE,
    "AlphaEdit": {**_VALUE, "nullspace_threshold": 0.0, "L2": 2.0},
    "z_earlystop": {**_VALUE, "v_num_grad_steps": 30, "clamp_norm_factor": 20.0},
    "ROME": _RANK_ONE,
    "ROME_nomom2": {**_RANK_ONE, "mom2_adjustment": False},
    "FT_plain": _TUNING,
    "FT_constr": {**_TUNING, "norm_constraint": 0.004},
}
_PRUNE_NAMES = frozenset({"repo.l1.W", "paper_e.l1.W", "paper_1.5.l1.W"})
_PLANS: dict[str, Plan] = {
    "memit_single": Plan([[0, 1, 2, 3, 4]], frozenset()),
    "memit_repeat": Plan(BATCHES, frozenset()),
    "memit_seq": Plan(BATCHES, frozenset()),
    "alphaedit": Plan(BATCHES, frozenset()),
    "rect": Plan(BATCHES, frozenset()),
    "prune": Plan(BATCHES, _PRUNE_NAMES),
    "rome": Plan([[0], [1], [2]], frozenset()),
    "rome_nomom2": Plan([[0]], frozenset()),
    "z_earlystop": Plan([[1, 4]], frozenset()),
    "ft_plain": Plan([[0, 1, 2]], frozenset()),
    "ft_constr": Plan([[0, 1, 2]], frozenset()),
}


def make_locate_set(root: Path) -> GoldenSet:
    """Write a set into an empty directory."""
    torch.manual_seed(3)
    (root / FAMILY).mkdir()
    _write_model(root / FAMILY)
    entry: dict[str, Any] = {
        "family": "llama",
        "layers": LAYERS,
        "hparams": json.loads(json.dumps(_HPARAMS)),
        "context_templates_memit": [["{}"], TEMPLATES],
        "context_templates_rome": ["{}", *TEMPLATES],
        "nullspace": {},
        "model_dir": f"{FAMILY}/model",
        "tokenizer_dir": f"{FAMILY}/tokenizer",
        "requests": f"{FAMILY}/requests.json",
        "files": {},
    }
    manifest = {"env": {"attn": "eager"}, "tensor_meaning": {}, "families": {FAMILY: entry}}
    save_manifest(root, manifest)
    _write_requests(root)
    _write_covariance(root, manifest)
    for stem, plan in _PLANS.items():
        family = FamilySet(GoldenSet(root, "locate"), FAMILY)
        write_tensors(root, manifest, stem, observe(family, stem, plan, {}))
    return GoldenSet(root, "locate")


def write_tensors(
    root: Path, manifest: dict[str, Any], stem: str, tensors: dict[str, Tensor]
) -> None:
    """Write a file of the family, and its entry in the manifest."""
    floats = {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
    tensors = {name: tensor.contiguous().clone() for name, tensor in floats.items()}
    path = root / FAMILY / f"{stem}.safetensors"
    save_file(tensors, path)
    listed = {n: {"shape": list(t.shape), "dtype": DTYPES[t.dtype]} for n, t in tensors.items()}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest["families"][FAMILY]["files"][path.name] = {"sha256": digest, "tensors": listed}
    save_manifest(root, manifest)


def save_manifest(root: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest."""
    (root / "manifest.json").write_text(json.dumps(manifest))


def _write_model(folder: Path) -> None:
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=28,
        num_hidden_layers=5,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=len(WORDS) + 4,
        initializer_range=0.25,
        max_position_embeddings=32,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    word_tokenizer(WORDS, add_bos=True).save_pretrained(folder / "tokenizer")


def _write_requests(root: Path) -> None:
    """Requests as a recording has them; their tokens are ours."""
    raw = [
        ("{} w01 w02", "w03", "w04"),
        ("w05 {} w06", "w07 w08", "w09 w10"),
        ("w11 w12 {}", "w13", "w14"),
        ("{} w15", "w16 w17", "w18 w19"),
        ("w20 w21 {} w22", "w23", "w24"),
    ]
    requests: list[dict[str, Any]] = [
        {"case_id": i, "prompt": prompt, "subject": subject, "target_new": {"str": target}}
        for i, (prompt, subject, target) in enumerate(raw)
    ]
    path = root / FAMILY / "requests.json"
    path.write_text(json.dumps({"requests": requests, "batches": BATCHES}))
    family = FamilySet(GoldenSet(root, "locate"), FAMILY)
    encoder = family.encoder
    contexts = make_contexts(TEMPLATES)
    for request in requests:
        edit = family.edits[request["case_id"]]
        (made,) = make_requests(encoder, [edit], contexts)
        essence = encoder.prompt_ids(f"{edit.subject} is a")
        prompts = [template.replace("{}", edit.prompt) for template in contexts.all]
        lookups = [*made.positions, len(made.essence) - 1]
        request |= {
            "target_ids": made.rewriting[0].answer_ids.tolist(),
            "target_ids_raw": prompt_end(encoder, [edit]).targets[0].tolist(),
            "z_prompt_ids": [*(s.input_ids.tolist() for s in made.rewriting), essence],
            "z_lookup_idxs": lookups,
            "key_texts": prompts,
            "key_ids": [encoder.prompt_ids(prompt) for prompt in prompts],
            "key_lookup_idxs": lookups[:-1],
            "cur_z_text": edit.prompt,
            "cur_z_ids": encoder.prompt_ids(edit.prompt),
            "cur_z_lookup_idx": lookups[0],
        }
    path.write_text(json.dumps({"requests": requests, "batches": BATCHES}))


def _write_covariance(root: Path, manifest: dict[str, Any]) -> None:
    """Moments of random texts, and a threshold between two of their eigenvalues."""
    mask = torch.ones(40, 12, dtype=torch.long)
    mask[::3, 9:] = 0
    given: dict[str, Tensor] = {
        "corpus_ids": torch.randint(4, len(WORDS) + 4, mask.shape) * mask,
        "corpus_mask": mask,
    }
    layers = {"mom2.l1", "mom2.l2", "mom2.l3"}
    entry = manifest["families"][FAMILY]
    entry["hparams"]["AlphaEdit"]["nullspace_threshold"] = 1e9
    save_manifest(root, manifest)
    family = FamilySet(GoldenSet(root, "locate"), FAMILY)
    empty = {name: torch.eye(28) for name in layers}
    moments = {n: t for n, t in observe(family, "stats", _PLANS["rome"], given | empty).items()}
    del moments["P"]
    spectra = [torch.linalg.eigvalsh(moments[f"mom2.l{layer}"].double()) for layer in LAYERS]
    threshold = float(spectra[0][10:12].mean())
    entry["hparams"]["AlphaEdit"]["nullspace_threshold"] = threshold
    for layer, values in zip(LAYERS, spectra, strict=True):
        rank = int((values < threshold).sum())
        entry["nullspace"][str(layer)] = {"dim": rank, "S_just_below": float(values[rank - 1])}
    save_manifest(root, manifest)
    family = FamilySet(GoldenSet(root, "locate"), FAMILY)
    again = given | moments | {"inv_mom2.l2": torch.eye(28)}
    found = observe(family, "stats", _PLANS["rome"], again)
    write_tensors(root, manifest, "stats", given | moments | found)

"""Make a small hypernet set with our own editors, to test the harness itself.

It proves nothing about parity: its numbers are ours. It has what a recorded set may have and the
one at hand may lack: two linear shapes (gate, up, down), other sizes, other run names.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from .judge import METRICS, perform
from .ledger import Ledger
from .names import network_state
from .sets import DTYPES, GoldenSet
from .spec import KINDS, Spec
from .units import observe_units

GROUP, N_GROUPS, N_STEPS, VOCABULARY = 3, 2, 3, 40
MODULES = [
    f"model.layers.{layer}.mlp.{kind}_proj" for kind in ("gate", "up", "down") for layer in (1, 2)
]
NETWORK = {
    "rank": 4,
    "n_blocks": 3,
    "lr": 0.02,
    "meta_lr": 0.002,
    "loc_coef": 0.4,
    "max_grad_norm": 0.7,
    "batch_size": 8,
    "token": "ans",
    "reg_coef": 0.01,
    "n_epochs": 1,
}
TRAJECTORY = {"name": "rledit", "time_decay": 0.9, "back_depth": 2}
RUNS: dict[str, dict[str, Any]] = {
    "one": {"editor": NETWORK | TRAJECTORY},
    "one_fixed": {"editor": NETWORK | TRAJECTORY, "locfix": True},
    "one_choice": {"editor": NETWORK | TRAJECTORY, "dataset_name": "counterfact"},
    "two": {"editor": NETWORK | {"name": "malmen"}},
    "three": {"editor": NETWORK | {"name": "mend", "token": "all"}},
    "four": {"editor": {"name": "ultraedit", "lr": 0.02, "token": "ans"}},
}


def make_set(root: Path, runs: Iterable[str] = tuple(RUNS), key_scale: float = 1.0) -> GoldenSet:
    """Write a set into an empty directory.

    Args:
        root: The directory.
        runs: Which of `RUNS` are recorded.
        key_scale: What the inputs of the gates and ups are multiplied with; the initial step is
            divided by it, so that edits stay of one strength.
    """
    torch.manual_seed(5)
    manifest: dict[str, Any] = {"files": {}, "runs": {}, "meanings": []}
    _write_model(root, manifest, key_scale)
    for file, old_answers in (("inputs_tiny", False), ("inputs_tiny_old", True)):
        write_file(root, manifest, f"{file}.safetensors", _inputs(old_answers))
    defaults = {"dataset_name": "zsre", "locfix": False, "lm": "tiny", "attn": "eager"}
    for run in runs:
        changed = copy.deepcopy(RUNS[run])
        changed["editor"]["lr"] /= key_scale
        shared = {"modules": MODULES, "set": {"batch": GROUP}}
        manifest["runs"][run] = {"settings": defaults | shared | changed}
    _save_manifest(root, manifest)
    for run in runs:
        _record(root, manifest, run)
    _write_units(root, manifest)
    return GoldenSet(root, "hypernet")


def write_file(root: Path, manifest: dict[str, Any], file: str, tensors: dict[str, Tensor]) -> None:
    """Write a file of tensors, and its entry in the manifest."""
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(tensors, root / file)
    listed = {n: {"shape": list(t.shape), "dtype": DTYPES[t.dtype]} for n, t in tensors.items()}
    manifest["files"][file] = {"tensors": listed}


def _save_manifest(root: Path, manifest: dict[str, Any]) -> None:
    (root / "manifest.json").write_text(json.dumps(manifest))


def _write_model(root: Path, manifest: dict[str, Any], key_scale: float) -> None:
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=VOCABULARY,
        initializer_range=0.2,
        max_position_embeddings=32,
        tie_word_embeddings=False,
    )
    raw = config.to_dict()
    (root / "lm_tiny.config.json").write_text(json.dumps(raw))
    manifest["files"]["lm_tiny.config.json"] = json.loads(json.dumps(raw))
    weights = LlamaForCausalLM(config).state_dict()
    for name, weight in weights.items():
        if "post_attention_layernorm" in name:
            weight *= key_scale
        elif "gate_proj" in name or "up_proj" in name:
            weight /= key_scale
    write_file(root, manifest, "lm_tiny.safetensors", weights)


def _inputs(old_answers: bool) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for phase in ("train", "valid"):
        for step in range(N_STEPS):
            for kind in KINDS:
                for group in range(N_GROUPS):
                    prefix = f"{phase}/{step}/{kind}/{group}"
                    for name, value in _group(old_answers):
                        tensors[f"{prefix}/{name}"] = value
    return tensors


def _group(old_answers: bool) -> Iterator[tuple[str, Tensor]]:
    """One padded loss group of prompts of 3 to 5 tokens, answers of 2 or 3, old ones of 1 or 2."""
    prompts = torch.randint(3, 6, (GROUP,)).tolist()
    answers = torch.randint(2, 4, (GROUP,)).tolist()
    width = max(p + a - 1 for p, a in zip(prompts, answers, strict=True))
    ids, mask = torch.zeros(GROUP, width).long(), torch.zeros(GROUP, width).long()
    labels = torch.full((GROUP, width), -100)
    old = torch.zeros(GROUP, max(prompts) + 1).long()
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        length = prompt + answer - 1
        ids[row, :length] = torch.randint(1, VOCABULARY, (length,))
        mask[row, :length] = 1
        labels[row, prompt - 1 : length] = torch.randint(1, VOCABULARY, (answer,))
        old[row, : prompt - 1] = -100
        old[row, prompt - 1 : prompt + 1] = torch.randint(1, VOCABULARY, (2,))
    yield from (("input_ids", ids), ("attention_mask", mask), ("labels", labels))
    if old_answers:
        yield "old_labels", old


def _record(root: Path, manifest: dict[str, Any], run: str) -> None:
    """Run one of our editors and write what it does the way a recording is written."""
    spec = Spec(GoldenSet(root, "hypernet"), run)
    varies = run.startswith("one_")
    if spec.trained and not varies:
        write_file(root, manifest, spec.file, _initial_networks(spec))
        _save_manifest(root, manifest)
        spec = Spec(GoldenSet(root, "hypernet"), run)
    initial = spec.golden.load(spec.file) if spec.trained and not varies else {}
    wanted = [f"train/step{step}/weight_grad/{MODULES[0]}" for step in range(N_STEPS)]
    observer, before, after = perform(spec, Ledger(spec.golden), wanted)
    write_file(root, manifest, spec.file, observer.tensors | initial)
    numbers = dict(observer.numbers)
    for metric, kind in METRICS.items():
        numbers[f"metrics/{metric}"] = float(after[kind].mean())
        numbers[f"before/{kind}"] = float(before[kind].mean())
        numbers[f"succ/{kind}"] = after[kind].tolist()
    manifest["runs"][run] |= _nested(numbers)
    _save_manifest(root, manifest)


def _initial_networks(spec: Spec) -> dict[str, Tensor]:
    """Networks whose every parameter is away from the identity."""
    editor: Any = spec.editor(spec.model())
    return {
        f"init/net/{shape}.{name}": value + 0.1 * torch.randn_like(value)
        if "lr" not in name
        else value * (1 + 0.1 * torch.rand_like(value))
        for shape, network in editor.networks.items()
        for name, value in network_state(network).items()
    }


def _write_units(root: Path, manifest: dict[str, Any]) -> None:
    prefix = "rms/case"
    tensors = {f"{prefix}/{i}/x": torch.randn(n, 7) for i, n in enumerate((4, 2, 9))}
    tensors[f"{prefix}/query"] = torch.randn(3, 7)
    outputs = observe_units("rms", tensors).outputs
    write_file(root, manifest, "small.safetensors", tensors | outputs)
    manifest["runs"]["small"] = {"rms_one_row_is_nan": True}
    _save_manifest(root, manifest)


def _nested(numbers: dict[str, Any]) -> dict[str, Any]:
    """Paths back to nested dictionaries and lists."""
    root: dict[str, Any] = {}
    for path, value in numbers.items():
        head, *rest = path.split("/")
        if not rest:
            root[head] = value
        elif len(rest) == 1:
            root.setdefault(head, {})[rest[0]] = value
        else:
            items = root.setdefault(head, [])
            items += [{} for _ in range(int(rest[0]) + 1 - len(items))]
            items[int(rest[0])][rest[1]] = value
    return root

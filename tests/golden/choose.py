"""Choose the small sets inside the project from the full recordings.

    python -m tests.golden.choose DIRECTORY_OF_THE_FULL_SETS tests/golden/recorded

A tensor of a full set is kept whole, sampled (every n-th entry) or left out; the manifest says
which. The random models are not copied: their seeds and draws are listed instead, after they have
been found to give the recorded weights bit by bit.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .drawn import drawn, sums
from .sets import DTYPES

# Every n-th entry; has no factor in common with the widths of the models, so no column is missed.
EVERY = 11
SMALL = 512
# Numbers that the Llama model's construction drew before those it was left with.
FIRST_DRAWS = 290816
Rules = tuple[str, str]

# What is kept whole, and what is sampled, by full match; the rest is left out. A rule for whole
# tensors comes first. Inputs, first keys and the last gradient have to be whole: they are used.
_MODULE = r"model\.layers\.3\.mlp\.up_proj"
_ALWAYS = (
    r"init/.*|.*rows_per_minibatch|.*/succ/.*"
    r"|(train/step[01]|train/final|valid/final)/.*normalizer.*"
)
HYPERNET: dict[str, Rules] = {
    "units": (r"(rms|net|loss|succ|succ_old)/.*", r""),
    "rledit_llama": (
        rf"{_ALWAYS}|train/step0/(keys|param_shift)/{_MODULE}"
        r"|train/step3/net_grad_postclip/.*|train/final/net/.*",
        r"train/step[01]/(keys|values_grad|param_shift|net_grad_preclip|weight_grad)/.*"
        r"|train/step[23]/(param_shift|net_grad_preclip)/.*"
        r"|valid/step[03]/param_shift/.*|valid/final/weight/.*",
    ),
    "malmen_llama": (
        rf"{_ALWAYS}|train/step0/(keys|param_shift)/{_MODULE}",
        r"train/step[01]/(keys|values_grad|param_shift|net_grad_preclip)/.*"
        r"|train/step[03]/net_after_step/.*|train/step3/param_shift/.*"
        r"|valid/step[03]/param_shift/.*|valid/final/weight/.*",
    ),
    "mend_llama": (
        _ALWAYS,
        r"train/step[01]/(keys|values_grad|param_shift|net_grad_preclip)/.*"
        r"|train/step[03]/net_after_step/.*|train/step3/param_shift/.*"
        r"|valid/step[03]/param_shift/.*|valid/final/weight/.*",
    ),
    "ultraedit_llama": (
        rf"{_ALWAYS}|valid/step0/(keys|param_shift)/{_MODULE}|valid/step0/normalizer/.*",
        r"valid/step[03]/(keys|values_grad|param_shift)/.*|valid/final/weight/.*",
    ),
    "inputs_llama": (r".*", r""),
    "lm_llama": (r".*norm\.weight", r""),
}
_SPREAD_WHOLE = r"b\d\.(l\d\.(K|K_cached|cur_z|resid)|z.*)"
_SPREAD_SAMPLED = r"b\d\.l\d\.upd|final\..*"
LOCATE: dict[str, Rules] = {
    "stats": (r"corpus_.*|count", r"mom2\..*|inv_mom2\..*|P"),
    "memit_single": (_SPREAD_WHOLE, _SPREAD_SAMPLED),
    "alphaedit": (_SPREAD_WHOLE, _SPREAD_SAMPLED),
    "rome": (r"e\d\.(?!W_after).*", r"e\d\.W_after"),
    "ft_plain": (r"losses|case_ids|.*bias", r"final\..*"),
}
FAMILY = "gptj"
HPARAMS = ("MEMIT", "AlphaEdit", "ROME", "FT_plain")


def main(full: Path, out: Path) -> None:
    """Write both small sets below ``out``, in place of those that are there."""
    for kind, choose in (("hypernet", choose_hypernet), ("locate", choose_locate)):
        shutil.rmtree(out / kind, ignore_errors=True)
        (out / kind).mkdir(parents=True)
        choose(full / kind, out / kind)


def choose_hypernet(full: Path, out: Path) -> None:
    """RLEdit, MALMEN, MEND and UltraEdit on the Llama model, and the unit vectors."""
    manifest = json.loads((full / "manifest.json").read_text())
    files: dict[str, Any] = {}
    for stem, rules in HYPERNET.items():
        file = f"{stem}.safetensors"
        files[file] = _write(full / file, out / file, rules, manifest["files"][file])
    config = "lm_llama.config.json"
    files[config] = manifest["files"][config]
    shutil.copyfile(full / config, out / config)
    seed = manifest["runs"]["rledit_llama"]["settings"]["set"]["lm_seed"]["llama"]
    files["lm_llama.safetensors"]["drawn"] = _drawn_entry(
        seed, _llama_draws(files[config]), load_file(full / "lm_llama.safetensors")
    )
    manifest["files"] = files
    manifest["runs"] = {name: run for name, run in manifest["runs"].items() if name in HYPERNET}
    _save_manifest(out, manifest)


def choose_locate(full: Path, out: Path) -> None:
    """MEMIT, ROME, AlphaEdit and FT on the GPT-J model."""
    manifest = json.loads((full / "manifest.json").read_text())
    family = manifest["families"][FAMILY]
    (out / FAMILY / "model").mkdir(parents=True)
    shutil.copytree(full / family["tokenizer_dir"], out / family["tokenizer_dir"])
    for file in (f"{family['model_dir']}/config.json", family["requests"]):
        (out / file).write_text(json.dumps(json.loads((full / file).read_text())) + "\n")
    listed = family["files"]
    family["files"] = {
        f"{stem}.safetensors": _write(
            full / FAMILY / f"{stem}.safetensors",
            out / FAMILY / f"{stem}.safetensors",
            rules,
            listed[f"{stem}.safetensors"],
        )
        for stem, rules in LOCATE.items()
    }
    family["hparams"] = {name: family["hparams"][name] for name in HPARAMS}
    settings = manifest["generator_config"]
    weights = load_file(full / family["model_dir"] / "model.safetensors")
    draws = _gptj_draws(weights, settings[FAMILY]["gains"])
    family["drawn"] = _drawn_entry(settings["seed"], draws, weights)
    manifest["families"] = {FAMILY: family}
    meanings = manifest["tensor_meaning"].items()
    manifest["tensor_meaning"] = {k: v for k, v in meanings if k.split(":")[0] in LOCATE}
    manifest["file_meaning"] = {k: _plain(manifest["file_meaning"][k]) for k in LOCATE}
    for stem in LOCATE:
        family["files"][f"{stem}.safetensors"].pop("meaning", None)
    kept = ("source", "env", "orientation", "patches", "file_meaning", "families", "tensor_meaning")
    _save_manifest(out, {name: manifest[name] for name in kept})


def _plain(meaning: str) -> str:
    """A file's meaning without what it says of other sets."""
    return re.sub(r" \(public: [^)]*\)", "", meaning)


def _write(source: Path, target: Path, rules: Rules, listed: dict[str, Any]) -> dict[str, Any]:
    """Write the chosen tensors of a file; returns the file's entry in the manifest."""
    whole, sampled = rules
    tensors: dict[str, Tensor] = {}
    entries: dict[str, Any] = {}
    for name, tensor in load_file(source).items():
        entry = dict(listed["tensors"][name])
        if re.fullmatch(sampled, name) and not re.fullmatch(whole, name):
            if tensor.numel() > SMALL:
                entry |= {"of": list(tensor.shape), "every": EVERY}
                tensor = tensor.flatten()[::EVERY]
        elif not re.fullmatch(whole, name):
            continue
        tensors[name] = tensor.contiguous().clone()
        entries[name] = entry | {"shape": list(tensor.shape), "dtype": DTYPES[tensor.dtype]}
    save_file(tensors, target)
    content = target.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return listed | {"bytes": len(content), "sha256": digest, "tensors": entries}


def _drawn_entry(seed: int, draws: list[Any], weights: dict[str, Tensor]) -> dict[str, Any]:
    """A manifest's ``drawn`` entry.

    Raises:
        ValueError: The draws do not give the recorded weights bit by bit.
    """
    entry: dict[str, Any] = {"seed": seed, "draws": draws}
    found = drawn(entry)
    wrong = [name for name, tensor in found.items() if not torch.equal(tensor, weights[name])]
    if wrong:
        raise ValueError(f"drawn from seed {seed}, these differ from the recorded model: {wrong}")
    return entry | {"sums": {name: sums(tensor) for name, tensor in found.items()}}


def _llama_draws(config: dict[str, Any]) -> list[Any]:
    """As transformers initialises the model: after passing over first draws of the same weights."""
    width, inner, vocabulary = (
        config[name] for name in ("hidden_size", "intermediate_size", "vocab_size")
    )
    heads = config["num_key_value_heads"] * config["head_dim"]
    shapes = {
        "self_attn.q_proj": [width, width],
        "self_attn.k_proj": [heads, width],
        "self_attn.v_proj": [heads, width],
        "self_attn.o_proj": [width, width],
        "mlp.gate_proj": [inner, width],
        "mlp.up_proj": [inner, width],
        "mlp.down_proj": [width, inner],
    }
    once = vocabulary * width
    scale = config["initializer_range"]

    def named() -> Iterator[list[Any]]:
        yield [None, [FIRST_DRAWS], 1.0, 1, 0.0]
        yield ["model.embed_tokens.weight", [vocabulary, width], scale, 1, 0.0]
        for i in range(config["num_hidden_layers"]):
            for name, shape in shapes.items():
                yield [f"model.layers.{i}.{name}.weight", shape, scale, 1, 0.0]
        yield [None, [once], 1.0, 1, 0.0]
        yield ["lm_head.weight", [vocabulary, width], scale, 1, 0.0]

    return list(named())


def _gptj_draws(weights: dict[str, Tensor], gains: dict[str, float]) -> list[Any]:
    """In the order of the names: matrices by gain over √fan-in, vectors by 0.1 around 0 or 1."""
    found: list[Any] = []
    for name in sorted(weights):
        tensor = weights[name]
        if tensor.ndim == 1:
            mean = 1.0 if re.search(r"ln_\w+\.weight$", name) else 0.0
            found.append([name, list(tensor.shape), 0.1, 1, mean])
            continue
        part = "emb" if "wte" in name else name.split(".")[-2]
        fan = 1 if part == "emb" else tensor.shape[1]
        gain = gains.get(part, gains["default"])
        found.append([name, list(tensor.shape), gain, fan, 0.0])
    return found


def _save_manifest(out: Path, manifest: dict[str, Any]) -> None:
    """Indented, with every innermost list or tensor's entry on one line."""
    text = json.dumps(manifest, indent=1)
    for innermost in (r"\[[^][{}]*\]", r"\{[^{}]*\}"):
        text = re.sub(innermost, lambda m: re.sub(r"\s*\n\s*", " ", m[0]), text)
    (out / "manifest.json").write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Quantised checkpoints: said what they are, dequantised where that can be, else refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.inputs.checkpoints import CheckpointError, weight_files
from pipeline.inputs.model_loading import load_model
from pipeline.inputs.quantised_weights import quantised
from pipeline.plan.architecture import architecture_of
from pipeline.plan.cell_data import read_metadata
from pipeline.plan.cell_keys import identity_of
from pipeline.plan.checks import check_sharded
from pipeline.plan.estimate import estimate
from pipeline.plan.estimate.needs import model_needs
from pipeline.plan.estimate.summary import summary
from pipeline.plan.preflight import preflight
from pipeline.run.stages.prepare import open_model
from tests.unit.pipeline.inputs.test_checkpoints import cell, untrained  # noqa: F401

BLOCK = 16


def in_fp8(folder: Path) -> dict[str, Tensor]:
    """Pack a folder's matrices of layers into blocks of FP8; returns what they stand for."""
    plain: dict[str, Tensor] = {}
    for path in weight_files(folder):
        stored: dict[str, Tensor] = {}
        for name, value in load_file(path).items():
            stored[name] = plain[name] = value
            if "_proj" not in name:
                continue
            rows, columns = value.shape
            blocks = value.view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
            scale = blocks.abs().amax((1, 3), keepdim=True) / 448
            packed = (blocks / scale).to(torch.float8_e4m3fn)
            stored[name] = packed.reshape(rows, columns)
            stored[f"{name}_scale_inv"] = scale.squeeze((1, 3))
            plain[name] = (packed.float() * scale).reshape(rows, columns)
        save_file(stored, path, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    names = {n: p.name for p in weight_files(folder) for n in load_file(p)}
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    say(folder, FP8)
    return plain


def say(folder: Path, packing: dict[str, Any], **more: Any) -> None:
    """Write a quantization_config into a folder's config.json."""
    values = json.loads((folder / "config.json").read_text())
    values |= {"quantization_config": packing, **more}
    (folder / "config.json").write_text(json.dumps(values))


FP8 = {
    "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
    "weight_block_size": [BLOCK, BLOCK],
}  # fmt: skip


@pytest.fixture
def folder(untrained: Path, tmp_path: Path) -> Path:  # noqa: F811
    return Path(shutil.copytree(untrained, tmp_path / "model"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fp8_is_dequantised_while_loading(folder: Path, dtype: str) -> None:
    plain = in_fp8(folder)
    chosen = cell(folder, f"models.llama-tiny.dtype={dtype}")
    preflight([chosen])
    model = open_model(chosen, folder).model
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    limit = 1e-7 if dtype == "float32" else 5e-3
    for name, value in plain.items():
        assert torch.allclose(model.get_parameter(name).float(), value, rtol=limit, atol=1e-7)
    assert not hasattr(model.config, "quantization_config")


def test_plan_identity_and_results_say_it(folder: Path) -> None:
    before = cell(folder)
    assert "dequantised" not in identity_of(before)["model"]
    assert "weights" not in read_metadata(before)
    in_fp8(folder)
    chosen = cell(folder)
    assert identity_of(chosen)["model"]["dequantised"] == "fp8, 8 bits"
    assert read_metadata(chosen)["weights"] == {"dequantised": "fp8, 8 bits"}
    architecture = architecture_of(chosen)
    (need,) = model_needs(chosen, architecture)
    files = sum(path.stat().st_size for path in weight_files(folder)) / 1e9
    whole = architecture.parameters * 4 / 1e9
    assert files < whole
    assert f"({files:.2g} GB quantised by fp8, 8 bits" in need.text
    assert f"dequantised while loading, to {whole:.2g} GB in float32" in need.text
    (title,) = (line for line in summary(estimate([chosen], []), {}) if "parameters" in line)
    assert title.endswith("config.json; dequantised from fp8, 8 bits")


def test_a_dequantised_model_cannot_be_sharded(folder: Path) -> None:
    in_fp8(folder)
    shards = "resources={gpus: 1, ranks: 2, sharding: zero3}"
    with pytest.raises(ConfigError, match=r"quantised checkpoint \(fp8, 8 bits\).*sharding: none"):
        check_sharded(cell(folder, shards))


@pytest.mark.parametrize(
    ("packing", "words"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, 4 bits"),
        ({"load_in_8bit": True}, "bitsandbytes, 8 bits"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq, 4 bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemm"}, "awq, 4 bits"),
        ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 3}}}, "hqq, 3"),
        ({"quant_method": "quanto", "weights": "int8"}, "quanto, 8 bits"),
        ({"quant_method": "mxfp4"}, "mxfp4, 4 bits"),
        ({"quant_method": "aqlm", "nbits_per_codebook": 16}, "aqlm"),
        ({"quant_method": "bitnet"}, "bitnet"),
        ({"quant_method": "of tomorrow", "bits": 2}, "of tomorrow, 2 bits"),
        ({"quant_algo": "NVFP4"}, "NVFP4"),
    ],
)
def test_other_formats_are_refused_before_work(
    folder: Path, packing: dict[str, Any], words: str
) -> None:
    say(folder, packing, _name_or_path="owner/plain-model")
    message = (
        rf"its weights are quantised \({words}.*written into plain matrices.*"
        r"take the unquantised checkpoint that it was made from \(owner/plain-model\)"
    )
    for refused in (
        lambda: preflight([cell(folder)]),
        lambda: estimate([cell(folder)], []),
        lambda: load_model(folder, torch.float32),
    ):
        with pytest.raises(CheckpointError, match=message):
            refused()


def test_compressed_tensors_names_the_package_it_needs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    say(folder, {"quant_method": "compressed-tensors", "config_groups": groups})
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(CheckpointError, match=r"compressed-tensors, 4 bits.*pip install compr"):
        preflight([cell(folder)])


def test_compressed_tensors_are_dequantised_where_the_package_is(folder: Path) -> None:
    pytest.importorskip("compressed_tensors")
    plain: dict[str, Tensor] = {}
    for path in weight_files(folder):
        stored: dict[str, Tensor] = {}
        for name, value in load_file(path).items():
            stored[name] = plain[name] = value
            if "_proj" in name:
                scale = value.abs().amax(1, keepdim=True) / 448
                stored[name] = (value / scale).to(torch.float8_e4m3fn)
                stored[f"{name}_scale"] = scale
                plain[name] = stored[name].float() * scale
        save_file(stored, path, metadata={"format": "pt"})
    names = {n: p.name for p in weight_files(folder) for n in load_file(p)}
    index = {"metadata": {}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    weights = {
        "num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False,
    }  # fmt: skip
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    say(
        folder,
        {
            "quant_method": "compressed-tensors", "format": "float-quantized",
            "config_groups": groups, "ignore": ["lm_head"], "quantization_status": "compressed",
        },
    )  # fmt: skip
    preflight([cell(folder)])
    model = load_model(folder, torch.float32)
    assert all(torch.allclose(model.get_parameter(n), v) for n, v in plain.items())


def _stored_anew(folder: Path, drop: str) -> None:
    """Write a folder's weights without the tensors whose names end so."""
    for path in weight_files(folder):
        kept = {n: v for n, v in load_file(path).items() if not n.endswith(drop)}
        save_file(kept, path, metadata={"format": "pt"})
    index = {n: p.name for p in weight_files(folder) for n in load_file(p)}
    said = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(said)


@pytest.mark.parametrize("named", [True, False])
def test_an_fp8_matrix_without_its_scales_is_refused(folder: Path, named: bool) -> None:
    """Read as it lies it would be another matrix, and the model another model, without a word."""
    in_fp8(folder)
    if not named:
        values = json.loads((folder / "config.json").read_text())
        del values["quantization_config"]
        (folder / "config.json").write_text(json.dumps(values))
    _stored_anew(folder, drop="layers.1.mlp.down_proj.weight_scale_inv" if named else "_scale_inv")
    message = "_proj.weight' is stored in FP8, and no scales by which it is turned back"
    with pytest.raises(CheckpointError, match=message):
        preflight([cell(folder)])
    with pytest.raises(CheckpointError, match=message):
        load_model(folder, torch.float32)


@pytest.mark.parametrize("packing", [{}, "fp8", {"quant_method": None}])
def test_a_packing_that_names_no_method_is_said(folder: Path, packing: Any) -> None:
    say(folder, packing)
    with pytest.raises(CheckpointError, match=r"quantised \(by a method it does not name; quantiz"):
        preflight([cell(folder)])
    say(folder, None)  # type: ignore[arg-type]
    preflight([cell(folder)])


def test_a_packed_checkpoint_whose_configuration_does_not_say_so(folder: Path) -> None:
    in_fp8(folder)
    values = json.loads((folder / "config.json").read_text())
    del values["quantization_config"]
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="quantised, as the tensor .*_scale_inv' shows"):
        preflight([cell(folder)])


def test_a_file_of_llama_cpp_is_named(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "model-q4_k_m.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="model-q4_k_m.gguf, the format of llama.cpp"):
        preflight([cell(folder)])


def test_the_packing_of_a_multimodal_models_text_part_is_found() -> None:
    packed = {"quant_method": "gptq", "bits": 4}
    found = quantised({"model_type": "gemma3", "text_config": {"quantization_config": packed}})
    assert found is not None and found.words == "gptq, 4 bits"
    assert quantised({"model_type": "llama"}) is None

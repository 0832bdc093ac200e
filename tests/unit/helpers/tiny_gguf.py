"""Tiny GGUF files made by llama.cpp's own writer, and tiny wheels that hold them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS = 32, 64, 2, 2, 1
HEAD = HIDDEN // HEADS
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("Ġ t", "h e", "i n")


def tokens() -> list[str]:
    """The bytes as GPT-2 writes them, behind the special tokens, and what the merges make."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [n for n in range(256) if n not in plain]
    letters = [chr(n) for n in plain] + [chr(256 + i) for i in range(len(others))]
    return [*SPECIAL, *letters, *(merge.replace(" ", "") for merge in MERGES)]


def matrices(seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors of a llama, by llama.cpp's names; the output embedding is the input's."""
    draw = np.random.default_rng(seed)
    shapes = {"token_embd.weight": (len(tokens()), HIDDEN), "output_norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (HIDDEN,), f"blk.{i}.ffn_norm.weight": (HIDDEN,),
            f"blk.{i}.attn_q.weight": (HIDDEN, HIDDEN),
            f"blk.{i}.attn_k.weight": (KV_HEADS * HEAD, HIDDEN),
            f"blk.{i}.attn_v.weight": (KV_HEADS * HEAD, HIDDEN),
            f"blk.{i}.attn_output.weight": (HIDDEN, HIDDEN),
            f"blk.{i}.ffn_gate.weight": (INNER, HIDDEN), f"blk.{i}.ffn_up.weight": (INNER, HIDDEN),
            f"blk.{i}.ffn_down.weight": (HIDDEN, INNER),
        }  # fmt: skip
    return {
        name: (draw.standard_normal(shape) / 6 + (len(shape) == 1)).astype(np.float32)
        for name, shape in shapes.items()
    }


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    packed: GGMLQuantizationType | None = GGMLQuantizationType.Q8_0,
    leave_out: str = "",
    more: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """Write a tiny model.

    Args:
        path: The file.
        architecture: What its header says.
        packed: How matrices are quantised; None: float32. Vectors are float32.
        leave_out: Tensor that the file lacks.
        more: Whole numbers of the header beside the usual ones.
        seed: Of its numbers.
    """
    writer = GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens()))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens())
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens()) - len(SPECIAL)))
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    for name, number in (more or {}).items():
        writer.add_uint16(name, number)
    for name, value in matrices(seed).items():
        if name == leave_out:
            continue
        if packed is not None and value.ndim == 2:
            writer.add_tensor(name, quantize(value, packed), raw_dtype=packed)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_wheel(
    folder: Path, files: Mapping[str, bytes], project: str = "tiny-model", version: str = "1.2"
) -> Path:
    """Write a wheel with these files, which needs a package that there is nowhere."""
    name = project.replace("-", "_")
    metadata = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, content in files.items():
            archive.writestr(file, content)
        archive.writestr(
            f"{metadata}/METADATA",
            f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n"
            "Requires-Dist: a-package-that-is-nowhere>=99\n",
        )
        archive.writestr(
            f"{metadata}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{metadata}/RECORD", "")
    return path

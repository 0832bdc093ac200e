"""Tiny random-weight Hugging Face models of every family, and random batches of edits for them."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPTJConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
)

from rledit.families import FAMILIES, family_of
from rledit.tokenization import IGNORED, EditBatch, Phase, Sample
from tests.unit.helpers.tiny_families import tiny_config

HIDDEN, INNER, LAYERS, VOCABULARY = 16, 24, 4, 40

_SHARED: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}


def _config(family: str) -> PretrainedConfig:
    if family == "llama":
        return LlamaConfig(**_SHARED)
    if family == "llama3.1":
        scaled = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                  "high_freq_factor": 4.0, "original_max_position_embeddings": 4}  # fmt: skip
        return LlamaConfig(**_SHARED, rope_parameters=scaled)
    if family == "mistral":
        return MistralConfig(**_SHARED, head_dim=8, sliding_window=4)
    if family == "gemma2":
        return Gemma2Config(**_SHARED, head_dim=8, sliding_window=4, query_pre_attn_scalar=8)
    if family == "qwen2":
        return Qwen2Config(**_SHARED)
    if family == "gptj":
        return GPTJConfig(
            n_embd=HIDDEN,
            n_inner=INNER,
            n_layer=LAYERS,
            n_head=2,
            rotary_dim=4,
            vocab_size=VOCABULARY,
            n_positions=32,
            bos_token_id=0,
            eos_token_id=1,
        )
    return tiny_config(family)


def tiny_model(family: str, seed: int = 0) -> nn.Module:
    """A float64 model of that family with weights large enough for every layer to matter.

    ``llama3.1`` is Llama with its scaled positions.
    """
    config = _config(family)
    config.initializer_range = 0.25
    torch.manual_seed(seed)
    model: nn.Module = AutoModelForCausalLM.from_config(config).double().eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "ln_" in name or name.endswith("bias"):
            with torch.no_grad():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


class _DoubleTorch(ModuleType):
    """`torch`, in which float32 means float64."""

    float32 = torch.float64
    float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def double_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep float64 models in float64 where the implementations fall back to float32.

    Norms and soft-maxes of Hugging Face models round to float32 on the way, which hides
    differences below 1e-7 and adds some of its own.
    """
    modules = {}
    for family in (*FAMILIES, "gpt2"):
        name = family.removesuffix("_text")
        path = f"transformers.models.{name}.modeling_{name}"
        modules[family] = importlib.import_module(path)
        monkeypatch.setattr(modules[family], "torch", _DoubleTorch("torch"))

    def norm(self: Any, x: Tensor) -> Tensor:
        whole: Tensor = self._norm(x) * (1.0 + self.weight)
        return whole

    monkeypatch.setattr(modules["gemma2"].Gemma2RMSNorm, "forward", norm)
    monkeypatch.setattr(modules["gemma3_text"].Gemma3RMSNorm, "forward", norm)


def add_outliers(model: nn.Module, scale: float) -> None:
    """Blow up a few input features of every MLP linear, the readers' columns making up for it."""
    family = family_of(model)
    gemma = "pre_feedforward_layernorm"
    norms = {"gptj": "ln_1", "gemma2": gemma, "gemma3_text": gemma}
    for layer in model.get_submodule(family.layers):  # type: ignore[attr-defined]
        norm = layer.get_submodule(norms.get(family.name, "post_attention_layernorm"))
        target_modules = {
            kind: layer.get_submodule(path) for kind, path in family.target_modules.items()
        }
        with torch.no_grad():
            norm.weight[[1, 5]] = scale
            for kind in set(target_modules) - {"down"}:
                target_modules[kind].weight[:, [1, 5]] /= scale
            fused = "gate_up" in target_modules  # ups below the gates
            up = target_modules["gate_up" if fused else "up"].weight
            up[2 + (len(up) // 2 if fused else 0)] *= scale
            target_modules["down"].weight[:, 2] /= scale


def add_twin_tokens(model: nn.Module, distance: float) -> None:
    """Make the embeddings of tokens 2k and 2k + 1 nearly equal."""
    embedding = model.get_input_embeddings().weight  # type: ignore[operator]
    with torch.no_grad():
        embedding[1::2] = embedding[::2] + distance * torch.randn_like(embedding[::2])


def two_shapes(model: nn.Module) -> tuple[str, ...]:
    """Edited modules of two linear shapes in several layers, the last layer among them."""
    first = next(kind for kind in family_of(model).target_modules if kind != "down")
    return (f"{first}:1-2", "down:2-3")


def random_sample(generator: torch.Generator, prompt: int, answer: int) -> Sample:
    """A prompt and an answer of that many random tokens."""
    tokens = torch.randint(2, VOCABULARY, (prompt + answer,), generator=generator)
    labels = torch.full((prompt + answer - 1,), IGNORED)
    labels[prompt - 1 :] = tokens[prompt:]
    return Sample(tokens[:-1], labels)


def random_batches(
    n_batches: int, size: int, seed: int = 0, group_size: int = 4, twins: bool = False
) -> list[EditBatch]:
    """Batches of random edits, prompts of 2-8 tokens and answers of 1-3.

    Args:
        n_batches: Number of batches.
        size: Edits per batch.
        seed: Same seed, same batches.
        group_size: Samples per loss group.
        twins: Make every second edit prompt the one before it with each token replaced by its
            twin (see `add_twin_tokens`), so that keys nearly repeat.
    """
    generator = torch.Generator().manual_seed(seed)

    def phase(twins: bool = False) -> Phase:
        samples: list[Sample] = []
        for i in range(size):
            prompt, answer = (
                int(torch.randint(low, high, (), generator=generator))
                for low, high in ((2, 9), (1, 4))
            )
            sample = random_sample(generator, prompt, answer)
            if twins and i % 2:
                sample = Sample(samples[-1].input_ids ^ 1, samples[-1].labels)
            samples.append(sample)
        return Phase(tuple(samples), group_size)

    return [EditBatch(phase(twins), phase(), phase()) for _ in range(n_batches)]

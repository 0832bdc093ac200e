"""Random-weight models of a given shape, and random token batches for them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPTJConfig, LlamaConfig, MistralConfig

from rledit.families import family_of
from rledit.tokenization import IGNORED, EditBatch, Phase, Sample


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a decoder.

    Attributes:
        family: `llama`, `mistral` or `gptj`.
        hidden, inner: Width of the residual stream and of the MLP.
        layers, heads, kv_heads: Depth, attention heads, key-value heads.
        head_width: Width of one head (None: hidden / heads).
        vocabulary: Number of tokens.
        rotary: Rotated features per head (`gptj` only).
    """

    family: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    head_width: int | None = None
    rotary: int = 64


def build(
    shape: ModelShape,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Any:
    """A random-weight model, its weights made on the device itself.

    Raises:
        ValueError: The family has no configuration here.
    """
    config = _config(shape)
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def _config(shape: ModelShape) -> Any:
    common = {"vocab_size": shape.vocabulary, "tie_word_embeddings": False}
    if shape.family == "gptj":
        return GPTJConfig(
            n_embd=shape.hidden,
            n_inner=shape.inner,
            n_layer=shape.layers,
            n_head=shape.heads,
            rotary_dim=shape.rotary,
            n_positions=2048,
            **common,
        )
    kinds = {"llama": LlamaConfig, "mistral": MistralConfig}
    if shape.family not in kinds:
        raise ValueError(f"no benchmark model of family {shape.family!r}; use gptj or {[*kinds]}")
    return kinds[shape.family](
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width or shape.hidden // shape.heads,
        max_position_embeddings=4096,
        **common,
    )


def part(model: Any, layers: range, *, final_norm: bool) -> nn.Module:
    """A decoder of some of a model's layers: the same modules, run by the same forward.

    Args:
        model: The language model.
        layers: The layers to keep.
        final_norm: Whether the last norm is applied.
    """
    family = family_of(model)
    list_name = family.layers.rpartition(".")[2]
    norm_name = family.final_norm.rpartition(".")[2]
    whole = model.base_model
    shown = copy.copy(whole)
    shown._modules = dict(whole._modules)
    kept = nn.ModuleList([getattr(whole, list_name)[i] for i in layers])
    shown._modules[list_name] = kept
    if not final_norm:
        shown._modules[norm_name] = nn.Identity()
    shown.config = copy.copy(whole.config)
    shown.config.num_hidden_layers = len(kept)
    result: nn.Module = shown
    return result


def random_batches(
    n_batches: int,
    size: int,
    vocabulary: int,
    *,
    seed: int = 0,
    prompt: tuple[int, int] = (8, 24),
    answer: tuple[int, int] = (1, 4),
    group_size: int = 4,
) -> list[EditBatch]:
    """Batches of random edits with uniformly drawn lengths, both ends included.

    Args:
        n_batches: Number of batches.
        size: Edits per batch.
        vocabulary: Tokens are drawn below this.
        seed: Same seed, same batches.
        prompt: Shortest and longest prompt, in tokens.
        answer: Shortest and longest answer, in tokens.
        group_size: Samples per loss group.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(bounds: tuple[int, int]) -> int:
        return int(torch.randint(bounds[0], bounds[1] + 1, (), generator=generator))

    def sample() -> Sample:
        n_prompt, n_answer = draw(prompt), draw(answer)
        tokens = torch.randint(vocabulary, (n_prompt + n_answer,), generator=generator)
        labels = torch.full((n_prompt + n_answer - 1,), IGNORED)
        labels[n_prompt - 1 :] = tokens[n_prompt:]
        return Sample(tokens[:-1], labels)

    def phase() -> Phase:
        return Phase(tuple(sample() for _ in range(size)), group_size)

    return [EditBatch(phase(), phase(), phase()) for _ in range(n_batches)]

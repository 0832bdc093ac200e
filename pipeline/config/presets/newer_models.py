"""Presets of current models that the published tables do not have; add one to `NEWER_MODELS`.

Few of their settings are published. All others are those of the nearest model that has some, in
layers at the same relative depth, and are marked as our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pipeline.config.presets.carry import carried
from pipeline.config.presets.models import MODELS, Preset
from pipeline.config.presets.settings import (
    ANY,
    OWN,
    ULTRAEDIT,
    Hyper,
    Setting,
    hypernetworks,
    published_in,
    training_free,
)
from pipeline.config.presets.shape import Shape

_LLAMA_3, _QWEN, _GEMMA_2 = (MODELS[n] for n in ("llama-3-8b", "qwen2.5-7b", "gemma-2-9b"))


def _ultraedits(modules: tuple[str, ...]) -> dict[str, dict[str, Setting]]:
    """The methods that edit by gradients, on the linear layers that UltraEdit's release has for a
    model; RLEdit and the others follow it, as GPT-J's preset does."""
    own = training_free({ANY: modules}, origin=OWN)
    return (
        hypernetworks({ANY: Hyper(modules=modules, origin=OWN)})
        | own
        | published_in(ULTRAEDIT, own, "ultraedit")
    )


_LLAMA_3_1 = Preset(
    hub="meta-llama/Llama-3.1-8B",
    revision="d04e592bb4f6aa9cfee91e2e20afa771667e1d4b",
    family="llama",
    bos=True,
    shape=_LLAMA_3.shape,
    gated=True,
    settings=carried(_LLAMA_3, _LLAMA_3.shape),
)

_QWEN_3_SHAPE = Shape(
    layers=36, hidden=4096, intermediate=12288, heads=32, kv_heads=8, head_dim=128,
    vocabulary=151936, head_norms=2,
)  # fmt: skip
_QWEN_3 = Preset(
    hub="Qwen/Qwen3-8B-Base",
    revision="49e3418fbbbca6ecbdf9608b4d22e5a407081db4",
    family="qwen3",
    bos=False,
    shape=_QWEN_3_SHAPE,
    settings=carried(_QWEN, _QWEN_3_SHAPE),
)

_GEMMA_3_4B = Shape(
    layers=34, hidden=2560, intermediate=10240, heads=8, kv_heads=4, head_dim=256,
    vocabulary=262208, tied=True, norms=4, head_norms=2,
)  # fmt: skip
_GEMMA_3_12B = replace(
    _GEMMA_3_4B, layers=48, hidden=3840, intermediate=15360, heads=16, kv_heads=8
)
_GEMMA_3_27B = replace(
    _GEMMA_3_4B, layers=62, hidden=5376, intermediate=21504, heads=32, kv_heads=16, head_dim=128
)
_GEMMA_3 = Preset(
    hub="google/gemma-3-4b-pt",
    revision="cc012e0a6d0787b4adcc0fa2c4da74402494554d",
    family="gemma3_text",
    bos=True,
    shape=_GEMMA_3_4B,
    gated=True,
    remark=(
        "a multimodal checkpoint, fetched whole (with its vision tower about 0.9 GB more); its "
        "text model alone is loaded and edited"
    ),
    settings=carried(_GEMMA_2, _GEMMA_3_4B),
)

_PHI_4 = Shape(
    layers=40, hidden=5120, intermediate=17920, heads=40, kv_heads=10, head_dim=128,
    vocabulary=100352,
)  # fmt: skip

NEWER_MODELS: Mapping[str, Preset] = {
    "llama-3.1-8b": _LLAMA_3_1,
    "llama-3.1-8b-instruct": replace(
        _LLAMA_3_1,
        hub="meta-llama/Llama-3.1-8B-Instruct",
        revision="0e9e39f249a16976918f6564b8830bc894c89659",
        instruct=True,
    ),
    # The published settings of Qwen2.5-7B are those of both versions.
    "qwen2.5-7b-instruct": replace(
        _QWEN,
        hub="Qwen/Qwen2.5-7B-Instruct",
        revision="a09a35458c702b33eeacc393d103063234e8bc28",
        instruct=True,
    ),
    "qwen3-8b-base": _QWEN_3,
    "qwen3-8b": replace(
        _QWEN_3,
        hub="Qwen/Qwen3-8B",
        revision="b968826d9c46dd6066d109eabc6255188de91218",
        instruct=True,
    ),
    "gemma-3-4b": _GEMMA_3,
    "gemma-3-4b-it": replace(
        _GEMMA_3,
        hub="google/gemma-3-4b-it",
        revision="093f9f388b31de276ce2de164bdc2081324b9767",
        instruct=True,
    ),
    "gemma-3-12b-it": replace(
        _GEMMA_3,
        hub="google/gemma-3-12b-it",
        revision="96b6f1eccf38110c56df3a15bffe176da04bfd80",
        shape=_GEMMA_3_12B,
        instruct=True,
        settings=carried(_GEMMA_2, _GEMMA_3_12B),
    ),
    "gemma-3-27b-it": replace(
        _GEMMA_3,
        hub="google/gemma-3-27b-it",
        revision="005ad3404e59d6023443cb575daa05336842228a",
        shape=_GEMMA_3_27B,
        instruct=True,
        settings=carried(_GEMMA_2, _GEMMA_3_27B) | _ultraedits(("gate:52-60", "up:52-60")),
    ),
    "phi-4": Preset(
        hub="microsoft/phi-4",
        revision="187ef0342fff0eb3333be9f00389385e95ef0b61",
        family="phi3",
        bos=False,
        shape=_PHI_4,
        instruct=True,
        remark="gate and up are one matrix, `gate_up`, here",
        settings=carried(_LLAMA_3, _PHI_4, fused=True) | _ultraedits(("down:30-38",)),
    ),
}

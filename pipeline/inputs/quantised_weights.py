"""Quantised checkpoints: what a configuration says its weights are packed as, and what is done.

Edits are written into plain matrices. Where the installed transformers can turn a format back into
them while it loads, on any device, the model is loaded so, and plan and results say it. The other
formats are refused: their matrices would have to be unpacked by the library that packed them.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

# Method → its configuration's class in transformers, which takes `dequantize`, and the package it
# needs.
# Of the formats that transformers dequantises, MXFP4 and Metal are left out: the one is met in
# mixtures of experts alone, the other on Apple's machines.
_DEQUANTISED: Mapping[str, tuple[str, str | None]] = {
    "fp8": ("FineGrainedFP8Config", None),
    "compressed-tensors": ("CompressedTensorsConfig", "compressed_tensors"),
}
# Tensors beside packed matrices: of GPTQ and AWQ, bitsandbytes, compressed-tensors, FP8 and NVFP4.
_COMPANIONS = (
    ".qweight", ".qzeros", ".weight.absmax", ".weight.quant_map", ".SCB", ".weight_packed",
    ".weight_scale", ".weight_scale_inv", ".weight_scale_2", ".weight_shape",
)  # fmt: skip
# FP8 matrices and the names under which a method's loader looks for a matrix's scales.
_FP8 = ("F8_E4M3", "F8_E5M2")
_SCALES: Mapping[str, tuple[str, ...]] = {
    "fp8": (".weight_scale_inv", ".scale", ".qscale_weight"),
    "compressed-tensors": (".weight_scale",),
}
_PLAIN = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """How a checkpoint's weights are packed.

    Attributes:
        method: `quant_method` of its configuration.
        bits: Bits of a weight; None where the configuration does not tell.
        origin: Checkpoint that the configuration says it was made from.
    """

    method: str
    bits: int | None
    origin: str | None = None

    @property
    def words(self) -> str:
        """Method and bits, for a reader."""
        return self.method + (f", {self.bits} bits" if self.bits else "")

    @property
    def problem(self) -> str | None:
        """Why it cannot be loaded as plain matrices, with the remedy; None where it can."""
        source = f" ({self.origin})" if self.origin else ""
        remedy = f"take the unquantised checkpoint that it was made from{source}"
        said = (
            f"its weights are quantised ({self.words}; quantization_config in its config.json), "
            "and edits are written into plain matrices"
        )
        if self.method not in _DEQUANTISED:
            known = ", ".join(_DEQUANTISED)
            return (
                f"{said}; transformers {version('transformers')} does not turn this format back "
                f"into them while loading (it does for {known}): {remedy}"
            )
        package = _DEQUANTISED[self.method][1]
        if package is not None and importlib.util.find_spec(package) is None:
            name = package.replace("_", "-")
            return (
                f"{said}; turning them back while loading needs the package {name} (pip install "
                f"{name}), which is not installed: install it, or {remedy}"
            )
        return None

    def loading(self) -> Any:
        """What `from_pretrained` takes as `quantization_config` to load plain matrices."""
        import transformers

        return getattr(transformers, _DEQUANTISED[self.method][0])(dequantize=True)


def quantised(config: Mapping[str, Any]) -> Quantised | None:
    """How the weights of a configuration are packed; None where they are not."""
    text = config.get("text_config")
    inner = text if isinstance(text, Mapping) else {}
    for place in (config, inner):
        for key in ("quantization_config", "compression_config"):
            found = place.get(key)
            if found is None:
                continue
            named = found if isinstance(found, Mapping) else {}
            return Quantised(
                method=_method(named), bits=_bits(named), origin=_origin(config, named)
            )
    return None


def packed_tensor(names: Iterable[str]) -> str | None:
    """A tensor that only packed weights have, whatever the configuration says; None if none."""
    return next((name for name in names if name.endswith(_COMPANIONS)), None)


def unscaled(types: Mapping[str, str], packed: Quantised | None) -> str | None:
    """A matrix in FP8 without its scales: read as it lies, it is another matrix. None if none.

    Args:
        types: Tensor name → type, as headers of safetensors write it.
        packed: How the configuration says they are packed.
    """
    scales = _SCALES.get(packed.method, ()) if packed else ()
    for name, kind in types.items():
        base = name.removesuffix(".weight")
        if kind in _FP8 and name != base and not any(base + end in types for end in scales):
            return name
    return None


def _method(found: Mapping[str, Any]) -> str:
    named = found.get("quant_method")
    if named is None and (found.get("load_in_4bit") or found.get("load_in_8bit")):
        return "bitsandbytes"
    return str(
        named or found.get("quant_algo") or found.get("format") or "by a method it does not name"
    )


def _bits(found: Mapping[str, Any]) -> int | None:
    """Bits of a weight, wherever a method writes them."""
    if found.get("load_in_4bit") or found.get("_load_in_4bit"):
        return 4
    if found.get("load_in_8bit") or found.get("_load_in_8bit"):
        return 8
    for key in ("bits", "w_bit", "nbits", "num_bits", "weight_bits"):
        if isinstance(found.get(key), int):
            return int(found[key])
    for value in found.values():
        inner = value if isinstance(value, Mapping) else {}
        if (bits := _bits(inner)) is not None:
            return bits
    for value in (found.get("quant_method"), found.get("weights"), found.get("fmt")):
        if isinstance(value, str) and (match := re.search(r"(?:fp|int|float|w)(\d)", value)):
            return int(match[1])
    return None


def _origin(config: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """A checkpoint's name that a configuration keeps from before, where it looks like one."""
    for value in (found.get("base_model"), config.get("_name_or_path")):
        if isinstance(value, str) and _PLAIN.fullmatch(value):
            return value
    return None

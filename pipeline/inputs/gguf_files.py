"""GGUF files: what their headers say, and how one becomes a checkpoint in safetensors.

transformers' own reader makes configuration, tokenizer and tensors of them; here is what it leaves
out: whether the file is whole, whether every tensor was found, and a folder that can be loaded
like any other checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from gguf import GGUFReader
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    modeling_gguf_pytorch_utils,
)

from pipeline.inputs.checkpoint_files import AGAIN, CheckpointError, lfs_pointer
from rledit.families import UneditableError, blank_model

FLOAT32 = 4  # bytes
_MAGIC = b"GGUF"
_PLAIN = ("F64", "F32", "F16", "BF16")

Progress = Callable[[int, int], None]  # tensors done, of how many


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """What a GGUF file says of itself.

    Attributes:
        architecture: llama.cpp's name of the architecture.
        tensor_types: How its tensors are stored → how many.
        packed: The quantised type that most of its numbers have; None where none is quantised.
        parameters: Numbers in its tensors.
    """

    architecture: str
    tensor_types: Mapping[str, int]
    packed: str | None
    parameters: int

    @property
    def words(self) -> str | None:
        """How the weights are packed, for identities and readers; None where they are plain."""
        return None if self.packed is None else f"{self.packed} GGUF"


def read_header(path: Path) -> GgufHeader:
    """The header of a GGUF file that is whole and that transformers can read.

    Raises:
        CheckpointError: It is no such file, is cut short, is one of several parts, or its
            architecture is none that transformers reads.
    """
    stat = path.stat()
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)  # also after it was moved
    if key not in _known:
        _known[key] = _read_header(path, stat.st_size)
    return _known[key]


_known: dict[tuple[int, int, int, int], GgufHeader] = {}


def _read_header(path: Path, size: int) -> GgufHeader:
    with path.open("rb") as file:
        magic = file.read(len(_MAGIC))
    if magic != _MAGIC:
        if lfs_pointer(path):
            raise CheckpointError(f"{path}: this is a git-lfs pointer, not the file: git lfs pull")
        raise CheckpointError(f"{path}: this is no GGUF file ({size} bytes, without its mark)")
    try:
        reader = GGUFReader(path)
        fields = {name: field for name, field in reader.fields.items() if len(field.data) == 1}
        architecture = str(fields["general.architecture"].contents())
        parts = int(fields["split.count"].contents()) if "split.count" in fields else 1
        tensors = list(reader.tensors)
    except Exception as error:  # numpy's and Python's own, wherever the numbers end
        raise CheckpointError(
            f"{path}: the GGUF file is cut short or damaged, {size} bytes ({type(error).__name__}: "
            f"{str(error)[:120]}): {AGAIN}"
        ) from None
    _require_readable(path, architecture, parts)
    if not tensors:
        raise CheckpointError(f"{path}: the GGUF file holds no tensors; take one with weights")
    numbers: Counter[str] = Counter()
    for tensor in tensors:
        numbers[tensor.tensor_type.name] += int(tensor.n_elements)
    packed = {kind: n for kind, n in numbers.items() if kind not in _PLAIN}
    return GgufHeader(
        architecture=architecture,
        tensor_types=dict(sorted(Counter(t.tensor_type.name for t in tensors).items())),
        packed=max(packed, key=lambda kind: packed[kind]) if packed else None,
        parameters=sum(numbers.values()),
    )


def readable_architectures() -> frozenset[str]:
    """The architectures whose GGUF files the installed transformers reads."""
    listed = modeling_gguf_pytorch_utils.GGUF_SUPPORTED_ARCHITECTURES
    return frozenset(listed) - {"general", "tokenizer"}


def _require_readable(path: Path, architecture: str, parts: int) -> None:
    known = readable_architectures()
    # transformers renames a few before it looks them up, and has those names, too.
    if not {architecture, architecture.replace("-", "_"), _renamed(architecture)} & known:
        raise CheckpointError(
            f"{path}: a GGUF file of architecture {architecture!r}, which transformers "
            f"{transformers.__version__} does not read from GGUF (it reads "
            f"{', '.join(sorted(known))}); take the checkpoint in safetensors that it was made from"
        )
    if parts > 1:
        raise CheckpointError(
            f"{path}: one of the {parts} parts of a GGUF file; put them together first "
            "(llama-gguf-split --merge), and name the whole"
        )


def _renamed(architecture: str) -> str:
    return architecture.replace("moe", "_moe")


def write_description(path: Path, folder: Path) -> None:
    """Write the configuration and the tokenizer of a GGUF file; no weights are read.

    Raises:
        CheckpointError: Either cannot be made of the file.
    """
    config = _made(path, AutoConfig)
    _save_config(config, folder)
    _made(path, AutoTokenizer).save_pretrained(folder)


def dequantise(path: Path, folder: Path, progress: Progress) -> None:
    """Write a GGUF file as a checkpoint: configuration, tokenizer, and weights in float32.

    transformers does not save what it loaded from GGUF: the numbers go into a model built from the
    same configuration, with input and output embedding tied where they were.

    Args:
        path: The file.
        folder: Where to; it exists.
        progress: Told how many tensors are dequantised.

    Raises:
        CheckpointError: The file lacks tensors, or cannot be read as a model.
    """
    with _quiet():
        with _told(progress):
            loaded, found = _made(
                path, AutoModelForCausalLM, dtype=torch.float32, output_loading_info=True
            )
        _whole_model(path, loaded, found["missing_keys"]).save_pretrained(folder)
    _made(path, AutoTokenizer).save_pretrained(folder)


def _whole_model(path: Path, loaded: Any, missing_keys: Iterable[str]) -> Any:
    """A model of the same numbers that can be saved."""
    config = _plain(loaded.config)
    missing = set(missing_keys)
    if getattr(config, "tie_word_embeddings", False):
        missing.discard("lm_head.weight")
    if missing:
        raise CheckpointError(
            f"{path}: the GGUF file lacks {len(missing)} of the model's tensors "
            f"({', '.join(sorted(missing)[:3])}); it is no whole language model: {AGAIN}"
        )
    try:
        model: Any = blank_model(config)
    except UneditableError as error:
        raise CheckpointError(f"{path}: {error}") from None
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    return model


def _made(path: Path, cls: Any, **options: Any) -> Any:
    """What transformers makes of a file."""
    try:
        return cls.from_pretrained(path.parent, gguf_file=path.name, **options)
    except OSError as error:
        if error.errno is not None:
            raise  # of the disk, not of the file's content
        raise _unreadable(path, cls, error) from None
    except Exception as error:  # the readers have no errors of their own kind
        raise _unreadable(path, cls, error) from None


def _unreadable(path: Path, cls: Any, error: Exception) -> CheckpointError:
    what = {"AutoConfig": "configuration", "AutoTokenizer": "tokenizer"}.get(cls.__name__, "model")
    return CheckpointError(
        f"{path}: no {what} can be made of the GGUF file ({type(error).__name__}: "
        f"{str(error).strip()[:200]}); take another conversion of the model, or its safetensors"
    )


def _plain(config: Any) -> Any:
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def _save_config(config: Any, folder: Path) -> None:
    if type(config) in AutoModelForCausalLM._model_mapping:
        config.architectures = [AutoModelForCausalLM._model_mapping[type(config)].__name__]
    _plain(config).save_pretrained(folder)


@contextmanager
def _told(progress: Progress) -> Iterator[None]:
    """Let transformers' loop over the tensors report to us, in place of its own bar."""
    bar = modeling_gguf_pytorch_utils.tqdm

    def counted(tensors: Iterable[Any], **_: Any) -> Iterator[Any]:
        every = list(tensors)
        progress(0, len(every))
        for i, tensor in enumerate(every, start=1):
            yield tensor
            progress(i, len(every))

    modeling_gguf_pytorch_utils.tqdm = counted
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = bar


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars, which would be printed into a run's log."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


__all__ = ["FLOAT32", "GgufHeader", "Progress", "dequantise", "read_header", "write_description"]

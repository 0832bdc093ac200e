"""Weights in pickles (pytorch_model.bin): read with `weights_only` and converted to safetensors.

A full pickle may run code, so none is ever loaded: torch's reader of tensors alone refuses what is
anything else. The conversion is made once, in a cache, and is there whole or not at all.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.inputs.checkpoint_files import CheckpointError, lfs_pointer
from pipeline.inputs.file_hashes import sha256_of
from rledit.lazy_torch import Tensor, torch

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
RECORD = "converted.json"
_DESCRIBING = (".json", ".txt", ".model", ".jinja")


def pickled_files(folder: Path) -> list[Path]:
    """The pickles that a folder's weights lie in: the one, or those of its index; empty if none."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.is_file():
        return []
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index}: no index of weights ({type(error).__name__}: {error}); fetch it again"
        ) from None
    return [folder / name for name in names]


def is_pickled(path: Path) -> bool:
    """Whether a weight file is a pickle."""
    return path.suffix == ".bin"


def pickled_tensors(path: Path) -> dict[str, Tensor]:
    """Name → tensor of a pickle of tensors; their numbers are read when they are looked at.

    Raises:
        CheckpointError: The file holds anything else, is cut short, or is no such file.
    """
    if lfs_pointer(path):
        raise CheckpointError(
            f"{path}: this is a git-lfs pointer, not the file; run git lfs pull in the "
            "repository, or fetch it with hf download"
        )
    try:
        found = _loaded(path)
    except pickle.UnpicklingError as error:
        why = str(error).split("\n")[0] if "Unsupported" in str(error) else _first(str(error))
        raise CheckpointError(
            f"{path}: this pickle holds something beside tensors, which loading it in full would "
            f"run as code; it is not loaded ({why}). Take a revision with safetensors"
        ) from None
    except Exception as error:
        raise CheckpointError(
            f"{path}: cannot be read as a pickle of tensors, {path.stat().st_size} bytes "
            f"({type(error).__name__}: {_first(str(error))}); the file is cut short or damaged: "
            "fetch it again"
        ) from None
    if not isinstance(found, Mapping) or not all(
        isinstance(v, torch.Tensor) for v in found.values()
    ):
        raise CheckpointError(
            f"{path}: expected a dictionary of tensors by name, as transformers writes it; found "
            f"{_kinds(found)}. Take a checkpoint in transformers' own layout"
        )
    return dict(found)


def _loaded(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
    # Files from before torch 1.6 are no archives, and are read whole.
    return torch.load(path, map_location="cpu", weights_only=True)


def _first(text: str) -> str:
    return text.strip().split("\n")[0][:200]


def _kinds(found: Any) -> str:
    if not isinstance(found, Mapping):
        return type(found).__name__
    other = {k: type(v).__name__ for k, v in found.items() if not isinstance(v, torch.Tensor)}
    return ", ".join(f"{key!r}: {kind}" for key, kind in list(other.items())[:3])


def converted(folder: Path, cache: Path) -> Path:
    """The folder of a checkpoint in safetensors that was made from its pickles, made if absent.

    Args:
        folder: The checkpoint.
        cache: Where conversions lie, each under the hash of what it was made from.

    Raises:
        CheckpointError: A pickle is none of tensors alone, or the disk has no room.
    """
    files = pickled_files(folder)
    sources = {path.name: sha256_of(path) for path in _describing(folder) + files}
    target = cache / _name(sources)
    if (target / RECORD).is_file():
        return target
    size = sum(path.stat().st_size for path in files)
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if free < size:
        raise CheckpointError(
            f"{folder}: converting its pickled weights to safetensors needs {size / 1e9:.1f} GB "
            f"in {cache}, which has {free / 1e9:.1f} GB left; make room, or take another --cache"
        )
    made = Path(tempfile.mkdtemp(prefix=".converting-", dir=cache))
    try:
        _write(folder, files, made)
        record = {"sources": sources, "torch": torch.__version__}
        (made / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        _into_place(made, target)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: its pickled weights could not be converted to safetensors in {cache} "
            f"({error.strerror or error}); nothing was kept: make room there, or take another "
            "--cache, and run again"
        ) from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target


def _write(folder: Path, files: Sequence[Path], made: Path) -> None:
    """The safetensors of every pickle, their index, and what describes the model."""
    from safetensors.torch import save_file

    weight_map: dict[str, str] = {}
    total = 0
    for i, path in enumerate(files, start=1):
        name = f"model-{i:05d}-of-{len(files):05d}.safetensors"
        tensors = _apart(pickled_tensors(path))
        save_file(tensors, made / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (made / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    for path in _describing(folder):
        shutil.copyfile(path, made / path.name)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor in memory of its own: safetensors keeps no two names for one."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        whole = tensor.is_contiguous() and tensor.nbytes == tensor.untyped_storage().nbytes()
        found[name] = tensor if whole and place not in seen else tensor.clone().contiguous()
        seen.add(place)
    return found


def _into_place(made: Path, target: Path) -> None:
    """Rename what was made; another process may have been first."""
    for path in made.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    try:
        made.rename(target)
    except OSError:
        if not (target / RECORD).is_file():
            raise


def _describing(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir()
        if path.is_file() and path.suffix in _DESCRIBING and path.name not in (INDEX, RECORD)
    )  # fmt: skip


def _name(sources: Mapping[str, str]) -> str:
    import hashlib

    text = json.dumps(dict(sources), sort_keys=True)
    return f"converted-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

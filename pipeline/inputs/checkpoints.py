"""Checks of a model's checkpoint before it is loaded: its place, missing files, broken files.

Only headers and sizes are read: a broken download is found in milliseconds, not after the queue.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.config.gguf_refs import gguf_reference
from pipeline.config.hub_refs import no_such_checkpoint
from pipeline.inputs import gguf_checkpoints, pickled_weights
from pipeline.inputs.checkpoint_files import (
    AGAIN,
    CheckpointError,
    read_config,
    safetensors_header,
    why_no_json,
)

if TYPE_CHECKING:
    from pipeline.inputs.gguf_files import Progress

_SMALL_FILES = ["*.json", "*.model", "*.txt", "chat_template.jinja"]
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLED = re.compile(r"(.*/)?(pytorch_model|consolidated|model)[^/]*\.(bin|pt|pth|ckpt)")
_REACH_SECONDS = 3.0


def is_folder(checkpoint: str) -> bool:
    """Whether a checkpoint is named by a folder of this machine, not by a place on the hub."""
    return Path(checkpoint).is_dir()


def cached(checkpoint: str) -> Path | None:
    """The folder of a checkpoint's configuration, if this machine has it without asking the hub.

    Raises:
        CheckpointError: It is no folder, and no name that the hub could have.
    """
    if is_folder(checkpoint):
        return Path(checkpoint)
    if (gguf := gguf_reference(checkpoint)) is not None:
        return gguf_checkpoints.kept_folder(gguf)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    repository, _, revision = checkpoint.partition("@")
    try:
        found = try_to_load_from_cache(repository, "config.json", revision=revision)
    except HFValidationError as error:
        raise hub_error(checkpoint, error) from None
    return Path(found).parent if isinstance(found, str) else None


@lru_cache(maxsize=1)
def hub_reachable() -> bool:
    """Whether the hub answers at all; asking it in vain takes half a minute of retries."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes"):
        return False
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        port = host.port or (80 if host.scheme == "http" else 443)
        with socket.create_connection((host.hostname or "", port), timeout=_REACH_SECONDS):
            return True
    except OSError:
        return any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy"))


def fetch_description(checkpoint: str) -> Path:
    """The folder with a checkpoint's configuration and tokenizer; no weights are fetched.

    Of a GGUF file, which has all in one, the whole file is.

    Raises:
        CheckpointError: There is no such checkpoint, or it is not handed out.
    """
    if not is_folder(checkpoint) and (gguf := gguf_reference(checkpoint)) is not None:
        return gguf_checkpoints.described(gguf)
    return _fetched(checkpoint, _SMALL_FILES)


def fetch_whole(checkpoint: str, progress: Progress | None = None) -> Path:
    """The folder of a whole checkpoint, its weights held against their headers.

    Of the hub's files only those are fetched that are loaded: some repositories hold the weights
    twice, in shards and consolidated. GGUF files are dequantised.

    Args:
        checkpoint: The checkpoint.
        progress: Told how many tensors of a GGUF file are dequantised.

    Raises:
        CheckpointError: There is no such checkpoint, it is not handed out, it has no weights that
            are loaded, or a file is broken.
    """
    if not is_folder(checkpoint) and (gguf := gguf_reference(checkpoint)) is not None:
        folder = gguf_checkpoints.dequantised(gguf, *([progress] if progress else []))
        check_weights(folder)
        return folder
    folder = fetch_description(checkpoint)
    if (names := lacking_weights(checkpoint, folder)) is not None:
        folder = _fetched(checkpoint, [*_SMALL_FILES, *names])
    if not check_weights(folder):
        raise CheckpointError(
            f"checkpoint {checkpoint!r} has no weights as *.safetensors or pytorch_model.bin; take "
            "a revision that has"
        )
    return folder


def lacking_weights(checkpoint: str, folder: Path) -> list[str] | None:
    """The weight files that the hub has to be asked for; None where none can or need be.

    Args:
        checkpoint: The checkpoint.
        folder: Its description, as `fetch_description` gave it.

    Raises:
        CheckpointError: The repository has no weights that are loaded.
    """
    missing = missing_weights(checkpoint, folder)
    return None if missing is None else list(missing)


def missing_weights(checkpoint: str, folder: Path) -> dict[str, int | None] | None:
    """As `lacking_weights`, each with its size in bytes where the hub tells it."""
    if is_folder(checkpoint) or gguf_reference(checkpoint) is not None or not hub_reachable():
        return None
    here = weight_files(folder)
    if here and all(path.is_file() for path in here):
        return None
    listed = _listed(checkpoint)
    for single, index in ((_SINGLE, _INDEX), (pickled_weights.SINGLE, pickled_weights.INDEX)):
        if single in listed:
            return {single: listed[single]}
        if index in listed:
            names = [path.relative_to(folder).as_posix() for path in here]
            return {name: listed.get(name) for name in names}
    raise _no_weights(f"checkpoint {checkpoint!r}", list(listed))


def _listed(checkpoint: str) -> dict[str, int | None]:
    """The files of a repository of the hub, with their sizes."""
    from huggingface_hub import HfApi

    repository, _, revision = checkpoint.partition("@")
    try:
        hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        found = hub.list_repo_tree(repository, recursive=True, revision=revision)
        return {f.path: f.size for f in found if hasattr(f, "size")}
    except Exception as error:
        raise hub_error(checkpoint, error) from None


def _fetched(checkpoint: str, patterns: Sequence[str]) -> Path:
    if is_folder(checkpoint):
        return Path(checkpoint)
    if not hub_reachable():
        folder = cached(checkpoint)
        if folder is None:
            raise CheckpointError(
                f"checkpoint {checkpoint!r}: the hub cannot be reached from here and the model is "
                "not in its cache; download it where there is a network (hf download "
                f"{_command(checkpoint)}), or name a folder as the model's `checkpoint`"
            )
        return folder
    from huggingface_hub import snapshot_download

    repository, _, revision = checkpoint.partition("@")
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(patterns),
                endpoint=os.environ.get("HF_ENDPOINT"),
            )
        )
    except Exception as error:
        raise hub_error(checkpoint, error) from None


def hub_error(checkpoint: str, error: Exception) -> Exception:
    """What a failed request to the hub means; an error that is none of the hub's comes back."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = checkpoint.partition("@")
    if isinstance(error, HFValidationError):
        return CheckpointError(no_such_checkpoint(checkpoint))
    if isinstance(error, GatedRepoError):
        token = "the token in HF_TOKEN has no access" if _has_token() else "HF_TOKEN is not set"
        remedy = (
            f"the model is gated and {token}: accept its terms at "
            f"https://huggingface.co/{repository}, then set HF_TOKEN to a token of that account"
        )
    elif isinstance(error, RevisionNotFoundError):
        remedy = (
            f"the repository has no revision {revision!r}: give a commit of "
            f"https://huggingface.co/{repository}/commits/main"
        )
    elif isinstance(error, RepositoryNotFoundError):
        hint = "" if _has_token() else "; a private one needs HF_TOKEN"
        remedy = f"the hub has no such repository: check owner and name{hint}"
    elif isinstance(error, LocalEntryNotFoundError | HfHubHTTPError | OSError):
        remedy = (
            f"it cannot be fetched ({type(error).__name__}); check the network and that the disk "
            "of HF_HOME has room, then run again: a download goes on where it stopped"
        )
    else:
        return error
    return CheckpointError(f"checkpoint {checkpoint!r}: {remedy}")


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def _command(checkpoint: str) -> str:
    repository, _, revision = checkpoint.partition("@")
    return f"{repository} --revision {revision}" if revision else repository


def checkpoint_family(checkpoint: str) -> str:
    """The type of a checkpoint's language model by its configuration; any, also one not edited.

    Raises:
        CheckpointError: The configuration cannot be had.
    """
    values = read_config(cached(checkpoint) or fetch_description(checkpoint))
    text = values.get("text_config")
    inner = text.get("model_type") if isinstance(text, Mapping) else None
    return str(inner or values.get("model_type"))


def weight_files(folder: Path) -> list[Path]:
    """The files that a checkpoint is loaded from: the one, or those of its index.

    Safetensors where there are any, else pickles of tensors (see
    `pipeline.inputs.pickled_weights`). Empty where a checkpoint has no weights at all, as a copy of
    its configuration has none. Files of other names are not loaded, a second copy of the weights
    (consolidated.safetensors) neither.

    Raises:
        CheckpointError: The index is broken, or the weights are in no form that is loaded.
    """
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    index = folder / _INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: {why_no_json(index, error)}") from None
        return [folder / name for name in names]
    if found := pickled_weights.pickled_files(folder):
        return found
    names = sorted(path.name for path in folder.iterdir())
    if any(name.endswith((".safetensors", ".gguf")) or _PICKLED.fullmatch(name) for name in names):
        raise _no_weights(str(folder), names)
    return []


def _no_weights(what: str, names: Sequence[str]) -> CheckpointError:
    """Why files that hold weights are not loaded, and what to do."""
    if packed := [name for name in names if name.endswith(".gguf")]:
        return CheckpointError(
            f"{what}: its weights are in {packed[0]}, the format of llama.cpp, and a folder's are "
            "loaded from *.safetensors; name the GGUF file itself as the checkpoint (of the hub, "
            "after hf download), and it is dequantised once"
        )
    others = [name for name in names if name.endswith(".safetensors")]
    others += [name for name in names if _PICKLED.fullmatch(name)]
    if others:
        return CheckpointError(
            f"{what}: has {others[0]} and neither {_SINGLE} nor {_INDEX} (nor "
            f"{pickled_weights.SINGLE} or "
            "its index), by which weights are found; fetch the checkpoint again with the index, or "
            "take a revision in transformers' own layout"
        )
    return CheckpointError(
        f"{what}: has no weights as *.safetensors or {pickled_weights.SINGLE}; take a revision "
        f"that has "
        "them"
    )


def check_weights(folder: Path) -> dict[str, tuple[int, ...]]:
    """Hold every weight file against its own header, and the files against their index.

    Returns:
        Tensor name → shape; empty where there are no weights.

    Raises:
        CheckpointError: A file is missing, cut short, a git-lfs pointer, or of another kind.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        if not path.is_file():
            raise CheckpointError(
                f"{path}: the index names this file, and it is not there: {AGAIN}"
            )
        shapes |= _shapes(path)
    index = _index(folder)
    if shapes and index is not None:
        named = json.loads(index.read_bytes())["weight_map"]
        if missing := sorted(set(named) - set(shapes)):
            raise CheckpointError(
                f"{folder / named[missing[0]]}: the index says that it holds {missing[0]!r}, and "
                f"it does not ({len(missing)} tensors missing): {AGAIN}"
            )
    return shapes


def _index(folder: Path) -> Path | None:
    """The index by which a folder's weight files are found; None where there is one file."""
    for single, index in ((_SINGLE, _INDEX), (pickled_weights.SINGLE, pickled_weights.INDEX)):
        if (folder / single).is_file():
            return None
        if (folder / index).is_file():
            return folder / index
    return None


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    if pickled_weights.is_pickled(path):
        return {name: tuple(t.shape) for name, t in pickled_weights.pickled_tensors(path).items()}
    return {name: tuple(entry["shape"]) for name, entry in safetensors_header(path).items()}


__all__ = [
    "CheckpointError",
    "cached",
    "check_weights",
    "checkpoint_family",
    "fetch_description",
    "fetch_whole",
    "hub_error",
    "hub_reachable",
    "is_folder",
    "lacking_weights",
    "missing_weights",
    "read_config",
    "weight_files",
]

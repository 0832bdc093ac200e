"""A model's checkpoint before anything is loaded: where it is, what is missing, what is broken.

Only headers and sizes are read: a broken download is found in milliseconds, not after the queue.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.yaml_location import ConfigError
from rledit.families import FAMILIES
from rledit.names import nearest

_LFS = b"version https://git-lfs"
_SMALL_FILES = ["*.json", "*.model", "*.txt", "chat_template.jinja"]
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLED = re.compile(r"(.*/)?(pytorch_model|consolidated|model)[^/]*\.(bin|pt|pth|ckpt)")
_LONGEST_HEADER = 100 << 20  # bytes; safetensors' own limit
_REACH_SECONDS = 3.0


class CheckpointError(ConfigError):
    """A checkpoint that cannot be used, with the remedy."""


def is_folder(checkpoint: str) -> bool:
    """Whether a checkpoint is named by a folder of this machine, not by a place on the hub."""
    return Path(checkpoint).is_dir()


def cached(checkpoint: str) -> Path | None:
    """The folder of a checkpoint's configuration, if this machine has it without asking the hub."""
    if is_folder(checkpoint):
        return Path(checkpoint)
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = checkpoint.partition("@")
    found = try_to_load_from_cache(repository, "config.json", revision=revision)
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

    Raises:
        CheckpointError: There is no such checkpoint, or it is not handed out.
    """
    return _fetched(checkpoint, _SMALL_FILES)


def fetch_whole(checkpoint: str) -> Path:
    """The folder of a whole checkpoint, its weights held against their headers.

    Of the hub's files only those are fetched that are loaded: some repositories hold the weights
    twice, in shards and consolidated.

    Raises:
        CheckpointError: There is no such checkpoint, it is not handed out, it has no weights as
            safetensors, or a file is broken.
    """
    folder = fetch_description(checkpoint)
    if (names := lacking_weights(checkpoint, folder)) is not None:
        folder = _fetched(checkpoint, [*_SMALL_FILES, *names])
    if not check_weights(folder):
        raise CheckpointError(
            f"checkpoint {checkpoint!r} has no weights as *.safetensors; take a revision that has"
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
    if is_folder(checkpoint) or not hub_reachable():
        return None
    here = weight_files(folder)
    if here and all(path.is_file() for path in here):
        return None
    listed = _listed(checkpoint)
    if _SINGLE in listed:
        return [_SINGLE]
    if _INDEX in listed:
        return [path.relative_to(folder).as_posix() for path in here]
    raise _no_safetensors(f"checkpoint {checkpoint!r}", listed, checkpoint)


def _listed(checkpoint: str) -> list[str]:
    """The files of a repository of the hub."""
    from huggingface_hub import HfApi

    repository, _, revision = checkpoint.partition("@")
    try:
        hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        return list(hub.list_repo_files(repository, revision=revision))
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
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = checkpoint.partition("@")
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


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a checkpoint, as its JSON.

    Raises:
        CheckpointError: There is none, or it is no JSON object.
    """
    path = folder / "config.json"
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: the folder has no config.json; name the folder that "
            "save_pretrained or hf download wrote"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path}: {_why_no_json(path, error)}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


def checkpoint_family(checkpoint: str) -> str:
    """The family of a checkpoint by its configuration, a key of `rledit.families.FAMILIES`.

    Raises:
        CheckpointError: The configuration cannot be had.
        ConfigError: The family is not one of ours.
    """
    folder = cached(checkpoint) or fetch_description(checkpoint)
    return known_family(read_config(folder), checkpoint)


def known_family(config: Mapping[str, Any], checkpoint: str) -> str:
    """The family that a configuration names.

    Raises:
        ConfigError: It is not one of ours.
    """
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        raise ConfigError(
            f"checkpoint {checkpoint!r}: family {family!r} is not one of "
            f"{', '.join(sorted(FAMILIES))}{nearest(family, list(FAMILIES))}"
        )
    return family


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a checkpoint is loaded from: the one, or those of its index.

    Empty where a checkpoint has no weights at all, as a copy of its configuration has none. Files
    of other names are not loaded, a second copy of the weights (consolidated.safetensors) neither.

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
            raise CheckpointError(f"{index}: {_why_no_json(index, error)}") from None
        return [folder / name for name in names]
    names = sorted(path.name for path in folder.iterdir())
    if any(name.endswith(".safetensors") or _PICKLED.fullmatch(name) for name in names):
        raise _no_safetensors(str(folder), names, str(folder))
    return []


def _no_safetensors(what: str, names: Sequence[str], checkpoint: str) -> CheckpointError:
    """Why files that hold weights are not loaded, and what to do."""
    others = [name for name in names if name.endswith(".safetensors")]
    pickled = [name for name in names if _PICKLED.fullmatch(name)]
    if others:
        return CheckpointError(
            f"{what}: has {others[0]} and neither {_SINGLE} nor {_INDEX}, by which weights are "
            "found; fetch the checkpoint again with the index, or take a revision in transformers' "
            "own layout"
        )
    if not pickled:
        return CheckpointError(
            f"{what}: has no weights as *.safetensors; take a revision that has them"
        )
    place, _, revision = checkpoint.partition("@")
    if is_folder(checkpoint):
        place, revision = checkpoint, ""
    pinned = f", revision={revision!r}" if revision else ""
    return CheckpointError(
        f"{what}: its weights are pickled ({pickled[0]}), which is never loaded here because "
        "unpickling may run code. Take a revision with safetensors, or, if you trust its authors, "
        "convert it once and give the new folder as `checkpoint`:\n"
        '  python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
        f"M.from_pretrained({place!r}{pinned}, dtype='auto').save_pretrained('NEW'); "
        f"T.from_pretrained({place!r}{pinned}).save_pretrained('NEW')\""
    )


def check_weights(folder: Path) -> dict[str, tuple[int, ...]]:
    """Hold every weight file against its own header, and the files against their index.

    Returns:
        Tensor name → shape; empty where there are no weights.

    Raises:
        CheckpointError: A file is missing, cut short, a git-lfs pointer, or no safetensors.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        if not path.is_file():
            raise CheckpointError(
                f"{path}: the index names this file, and it is not there: {_AGAIN}"
            )
        shapes |= {name: tuple(entry["shape"]) for name, entry in _header(path).items()}
    index = folder / _INDEX
    if shapes and not (folder / _SINGLE).is_file():
        named = json.loads(index.read_bytes())["weight_map"]
        if missing := sorted(set(named) - set(shapes)):
            raise CheckpointError(
                f"{folder / named[missing[0]]}: the index says that it holds {missing[0]!r}, and "
                f"it does not ({len(missing)} tensors missing): {_AGAIN}"
            )
    return shapes


_AGAIN = "the download is not complete; fetch the checkpoint again"


def _header(path: Path) -> Mapping[str, Any]:
    """Name → entry of a safetensors file whose size is what its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_LFS))
        if start == _LFS:
            raise CheckpointError(
                f"{path}: this is a git-lfs pointer, not the file; run git lfs pull in the "
                "repository, or fetch it with hf download"
            )
        if len(start) < 8:
            raise CheckpointError(f"{path}: only {size} bytes long: {_AGAIN}")
        (length,) = struct.unpack("<Q", start[:8])
        if length > _LONGEST_HEADER:
            raise CheckpointError(f"{path}: this is no safetensors file; expected its header first")
        if 8 + length > size:
            raise CheckpointError(f"{path}: cut short inside its header, {size} bytes: {_AGAIN}")
        file.seek(8)
        text = file.read(length)
    try:
        header = json.loads(text)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(
            f"{path}: its safetensors header cannot be read ({type(error).__name__}); fetch the "
            "file again"
        ) from None
    if size != 8 + length + end:
        raise CheckpointError(
            f"{path}: {size} bytes long, and its header promises {8 + length + end}: {_AGAIN}"
        )
    return tensors


def _why_no_json(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            return "this is a git-lfs pointer, not the file; run git lfs pull"
    return f"no valid JSON of its kind ({error}); fetch the checkpoint again"

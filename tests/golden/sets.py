"""Golden sets on disk: where they are, of which kind, and whether files match the manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from .drawn import departures, drawn

Kind = Literal["hypernet", "locate", "real"]
# Chosen from the full recordings, for a checkout without them: see the README there.
RECORDED = Path(__file__).parent / "recorded"
REAL_FILE = "rledit_smollm2.safetensors"
DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.bool: "BOOL"}


@dataclass(frozen=True)
class GoldenSet:
    """One directory with a manifest, or with a whole run on a real model."""

    root: Path
    kind: Kind

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The parsed manifest."""
        return json.loads((self.root / "manifest.json").read_text())

    @cached_property
    def files(self) -> dict[str, Any]:
        """Manifest entries by file name; in a locate set, by family and file name.

        A whole run on a real model has no manifest, so none.
        """
        if self.kind == "real":
            return {}
        if self.kind == "hypernet":
            return self.manifest["files"]
        found: dict[str, Any] = {}
        for family, entry in self.manifest["families"].items():
            found |= {f"{family}/{file}": listed for file, listed in entry["files"].items()}
            found[entry["requests"]] = None
        return found

    @cached_property
    def runs(self) -> dict[str, Any]:
        """Manifest entries by run name; a run without settings holds unit vectors.

        In a locate set a family is a run: its numbers, hyperparameters and contexts.
        """
        if self.kind == "hypernet":
            return self.manifest["runs"]
        families = self.manifest["families"].items()
        apart = ("files", "drawn")
        return {name: {k: v for k, v in f.items() if k not in apart} for name, f in families}

    def names(self, file: str) -> set[str]:
        """Tensor names the manifest lists for a file; empty for no such file."""
        return set((self.files.get(file) or {}).get("tensors", {}))

    def load(self, file: str) -> dict[str, Tensor]:
        """All tensors of a file, with those that are drawn."""
        return load_file(self.root / file) | drawn_of(self.files.get(file))

    def is_sampled(self, file: str, name: str) -> bool:
        """Whether a file holds a part of a tensor's entries only."""
        return "every" in self._listed(file, name)

    def sampled(self, file: str, name: str, whole: Tensor) -> Tensor:
        """Of a whole tensor the entries that a file holds: every n-th of it, flattened."""
        entry = self._listed(file, name)
        if "every" not in entry or list(whole.shape) != entry["of"]:
            return whole
        return whole.flatten()[:: entry["every"]]

    def _listed(self, file: str, name: str) -> dict[str, Any]:
        """The manifest's entry of a tensor; empty for no such tensor."""
        return (self.files.get(file) or {}).get("tensors", {}).get(name, {})

    def leaves(self, run: str) -> dict[str, Any]:
        """Every number and list of numbers of a run's manifest entry, by path."""
        return dict(_leaves(self.runs[run], ""))


def find_sets(directory: Path) -> list[GoldenSet]:
    """The set in a directory, or all sets below it.

    Raises:
        ValueError: There is no set, or one of no known kind.
    """
    found = [(path.parent, kind_of(path)) for path in directory.rglob("manifest.json")]
    found += [(path.parent, "real") for path in directory.rglob(REAL_FILE)]
    if not found:
        raise ValueError(
            f"{directory} holds no golden set: no manifest.json or {REAL_FILE} in it or below it"
        )
    return [GoldenSet(root, kind) for root, kind in sorted(found)]


def kind_of(path: Path) -> Kind:
    """The kind of set a manifest describes, by its keys.

    Raises:
        ValueError: No known kind.
    """
    keys = set(json.loads(path.read_text()))
    if {"files", "runs", "meanings"} <= keys:
        return "hypernet"
    if {"families", "tensor_meaning"} <= keys:
        return "locate"
    raise ValueError(f"{path}: a golden set of no known kind, its keys are {sorted(keys)}")


def integrity(golden: GoldenSet) -> list[str]:
    """Where the files on disk are not what the manifest lists."""
    problems: list[str] = []
    for file, entry in golden.files.items():
        path = golden.root / file
        if not path.is_file():
            problems.append(f"{file}: listed in the manifest, not on disk")
        elif entry is None:
            continue
        elif "tensors" in entry:
            if entry.get("sha256", _sha256(path)) != _sha256(path):
                problems.append(f"{file}: its SHA-256 is not the manifest's")
            problems += _compare(file, load_file(path), entry["tensors"])
            problems += [f"{file}:{problem}" for problem in departures_of(entry)]
        elif json.loads(path.read_text()) != entry:
            problems.append(f"{file}: differs from the manifest's copy")
    if golden.kind == "locate":
        for family, entry in golden.manifest["families"].items():
            problems += [f"{family}:{problem}" for problem in departures_of(entry)]
    on_disk = _on_disk(golden)
    for file in sorted(on_disk - set(golden.files) - {"manifest.json"}):
        problems.append(f"{file}: on disk, not in the manifest")
    return problems


def drawn_of(entry: dict[str, Any] | None) -> dict[str, Tensor]:
    """The drawn tensors of a file's or a family's entry; none where it lists no draws."""
    return drawn(entry["drawn"]) if entry and "drawn" in entry else {}


def departures_of(entry: dict[str, Any]) -> list[str]:
    """What is drawn otherwise than recorded."""
    return list(departures(entry["drawn"])) if "drawn" in entry else []


def _on_disk(golden: GoldenSet) -> set[str]:
    """Files of the set; models and tokenizers of a locate set lie in folders of their own."""
    folders = [golden.root]
    if golden.kind == "locate":
        folders += [golden.root / family for family in golden.manifest["families"]]
    found = [path for folder in folders for path in folder.iterdir()]
    kept = [path for path in found if path.suffix in (".safetensors", ".json")]
    return {str(path.relative_to(golden.root)) for path in kept}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _compare(file: str, tensors: dict[str, Tensor], listed: dict[str, Any]) -> Iterator[str]:
    for name in sorted(tensors.keys() ^ listed.keys()):
        where = "in the file, not in the manifest" if name in tensors else "only in the manifest"
        yield f"{file}:{name}: {where}"
    for name in sorted(tensors.keys() & listed.keys()):
        found = [list(tensors[name].shape), DTYPES.get(tensors[name].dtype)]
        expected = [listed[name]["shape"], listed[name]["dtype"]]
        if found != expected:
            yield f"{file}:{name}: {found} on disk, {expected} in the manifest"


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}/{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{path}/{i}")
    elif value != [] or not path:
        yield path, value

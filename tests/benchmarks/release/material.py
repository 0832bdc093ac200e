"""The model and the rows of a whole job: a tiny world, or a checkpoint and files of real rows."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rledit.datasets.edits import read_edits
from rledit.records import Edit
from rledit.world import WORLD_MODELS, World, WorldConfig, build_world_model

SUBJECTS = 400
STEPS = 5  # of training: what a pass takes does not depend on what the model knows


@dataclass(frozen=True, kw_only=True)
class Material:
    """What every contender is given.

    Attributes:
        model: Folder of a checkpoint with its tokenizer.
        train, stream: Files of edits, in the order in which they are trained on and edited.
    """

    model: Path
    train: Path
    stream: Path

    def edits(self) -> tuple[list[Edit], list[Edit]]:
        """The edits of both files."""
        return list(read_edits(self.train).edits), list(read_edits(self.stream).edits)


def tiny_world(folder: Path, n_train: int, n_stream: int) -> Material:
    """The smallest model of the synthetic world, hardly trained, and edits of that world."""
    world = World(WorldConfig(n_subjects=SUBJECTS))
    spec = replace(WORLD_MODELS["tiny"], steps=STEPS, warmup=1)
    model = build_world_model(world, spec, folder / "models")
    train = world.draw("train", n_train, seed=0)
    return written(folder, model, train, world.draw("evaluation", n_stream, seed=0))


def real_rows(
    folder: Path, model: Path, rows: tuple[Path, Path], n_train: int, n_stream: int
) -> Material:
    """A checkpoint and edits by lot of two files, in any schema that `rledit` reads.

    Raises:
        ValueError: A file has too few edits with a rephrase and a locality prompt.
    """
    stream = _drawn(rows[1], n_stream, set())
    train = _drawn(rows[0], n_train, {edit.prompt.strip() for edit in stream})
    return written(folder, model, train, stream)


def written(folder: Path, model: Path, train: Sequence[Edit], stream: Sequence[Edit]) -> Material:
    """The edits as files: each with its first rephrase and its first locality prompt."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"train": train, "stream": stream}
    for name, edits in files.items():
        rows = [_row(edit) for edit in edits]
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    return Material(model=model, train=folder / "train.json", stream=folder / "stream.json")


def _drawn(path: Path, n: int, without: set[str]) -> list[Edit]:
    """Edits by lot, no prompt twice."""
    usable: dict[str, Edit] = {}
    for edit in read_edits(path).edits:
        prompt = edit.prompt.strip()
        if edit.rephrases and edit.locality and prompt not in without:
            usable.setdefault(prompt, edit)
    if len(usable) < n:
        raise ValueError(
            f"{path}: {n} edits with a rephrase and a locality prompt are needed, and it has "
            f"{len(usable)} that the other file has not; name a longer file, or ask for fewer "
            "batches"
        )
    return random.Random(0).sample(list(usable.values()), n)


def _row(edit: Edit) -> dict[str, object]:
    row: dict[str, object] = {
        "prompt": edit.prompt,
        "target": edit.target,
        "rephrases": list(edit.rephrases[:1]),
        "locality": [{"prompt": x.prompt, "ground_truth": x.answer} for x in edit.locality[:1]],
    }
    if edit.old_target:
        row["old_target"] = edit.old_target
    if edit.subject:
        row["subject"] = edit.subject
    return row

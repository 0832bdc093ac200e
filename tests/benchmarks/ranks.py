"""What a second rank brings: training and scoring on one and on two ranks, whole and sharded.

    python -m tests.benchmarks.ranks [--shape smollm2] [--kind sharded] [--repeats 3] [--json FILE]

Random weights in the shape of SmolLM2-135M, or in a small one where what stands beside the passes
shows. Every rank has one thread. Ranks are processes of this machine that talk by gloo, so wall
time means something only where each has a core of its own. Tokens (summed over decoder layers, of
the rank that passes most) do not depend on the machine, and processor time depends on it little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.run.fleet.process_group import ProcessRanks, joined
from rledit.editors.rledit import RLEdit
from rledit.model import EditableModel
from rledit.protocols import read
from tests.benchmarks.models import ModelShape, build, random_batches
from tests.benchmarks.report import lines
from tests.cluster.launch import launch


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained and scored.

    Attributes:
        shape: The model.
        modules: What is edited.
        batches: Batches of 20 edits of a training step, the last of which looks back on all.
        scored: Batches of which 20 rephrases each are scored.
    """

    shape: ModelShape
    modules: tuple[str, ...]
    batches: int
    scored: int


CASES = {
    "smollm2": Case(
        shape=ModelShape(
            family="llama",
            hidden=576,
            inner=1536,
            layers=30,
            heads=9,
            kv_heads=3,
            vocabulary=49152,
        ),
        modules=("gate:20-28", "up:20-28"),
        batches=10,
        scored=10,
    ),
    "small": Case(
        shape=ModelShape(
            family="llama", hidden=256, inner=768, layers=12, heads=4, kv_heads=2, vocabulary=8000
        ),
        modules=("gate:8-11", "up:8-11"),
        batches=6,
        scored=10,
    ),
}
TIMEOUT = 1800.0
KINDS = ("whole", "sharded")
WORK = ("training", "scoring")


class _Tokens:
    """Counts the tokens that pass the decoder layers, all layers together."""

    def __init__(self, model: EditableModel) -> None:
        self.count = 0
        layers: Any = model.model.get_submodule(model.family.layers)
        for layer in layers:
            layer.register_forward_pre_hook(self._add, with_kwargs=True)

    def _add(self, _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        self.count += hidden.shape[:-1].numel()


def opened(case: Case, sharded: bool) -> EditableModel:
    """The model, whole on every rank or in slices."""
    whole = build(case.shape)
    if not sharded:
        return EditableModel(whole, None, case.modules, ranks=ProcessRanks())
    from pipeline.run.sharded_model import shard

    return shard(whole, case.modules)


def measure(model: EditableModel, case: Case, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Tokens, processor seconds and wall seconds of each repeat, by kind of work."""
    tokens = _Tokens(model)
    config = RLEdit.Config(
        modules=model.modules,
        rank=64,
        n_blocks=1,
        initial_step=1e-4,
        depth=case.batches,
        train_steps=1,
    )
    editor = RLEdit(model, config)
    words = case.shape.vocabulary
    scored = [
        s for b in random_batches(case.scored, 20, words, seed=1) for s in b.equivalent.samples
    ]

    def train(i: int) -> None:
        n = case.batches if i else 2  # warms up
        editor.train_step(random_batches(n, 20, words, seed=10 + i))

    def score(_: int) -> None:
        model.prefix_cache.clear()
        read(model, scored)

    found: dict[str, dict[str, list[float]]] = {}
    works: tuple[Callable[[int], None], ...] = (train, score)
    for name, work in zip(WORK, works, strict=True):
        rows: dict[str, list[float]] = {"tokens": [], "cpu": [], "wall": []}
        for i in range(repeats + 1):
            before = tokens.count, time.process_time(), time.perf_counter()
            work(i)
            after = tokens.count, time.process_time(), time.perf_counter()
            if i:
                for row, a, b in zip(rows.values(), before, after, strict=True):
                    row.append(b - a)
        found[name] = rows
    return found


def worker(rank: int, size: int, folder: Path) -> None:
    """One rank: measure, and write it down."""
    torch.set_num_threads(1)
    asked = json.loads((folder / "asked.json").read_text())
    with joined(rank, size, f"file://{folder}/rendezvous", "gloo", timedelta(minutes=10)):
        case = CASES[asked["shape"]]
        found = measure(opened(case, asked["sharded"]), case, asked["repeats"])
    (folder / f"{rank}.json").write_text(json.dumps(found))


def compare(shape: str, repeats: int, kinds: Sequence[str] = KINDS) -> dict[str, dict[str, float]]:
    """One rank over two, by kind of model and work: each of tokens, processor and wall time."""
    result: dict[str, dict[str, float]] = {}
    for kind in kinds:
        by_size: dict[int, list[dict[str, Any]]] = {}
        for size in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                asked = {"shape": shape, "sharded": kind == "sharded", "repeats": repeats}
                (Path(folder) / "asked.json").write_text(json.dumps(asked))
                by_size[size] = launch(
                    "tests.benchmarks.ranks", size, Path(folder), TIMEOUT, memory_counts=False
                )
        for work in WORK:
            row: dict[str, float] = {}
            for what in ("tokens", "cpu", "wall"):
                one, two = (
                    max(statistics.median(rank[work][what]) for rank in by_size[size])
                    for size in (1, 2)
                )
                row |= {f"{what}, 1 rank": one, f"{what}, 2 ranks": two, f"{what} ratio": one / two}
            result[f"{kind}: {work}"] = row
    return result


def main() -> None:
    """Print the table; a worker has three arguments and no option."""
    if len(sys.argv) == 4 and sys.argv[1].isdigit():
        worker(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", choices=CASES, default="smollm2")
    parser.add_argument("--kind", choices=KINDS, help="whole models or sharded ones alone")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    chosen = parser.parse_args()
    result = compare(chosen.shape, chosen.repeats, [chosen.kind] if chosen.kind else KINDS)
    print(*lines({"a second rank": result}), sep="\n")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""One of four ranks that train and score alone, in pairs and all together; see `test_ranks`."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.run.fleet.process_group import ProcessRanks, joined
from rledit.editors import EDITORS, TrainableEditor
from rledit.model import EditableModel, Execution
from rledit.protocols import read
from rledit.ranks import Ranks, SingleProcess
from tests.unit.helpers.interrupted import SMALL_NETWORK
from tests.unit.helpers.oracle import relative
from tests.unit.helpers.tiny_models import double_arithmetic, random_batches, tiny_model, two_shapes

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("rledit", "llama", {}),
    "gptj-previous": ("rledit", "gptj", {"kl_reference": "previous"}),
    "gemma2-official": ("rledit", "gemma2", {"reference": "official"}),
    "mistral-mend": ("mend", "mistral", {"kl_reference": "previous", "depth": 1}),
    "llama-averaged": ("rledit", "llama", {"trajectories_per_step": 2}),
    "llama-prompts": ("rledit", "llama", {"prompt_coef": 0.5, "window_share": 0.5}),
}
# In float32, as a grid runs by default.
SINGLE = {"llama-float32": ("rledit", "llama", {})}

# Networks, edited weights and readings; measured losses; prompts this rank read.
Found = tuple[dict[str, Tensor], dict[str, float], int]


def trainer(case: str, ranks: Ranks) -> TrainableEditor:
    """The editor of a case, on a model of its own."""
    name, family, settings = (CASES | SINGLE)[case]
    whole = tiny_model(family).float() if case in SINGLE else tiny_model(family)
    modules = two_shapes(whole)
    model = EditableModel(whole, None, modules, Execution(token_budget=60), ranks=ranks)
    cls = EDITORS[name]
    editor = cls(model, cls.Config(modules=modules, **(SMALL_NETWORK | settings)))
    assert isinstance(editor, TrainableEditor)
    return editor


def run(case: str, ranks: Ranks) -> Found:
    """Train two steps, edit two batches, read."""
    editor = trainer(case, ranks)
    model = editor.model
    measured: dict[str, float] = {}
    count = editor.trajectories_per_step
    for first in (1, 1 + count):
        # Seven prompts on four ranks: shares are unequal.
        trajectories = [random_batches(3, 7, seed) for seed in range(first, first + count)]
        measured = editor.train_step(*trajectories)
    found = {f"editor {k}": v for k, v in editor.state_dict().items()}
    stream = random_batches(2, 7, 3)
    for batch in stream:
        editor.edit(batch)
    found |= {f"weight {k}": v for k, v in model.weights.state_dict().items()}
    before = model.prefix_cache.hits + model.prefix_cache.misses
    samples = [s for batch in stream for s in batch.equivalent.samples]
    readings = read(model, samples)
    found["predicted"] = torch.cat([r.predicted for r in readings])
    found["nll"] = torch.tensor([r.nll for r in readings], dtype=torch.float64)
    return found, measured, model.prefix_cache.hits + model.prefix_cache.misses - before


def main(rank: int, size: int, folder: Path) -> None:
    """Compare every case, in groups of every size, with one process."""
    torch.set_num_threads(1)
    report: dict[str, Any] = {}
    with joined(rank, size, f"file://{folder}/rendezvous", "gloo", timedelta(minutes=1)) as four:
        # Every process takes part in making every group.
        pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        groups: dict[str, Ranks] = {"2": ProcessRanks(pairs[rank // 2]), "4": four}
        for cases in (SINGLE, CASES):
            if cases is CASES:
                double_arithmetic(pytest.MonkeyPatch())
            expected = by_one_process(cases, rank, size, folder)
            for case, ranks_name in product(cases, groups):
                report[f"{case} {ranks_name}"] = compared(
                    run(case, groups[ranks_name]), expected[case]
                )
        report["empty"] = len(read_nothing(four))
        for ranks_name, ranks in groups.items():
            report[f"saved {ranks_name}"] = [
                saved_inside(stop, case, ranks)
                for case, stop in (("gptj-previous", 2), ("llama", 1), ("llama-averaged", 4))
            ]
    (folder / f"{rank}.json").write_text(json.dumps(report))


def by_one_process(cases: Iterable[str], rank: int, size: int, folder: Path) -> dict[str, Found]:
    """What one process finds in every case; the ranks take them by turns, each alone."""
    for case in list(cases)[rank::size]:
        torch.save(run(case, SingleProcess()), folder / f"{case}.pt")
    dist.barrier()
    return {case: torch.load(folder / f"{case}.pt") for case in cases}


def compared(ours: Found, expected: Found) -> dict[str, Any]:
    """How what ranks found together differs from what one process did."""
    (found, measured, own_read), (alone, losses, n_read) = ours, expected
    assert found.keys() == alone.keys()
    return {
        "error": worst(found, alone),
        "loss_error": max(abs(measured[k] - losses[k]) / max(1.0, abs(losses[k])) for k in losses),
        "bits": checksum(found),
        "read": own_read,
        "read_alone": n_read,
    }


def saved_inside(stop: int, case: str, ranks: Ranks) -> str:
    """Checksum of a training saved inside its step; empty where it goes on in other bits."""
    straight, saved, resumed = (trainer(case, ranks) for _ in range(3))
    trajectories = [random_batches(3, 7, seed) for seed in range(straight.trajectories_per_step)]
    straight.train_step(*trajectories)
    batches = saved.train_batches(*trajectories)
    while next(batches).done < stop:
        pass
    state = saved.training_state_dict()
    resumed.load_training_state_dict(state)
    resumed.train_step(*trajectories)
    expected, found = straight.training_state_dict(), resumed.training_state_dict()
    same = expected.keys() == found.keys() and checksum(expected) == checksum(found)
    return checksum(state) if same else ""


def read_nothing(ranks: Ranks) -> list[Any]:
    """Score no prompt at all."""
    return list(read(EditableModel(tiny_model("llama"), None, ("up:1",), ranks=ranks), []))


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest relative error; 0 for equal tensors, all-zero ones among them."""
    errors = [
        0.0
        if torch.equal(found[k], expected[k])
        else relative(found[k].double(), expected[k].double())
        for k in expected
    ]
    return float(torch.tensor(errors).max())


def checksum(tensors: dict[str, Tensor]) -> str:
    """Equal for equal bits."""
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

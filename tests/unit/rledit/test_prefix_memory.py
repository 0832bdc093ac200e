"""What a prefix store adds to the peak memory of a process: no more than its budget."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not Path("/proc/self/clear_refs").exists(), reason="peaks are reset through Linux's /proc"
    ),
]

BUDGET = 40 << 20
SLACK = 10 << 20  # a segment that is being written, and the heap

MEASURE = """
import json, sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rledit.model import EditableModel, Execution
from rledit.prefix_store import PrefixStore
from rledit.tokenization import Sample

torch.set_num_threads(1)
torch.manual_seed(0)
shape = LlamaConfig(
    vocab_size=64, hidden_size=512, intermediate_size=256, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128,
)
language_model = LlamaForCausalLM(shape)
ids = torch.randint(0, 64, (240, 64))
labels = torch.full((64,), -100)
labels[-1] = 1
samples = [Sample(row, labels) for row in ids]


def peak(folder, budget):
    Path("/proc/self/clear_refs").write_text("5")
    execution = Execution(token_budget=256, cache_bytes=8 << 20)
    model = EditableModel(language_model, None, ("down:2",), execution)
    cache = model.prefix_cache
    if folder is not None:
        store = PrefixStore(folder, cache.fingerprint(), budget)
        cache.keep_in(store)
        for _ in cache.store_ahead(samples[:150]):
            pass
    with torch.no_grad():
        for micro_batch in model.micro_batches(samples):
            cache.logits(micro_batch)
    if folder is not None:
        store.flush()
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    held = 0 if folder is None else store.n_bytes
    return {"peak": 1024 * int(status["VmHWM"].split()[0]), "held": held}


budget = int(sys.argv[2])
print(json.dumps([peak(None, 0), peak(None, 0), peak(Path(sys.argv[1]), budget)]))
"""


def measured(folder: Path, budget: int) -> tuple[int, int]:
    """Bytes that a store adds to the peak of a process, and those that it holds."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, folder, str(budget)],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    _, without, with_store = json.loads(done.stdout.splitlines()[-1])
    return with_store["peak"] - without["peak"], with_store["held"]


def test_a_store_adds_no_more_than_its_budget_to_the_peak(tmp_path: Path) -> None:
    """Of 63 MB of prefixes, which a process that keeps all of them in memory would have."""
    added, held = measured(tmp_path, BUDGET)
    assert held > 0.9 * BUDGET
    assert added < BUDGET + SLACK

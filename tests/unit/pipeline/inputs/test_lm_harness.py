"""lm-evaluation-harness on a model in memory, where the extra is installed."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from pipeline.inputs import lm_harness
from rledit.measurements.downstream import TASKS, items_of
from rledit.protocols import read
from rledit.world import World
from tests.unit.rledit.measurements.test_measurements import SMALL, model_of

lm_eval = pytest.importorskip("lm_eval", reason="the extra `harness` is not installed")

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{right}}}}"
doc_to_choice: "{{{{answers}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_the_harness_agrees_with_our_likelihoods_on_the_edited_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own tasks are on the hub; here it is given our items as a task of one token an answer."""
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    world = World(SMALL)
    model = model_of(world)
    name = model.modules[0]
    model.weights.set(name, 3 * model.weights.original(name))
    items = {
        task: items_of(TASKS[task], world.downstream_items[task], 40) for task in ("sst", "rte")
    }
    for task, own in items.items():
        path = tmp_path / f"{task}.jsonl"
        rows = [{"prompt": i.prompt, "answers": list(i.answers), "right": i.right} for i in own]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / f"{task}.yaml").write_text(TASK.format(name=f"our_{task}", path=path))
    own_tasks = TaskManager(include_path=str(tmp_path))
    given = partial(lm_eval.simple_evaluate, task_manager=own_tasks)
    monkeypatch.setattr(lm_eval, "simple_evaluate", given)
    monkeypatch.setattr(lm_harness, "TASKS", {task: f"our_{task}" for task in items})
    expected = {}
    for task, own in items.items():
        losses = [
            [r.nll for r in read(model, [model.encoder.sample(i.prompt, a) for a in i.answers])]
            for i in own
        ]
        hits = [row.index(min(row)) == i.right for row, i in zip(losses, own, strict=True)]
        expected[f"harness_{task}_acc"] = 100 * sum(hits) / len(hits)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert lm_harness.harness_scores(model, 100) == pytest.approx(expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(set(expected.values()) - {0.0, 100.0}) == 2

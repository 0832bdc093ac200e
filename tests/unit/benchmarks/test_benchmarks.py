"""The benchmark's presets at very small sizes: they run, and say what they must. No timings."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks import command, presets
from tests.benchmarks.contenders import Fast, Floor, Reference, StepSettings
from tests.benchmarks.models import ModelShape, build, part, random_batches
from tests.benchmarks.report import lines
from tests.benchmarks.savings import WITHOUT
from tests.benchmarks.steps import RATIOS, StepBenchmark
from tests.unit.helpers.turns import marked

TINY = ModelShape(
    family="llama",
    hidden=16,
    inner=24,
    layers=4,
    heads=2,
    kv_heads=1,
    vocabulary=40,
    rotary=4,
)
ZSRE = {"zsre": ("down:2-3",)}
EDITS = {"down_half": ("down:2-3",), "gate_up_half": ("gate:2-3", "up:2-3")}
CPU = torch.device("cpu")


LOOP: dict[str, Any] = {"rank": 3, "batch_size": 2, "depth": 2}
SIZES: dict[str, dict[str, Any]] = {
    **{
        name: {"shape": TINY, "configurations": EDITS, "repeats": 1, **LOOP}
        for name in ("small", "llama3-8b", "mistral-7b")
    },
    "gpt-j-6b": {"shape": TINY, "configurations": ZSRE, "repeats": 1, **LOOP},
    "wide": {"shapes": ((12, 16), (16, 12)), "rows": (5, 30), "rank": 3, "repeats": 1},
    "growth": {
        "stream": TINY,
        "step": TINY,
        "stream_edits": 30,
        "depths": (1, 2),
        "widths": (16, 32),
        "batch_sizes": (2, 3),
        **LOOP,
    },
    "scoring": {
        "shape": TINY,
        "modules": ("down:2-3",),
        "edits": 5,
        "checkpoints": 2,
        "plain_edits": 3,
    },
    "values": {"shape": TINY, "edits": 3, "alone_edits": 2, "steps": 4, "repeats": 1},
    "savings": {"shape": TINY, "modules": ("down:2-3",), "repeats": 1, **LOOP},
    "release-shaped": {},  # see test_release_shaped.py
}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The presets, each at a size that takes no time, in its own family."""
    small: dict[str, Any] = {}
    for name, preset in presets.PRESETS.items():
        changes = dict(SIZES[name])
        if isinstance(preset, StepBenchmark):
            changes["shape"] = replace(TINY, family=preset.shape.family)
        small[name] = replace(preset, **changes)
    monkeypatch.setattr(presets, "PRESETS", small)


def _run(name: str, folder: Path, *more: str) -> dict[str, Any]:
    file = folder / "result.json"
    threads = str(torch.get_num_threads())
    arguments = ["--preset", name, "--json", str(file), "--threads", threads, *more]
    shown = "\n".join(lines(command.run([*arguments, "--device", "cpu"])))
    assert f"preset                   {name}" in shown
    result: dict[str, Any] = json.loads(file.read_text())
    assert result["preset"] == name
    assert result["machine"]["torch"] == torch.__version__
    assert f"--preset {name}" in result["command"]
    return result


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    "name", marked(["small", "llama3-8b", "mistral-7b", "gpt-j-6b"], (), ("small", "gpt-j-6b"))
)
def test_step_presets(name: str, tmp_path: Path) -> None:
    result = _run(name, tmp_path, "--profile")
    configurations = result["configurations"]
    assert set(configurations) == ({"zsre"} if name == "gpt-j-6b" else set(EDITS))
    for key, worst in RATIOS.items():
        assert result[key] == worst(c[key] for c in configurations.values())
        assert result[key] > 0
    for one in configurations.values():
        for step in ("train", "edit"):
            assert set(one[f"{step}_seconds"]) == {"reference", "ours", "floor"}
            assert one[f"{step}_seconds_per_edit"]["ours"] == one[f"{step}_seconds"]["ours"] / 2
            assert one[f"profile_{step}"][0]["calls"] > 0


@pytest.mark.long
@pytest.mark.usefixtures("tiny")
def test_the_textbooks_time_is_accounted_for(tmp_path: Path) -> None:
    result = _run("small", tmp_path, "--configurations", "down_half")
    account = result["configurations"]["down_half"]["reference_account"]
    assert account["flops"] > 0
    assert account["over_matrix"] == account["seconds"] / account["matrix_seconds"]
    assert account["matrix_seconds_cold"] > 0
    left = account["seconds"] * (1 - account["elsewhere_share"])
    assert account["unexplained_cold"] == left / account["matrix_seconds_cold"] - 1
    assert sum(account["parts"].values()) == pytest.approx(account["elsewhere_share"])
    assert result["reference_over_flops"] == account["over_matrix"]
    assert result["reference_unexplained"] == account["unexplained"] < account["over_matrix"] - 1
    named = {row["operation"] for row in account["elsewhere"]}
    assert "(outside operations)" in named
    assert not named & {"aten::mm", "aten::addmm", "aten::bmm"}


@pytest.mark.usefixtures("tiny")
def test_a_reduced_preset_without_the_textbook(tmp_path: Path) -> None:
    result = _run("gpt-j-6b", tmp_path, "--layers", "2", "--without-reference")
    assert result["configurations"]["zsre"]["modules"] == ["down:1-1"]
    assert set(result["configurations"]["zsre"]["train_seconds"]) == {"ours", "floor"}
    assert "train_over_floor" in result
    assert "train_ratio" not in result


@pytest.mark.usefixtures("tiny")
def test_wide(tmp_path: Path) -> None:
    result = _run("wide", tmp_path)
    for key in ("solve_ratio", "editor_ratio"):
        assert set(result[key]) == {"12x16", "16x12"}
        for ratios in result[key].values():
            assert set(ratios) == {"5", "30"}
            assert all(r > 0 for r in ratios.values())


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_growth(tmp_path: Path) -> None:
    result = _run("growth", tmp_path)
    for key in ("edit_seconds_by_tenth", "age_cost_by_tenth", "held_gb_by_tenth"):
        assert len(result[key]) == 10
    assert result["edit_growth"] >= max(1, result["edit_growth_end"])
    assert set(result["by_depth"]) == {"1", "2"}
    assert set(result["by_width"]) == {"16", "32"}
    assert set(result["by_batch_size"]) == {"2", "3"}
    for step in result["by_depth"].values():
        assert step["peak_gb"] >= step["held_gb"] > 0
    assert result["memory_growth"] > 0
    assert result["step_memory_growth"] > 0


@pytest.mark.usefixtures("tiny")
def test_scoring(tmp_path: Path) -> None:
    result = _run("scoring", tmp_path)
    assert result["prompts"] == 15
    # The unedited model's answers to 5 prompts; 2 edits' and 5 edits' prompts at the checkpoints.
    assert result["prompts_read"] == 5 + 3 * 2 + 3 * 5
    assert all(result[f"scoring_ratio{pass_}"] > 0 for pass_ in ("", "_warm", "_cold"))
    assert result["prefix_cache_hit_rate"] == 0.5


@pytest.mark.usefixtures("tiny")
def test_values(tmp_path: Path) -> None:
    """All three ways find the same vectors, which are not those they began with."""
    result = _run("values", tmp_path)
    assert result["values_ratio"] > 0
    assert result["values_ratio_ours"] > 0
    assert set(result["seconds_per_edit"]) == {"ours", "one_by_one", "plain"}
    assert 0 <= result["values_difference"] < 1e-4
    assert 0 <= result["delta_difference"] < 1e-3


@pytest.mark.long
@pytest.mark.usefixtures("tiny")
def test_savings(tmp_path: Path) -> None:
    result = _run("savings", tmp_path)
    for step in ("train", "edit"):
        assert set(WITHOUT) < set(result[f"{step}_cost"])
        assert result[f"{step}_cost"]["nothing"] == 1


@pytest.mark.usefixtures("tiny")
def test_a_choice_that_does_not_apply_is_refused() -> None:
    with pytest.raises(ValueError, match="'wide' has no layers"):
        command.run(["--preset", "wide", "--layers", "2"])


@pytest.mark.parametrize("family", ["llama", "mistral", "gptj"])
def test_the_floor_runs_the_model_it_claims_to_run(family: str) -> None:
    """Lower and upper part after each other are the whole model."""
    model = build(replace(TINY, family=family))
    ids = torch.randint(40, (2, 6))
    lower = part(model, range(2), final_norm=False)
    upper = part(model, range(2, 4), final_norm=True)
    with torch.no_grad():
        hidden = lower(input_ids=ids, use_cache=False).last_hidden_state
        top = upper(inputs_embeds=hidden, use_cache=False).last_hidden_state
        found = model.get_output_embeddings()(top)
        expected = model(input_ids=ids, use_cache=False).logits
    assert torch.allclose(found, expected, atol=1e-6)


def test_contenders_do_the_same_work() -> None:
    """One training step of reference implementation and ours on one window: equal shifts, equal
    gradients."""
    model = build(TINY).double()
    batches = random_batches(6, 3, 40, prompt=(2, 6))
    settings = StepSettings(modules=EDITS["down_half"], rank=3, depth=3)
    ours, book = Fast(model, batches, settings), Reference(model, batches, settings)
    assert [id(b) for b in ours.window(1)] == [id(batches[i]) for i in (3, 2, 1)]
    name = ours.model.modules[0]
    before = ours.model.weights.read(name).clone(), book.editor.weights[name].detach().clone()
    for contender in (ours, book, Floor(model, batches, settings)):
        contender.train(0)()
        contender.edit(5)()
    assert not torch.equal(ours.model.weights.read(name), before[0])
    assert not torch.equal(book.editor.weights[name], before[1])
    assert len(ours.reward._window) == 3
    assert [id(e.batch) for e in ours.reward._window] == [id(b) for b in ours.window(0)]


def test_batches_have_the_lengths_asked_for() -> None:
    batches = random_batches(30, 4, 50)
    again = random_batches(30, 4, 50)
    phases = [p for b in batches for p in (b.edit, b.equivalent, b.unrelated)]
    answers = [len(s.answer_ids) for p in phases for s in p.samples]
    prompts = [len(s) - len(s.answer_ids) + 1 for p in phases for s in p.samples]
    assert (min(prompts), max(prompts)) == (8, 24)
    assert (min(answers), max(answers)) == (1, 4)
    assert all(
        torch.equal(a.input_ids, b.input_ids)
        for x, y in zip(batches, again, strict=True)
        for a, b in zip(x.edit.samples, y.edit.samples, strict=True)
    )


@pytest.mark.long
def test_runs_where_the_cluster_stack_is_absent() -> None:
    absent = ("ray", "deepspeed", "mlflow", "typer", "rich", "pyarrow", "duckdb", "pydantic")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r}));"
        "from jobs.benchmark import main;"
        "from tests.benchmarks import presets;"
        "presets.PRESETS['wide'] = presets.WideBenchmark(shapes=((6, 4),), rows=(3,), rank=2);"
        "sys.argv[1:] = ['--preset', 'wide', '--threads', '1']; main()"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "editor_ratio" in done.stdout

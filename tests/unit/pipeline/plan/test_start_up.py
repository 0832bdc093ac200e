"""What a command imports before it does anything, and sizes that are counted without a model."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.presets import PRESETS
from pipeline.plan.architecture import Architecture, _built, _of_preset, _of_world
from rledit import editors
from rledit.editors import EDITORS
from rledit.families import edited_modules, linear_shape
from rledit.world import WORLD_MODELS

# Seconds of imports each, and nothing that a plan needs.
LARGE = ("transformers", "ray", "mlflow", "pandas", "matplotlib", "scipy", "gguf", "duckdb")
NOT_FOR_PLANS = (*LARGE, "torch", "pyarrow", "jinja2", "fsspec")
GRID = """
name: start
models:
  - {name: llama, preset: llama-3-8b-instruct}
datasets:
  - {name: world, world: {n_subjects: 60}}
editors:
  - {editor: rledit}
  - {editor: hiedit}
  - {editor: dafnet}
  - {editor: memit}
  - {editor: grace}
  - {editor: ultraedit, settings: {step: 1.0e-3}}
streams:
  - {n_batches: 3, batch_size: 4}
seeds: [SEEDS]
"""


def _imported(arguments: list[str], names: tuple[str, ...]) -> tuple[str, list[str]]:
    """What the command prints, and which of the packages its process has imported."""
    code = (
        "import sys\nfrom pipeline.cli import main\n"
        f"sys.argv = ['rledit', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code in (0, 1, None), end\n"
        f"print('IMPORTED', *[name for name in {names!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said, _, found = done.stdout.rpartition("IMPORTED")
    return said, found.split()


def test_help_imports_none_of_the_large_packages() -> None:
    said, found = _imported(["--help"], (*NOT_FOR_PLANS, "numpy"))
    assert "ledger" in said
    assert found == []


def test_a_plan_imports_nothing_that_loads_or_runs_models(tmp_path: Path) -> None:
    grid = tmp_path / "start.yaml"
    grid.write_text(GRID.replace("SEEDS", ", ".join(map(str, range(72)))))
    arguments = ["plan", str(grid), "--scale", "proxy", "--results", str(tmp_path / "results")]
    said, found = _imported([*arguments, "--no-cells"], NOT_FOR_PLANS)
    assert "504 cells, 504 to run" in said  # the unedited model among them
    assert "M parameters" in said
    assert found == []


def test_rows_are_checked_without_what_computes(tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    edit = {"prompt": "The tower of Zalim is painted", "target": "red", "subject": "Zalim"}
    rows.write_text(json.dumps([edit]))
    said, found = _imported(["data", "check", str(rows)], (*NOT_FOR_PLANS, "numpy"))
    assert "1 edit" in said
    assert found == []


def _printed(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_editors_classes_are_asked_without_torch() -> None:
    code = (
        "import sys\nfrom rledit.editors import EDITORS\n"
        "kinds = [cls.work_kind for cls in EDITORS.values()]\n"
        "print(len(kinds), 'torch' in sys.modules)"
    )
    assert _printed(code) == f"{len(EDITORS)} False"


def test_only_the_editors_that_are_named_are_imported() -> None:
    code = (
        "import sys\nfrom rledit.editors import editor_class\nname = editor_class('none').name\n"
        "others = [n for n in ('rome', 'rledit') if f'rledit.editors.{n}' in sys.modules]\n"
        "print(name, *others)"
    )
    assert _printed(code) == "none"


def test_torch_is_imported_when_it_is_used_and_is_torch_itself() -> None:
    code = (
        "import pickle, sys\nfrom rledit.lazy_torch import F, nn, torch\n"
        "@torch.no_grad()\ndef enabled(): return torch.is_grad_enabled()\n"
        "before = 'torch' in sys.modules\n"
        "after = pickle.loads(pickle.dumps(torch)).zeros(2, requires_grad=True) * 2\n"
        "with torch.no_grad():\n    inside = enabled(), torch.is_grad_enabled()\n"
        "import torch as real\n"
        "same = nn.Linear is real.nn.Linear, F.relu is real.nn.functional.relu\n"
        "print(before, after.requires_grad, *inside, enabled(), real.is_grad_enabled(), *same)"
    )
    assert _printed(code) == "False True False False False True True True"


def test_the_driver_of_a_run_imports_nothing_that_opens_models() -> None:
    code = (
        "import sys, pipeline.run.driver\n"
        "print(*[name for name in ('transformers', 'torch') if name in sys.modules])"
    )
    assert _printed(code) == ""


def test_rows_are_checked_before_a_run_without_torch(tmp_path: Path) -> None:
    grid = tmp_path / "run.yaml"
    world = "models: [{name: tiny, world_model: tiny}]"
    model = "models:\n  - {name: llama, preset: llama-3-8b-instruct}"
    grid.write_text(GRID.replace(model, world).replace("SEEDS", "0, 1"))
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from pipeline.config.parse import load_grid\n"
        "from pipeline.plan.grid_plan import make_plan\n"
        "from pipeline.plan.preflight import preflight\n"
        "from pipeline.results.lake.lake import Lake\n"
        "sets = ['editors=[{editor: ultraedit, settings: {step: 1.0e-3}}]']\n"
        f"parsed = load_grid(Path({str(grid)!r}), sets)\n"
        f"plan = make_plan(parsed, Lake({str(tmp_path / 'lake')!r}))\n"
        "print(len(plan.missing), preflight(plan.missing), 'torch' in sys.modules)"
    )
    assert _printed(code) == "2 {} False"


def _equals_built(counted: Architecture) -> None:
    built = _built(counted.model.config, counted.source)
    kinds = [f"{kind}:all" for kind in counted.description.target_modules]
    assert counted == replace(built, build=counted.build)
    assert counted.target_modules(kinds) == {
        name: linear_shape(built.model.get_submodule(name))
        for name in edited_modules(built.model, kinds)
    }


@pytest.mark.parametrize("name", PRESETS)
def test_sizes_of_a_preset_are_those_of_its_modules(name: str) -> None:
    _equals_built(_of_preset(name))


@pytest.mark.parametrize("name", WORLD_MODELS)
@pytest.mark.parametrize("own", [{}, {"chat": True, "layers": 3, "hidden": 48}])
def test_sizes_of_a_world_model_are_those_of_its_modules(name: str, own: dict[str, Any]) -> None:
    _equals_built(_of_world(replace(WORLD_MODELS[name], **own), json.dumps({"n_subjects": 60})))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("up:7", r"model\.layers\.7\.mlp\.up_proj.*does not exist.*of 2 layers"),
        ("side:0", "family 'llama' has no 'side'; it has gate, up, down"),
        ("up:0,0", "edited modules repeat"),
    ],
)
def test_a_module_that_cannot_be_counted_is_refused_as_by_the_model(
    spec: str, message: str
) -> None:
    architecture = _of_world(WORLD_MODELS["tiny"], json.dumps({"n_subjects": 60}))
    with pytest.raises(ValueError, match=message):
        architecture.target_modules([spec])


def test_a_module_beside_the_mlp_is_looked_up_in_the_model() -> None:
    architecture = _of_world(WORLD_MODELS["tiny"], json.dumps({"n_subjects": 60}))
    name = "model.layers.1.self_attn.o_proj"
    assert architecture.target_modules([name]) == {name: (64, 64)}


def test_editors_classes_are_found_by_their_own_names() -> None:
    for editor in EDITORS.values():
        assert getattr(editors, editor.__name__) is editor
    with pytest.raises(ImportError, match="cannot import name 'NoEditor'"):
        exec("from rledit.editors import NoEditor")

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
from rledit.families import edited_modules, linear_shape
from rledit.world import WORLD_MODELS

# Seconds of imports each, and nothing that a plan needs.
NOT_FOR_PLANS = ("transformers", "ray", "mlflow", "pandas", "matplotlib", "scipy", "gguf", "duckdb")
NOT_FOR_HELP = (*NOT_FOR_PLANS, "torch", "numpy", "pyarrow", "jinja2")
GRID = """
name: start
models:
  - {name: llama, preset: llama-3-8b-instruct}
datasets:
  - {name: world, world: {n_subjects: 60}}
editors:
  - {editor: rledit}
  - {editor: memit}
  - {editor: ultraedit, settings: {step: 1.0e-3}}
streams:
  - {n_batches: 3, batch_size: 4}
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
    said, found = _imported(["--help"], NOT_FOR_HELP)
    assert "ledger" in said
    assert found == []


def test_a_plan_imports_nothing_that_loads_or_runs_models(tmp_path: Path) -> None:
    grid = tmp_path / "start.yaml"
    grid.write_text(GRID)
    arguments = ["plan", str(grid), "--scale", "proxy", "--results", str(tmp_path / "results")]
    said, found = _imported(arguments, NOT_FOR_PLANS)
    assert "4 cells, 4 to run" in said  # and the unedited model
    assert "M parameters" in said
    assert found == []


def test_the_driver_of_a_run_imports_nothing_that_opens_models() -> None:
    code = "import sys, pipeline.run.driver; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "False", done.stderr


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

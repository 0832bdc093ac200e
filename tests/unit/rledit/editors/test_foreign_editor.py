"""An editor that lies outside the package: named by module and class."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.plan.cell_keys import address_of, identity_of
from pipeline.plan.cells import cells_of
from rledit.editors import editor_class
from rledit.model import EditableModel
from tests.unit.helpers.text_edits import tiny_tokenizer
from tests.unit.helpers.tiny_models import random_batches, tiny_model

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"

SOURCE = """
from rledit.editors.none import Unedited

class Mine(Unedited):
    name = "mine"

class Thief(Unedited):
    name = "ft"

class Old(Unedited):
    name = "old"
    linears = "down"

    def load_statistics(self, statistics):
        pass

    @classmethod
    def obstacle_of(cls, config, encoder):
        return None

class Both(Unedited):
    name = "both"

    def load_covariance(self, covariance):
        self.load_statistics(covariance)

    def load_statistics(self, statistics):
        pass
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    name = f"outside_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_it_is_a_cell_like_any_other(module: str) -> None:
    cell = cells_of(load_grid(GRID, [f"editors=[{{editor: '{module}:Mine'}}]"]))[0]
    assert cell.label == address_of(cell).editor == "mine"
    assert identity_of(cell)["editor"] == "mine"
    assert len(identity_of(cell)["editor_source"]) == 16
    assert "editor_source" not in identity_of(cells_of(load_grid(GRID))[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module_here:Mine", "No module named"),
        ("{module}:Other", "has no attribute 'Other'"),
        ("json:JSONDecoder", "no subclass"),
        ("{module}:Thief", "belongs to another editor"),
        ("{module}:Old", "load_statistics, now called load_covariance"),
        ("{module}:Old", "linears, now called target_modules; obstacle_of, now called skip_reason"),
    ],
)
def test_what_is_wrong_is_said(module: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        editor_class(name.format(module=module))
    with pytest.raises(ConfigError, match=rf"tiny.yaml.*{message}"):
        load_grid(GRID, [f"editors=[{{editor: '{name.format(module=module)}'}}]"])


def test_an_editor_that_has_the_new_name_may_have_the_old_one_too(module: str) -> None:
    assert editor_class(f"{module}:Both").name == "both"


def test_the_editor_of_the_documentation_needs_no_more_than_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `MomentEditor` with `solve` alone: no loss groups and no conventions of its own."""
    page = (Path(__file__).parents[4] / "docs" / "extending.md").read_text()
    ((name, source),) = re.findall(r"<!-- file: (my_\w+)\.py -->\n```python\n(.*?)```", page, re.S)
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    grid = load_grid(GRID, [f"editors=[{{editor: '{name}:GradientStep'}}]"])
    assert cells_of(grid)[0].label == "gradient_step"
    found = editor_class(f"{name}:GradientStep")
    model = EditableModel(tiny_model("llama"), tiny_tokenizer("llama"), ("down:1,3",))
    editor = found(model, found.Config(modules=("down:1,3",)))
    assert (editor.group_size, editor.order) == (4, "stream")
    assert editor.edit(random_batches(1, 6)[0])["shift_norm"] > 0
    assert all(model.weights.delta_norm(name) > 0 for name in model.modules)

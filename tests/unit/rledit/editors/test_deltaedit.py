"""DeltaEdit: which edits are projected, and off what."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rledit.editors.deltaedit import DeltaEdit, RunningSpread, leading_space
from rledit.locate.sites import BlockOutput
from rledit.locate.value import Confinement, optimise_values
from tests.unit.helpers.sequential_editors import edited, make, ready, stream


def test_deltaedit_projects_the_edits_that_depart() -> None:
    """δ of an edit that departs is orthogonal to what was written; others are AlphaEdit's."""
    editor, rest = ready("deltaedit", settling_edits=6, deviations=0.0)
    assert isinstance(editor, DeltaEdit)
    requests = editor.requests(rest[0])
    confinement = editor.confinement(requests)
    assert confinement is not None
    assert bool(confinement.edits.any())
    name = editor.modules[-1]
    written = edited(editor)[name].double() - editor.model.weights.original(name).double()
    space = leading_space(written, 0.25, 1e-4)
    assert 0 < space.shape[1] <= 4
    assert torch.equal(confinement.space, space)
    site = BlockOutput(editor.model, 2)
    confined = Confinement(space, torch.tensor([True, False, True]))
    config = replace(editor.value_config(), edits_per_pass=2)
    found = optimise_values(editor.model, requests, site, config, confinement=confined)
    free = optimise_values(editor.model, requests, BlockOutput(editor.model, 2), config)
    inside = (found.delta.double() @ space).norm(dim=-1)
    assert float(inside[0]) < 1e-5 and float(inside[2]) < 1e-5 and float(inside[1]) > 1e-3
    torch.testing.assert_close(found.delta[1], free.delta[1], rtol=1e-4, atol=1e-5)
    assert bool((free.delta.double() @ space).norm(dim=-1)[0] > 1e-3)


def test_deltaedit_settles_first_and_leaves_outliers_out_of_the_mean() -> None:
    settled, early = make("deltaedit", settling_edits=100), make("deltaedit", settling_edits=0)
    counts: dict[str, list[float]] = {"settled": [], "early": []}
    for batch in stream(settled):
        counts["settled"].append(settled.edit(batch)["projected_edits"])
        counts["early"].append(early.edit(batch)["projected_edits"])
    assert counts["settled"] == [0.0] * 4
    assert counts["early"][0] == 0.0, "nothing is written before the first batch"
    assert sum(counts["early"]) > 0
    spread = RunningSpread()
    for value in (1.0, 1.2, 0.9):
        assert not spread.departs(value, 3.0)
        spread.update(value)
    mean = 0.9 * (0.9 * 1.0 + 0.1 * 1.2) + 0.1 * 0.9
    assert spread.mean == pytest.approx(mean)
    first = 0.1 * (1.2 - 1.02) ** 2
    assert spread.variance == pytest.approx(0.9 * first + 0.1 * (0.9 - mean) ** 2)
    assert spread.departs(2.0, 3.0)


def test_the_leading_space_is_that_of_the_singular_values() -> None:
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator).double())
    right, _ = torch.linalg.qr(torch.randn(10, 8, generator=generator).double())
    matrix = left * torch.tensor([9.0, 5, 3, 2, 1, 0.5, 0.2, 0.1]).double() @ right.T
    for share, floor, count in ((0.25, 0.1, 2), (1.0, 3.9, 4), (1.0, 0.0, 8), (0.5, 100.0, 0)):
        space = leading_space(matrix, share, floor)
        assert space.shape == (8, count)
        expected = left[:, :count] @ left[:, :count].T
        torch.testing.assert_close(space @ space.T, expected, rtol=1e-8, atol=1e-10)

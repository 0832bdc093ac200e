"""The exit code of a submitted job: whether its scheduler starts it anew."""

from __future__ import annotations

import sys

import pytest

from jobs import run_grid


@pytest.mark.parametrize(
    ("code", "arguments", "exits"),
    [
        (0, [], 0),
        (1, [], 1),
        (2, [], 2),
        (0, ["--allow-failed-cells"], 0),
        (1, ["--allow-failed-cells"], 0),
        (2, ["--allow-failed-cells"], 2),
    ],
)
def test_failed_cells_are_forgiven_and_nothing_else(
    code: int, arguments: list[str], exits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_grid, "execute", lambda path: code)
    monkeypatch.setattr(sys, "argv", ["run_grid", "submission.json", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_grid.main()
    assert ended.value.code == exits

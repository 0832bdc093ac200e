"""Commands that were renamed: the old name works, is hidden, and says the new one."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app


@pytest.mark.parametrize(("old", "new"), [("sweep", "close-stale-runs")])
def test_the_old_name_works_once_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, old: str, new: str
) -> None:
    rest = ["--results", str(tmp_path)]
    with caplog.at_level(logging.WARNING):
        now, before = (CliRunner().invoke(app, [name, *rest]) for name in (new, old))
    assert now.exit_code == before.exit_code == 0, before.output
    assert now.output.replace(new, old) == before.output
    (line,) = [r.getMessage() for r in caplog.records if "is now" in r.getMessage()]
    assert line.startswith(f"rledit {old} is now rledit {new}")
    listed = CliRunner().invoke(app, ["--help"]).output
    assert new in listed and f" {old} " not in listed

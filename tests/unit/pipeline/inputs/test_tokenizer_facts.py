"""What is asked of a tokenizer for a plan: loaded once for a content, again after any change."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.inputs import file_hashes, tokenizer_facts, tokenizer_files
from pipeline.inputs.tokenizer_files import thinking_switches, writes_bos
from tests.unit.helpers.text_edits import tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}<u>{{ m.content }}{% endfor %}"
    "{% if enable_thinking is defined and enable_thinking is false %}<x>{% endif %}"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint's small files, with a switch in its template."""
    tokenizer = tiny_tokenizer("llama")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Folders whose tokenizers were really loaded."""
    found: list[Path] = []
    load = tokenizer_files.load_tokenizer

    def counted(checkpoint: str, folder: Path) -> Any:
        found.append(folder)
        return load(checkpoint, folder)

    monkeypatch.setattr(tokenizer_files, "load_tokenizer", counted)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    another_process()
    return found


def another_process() -> None:
    tokenizer_files._read_facts.cache_clear()


def facts(folder: Path) -> tuple[bool | None, dict[str, Any]]:
    another_process()
    return writes_bos(str(folder)), thinking_switches(str(folder))


def note(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "cache" / "rledit" / "tokenizers").iterdir()
    return found


def test_a_tokenizer_is_loaded_once_for_its_content(
    folder: Path, loads: list[Path], tmp_path: Path
) -> None:
    first = facts(folder)
    assert first == (True, {"enable_thinking": False})
    assert facts(folder) == first and len(loads) == 1
    elsewhere = folder.rename(tmp_path / "moved")
    assert facts(elsewhere) == first and len(loads) == 1


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_change_of_any_of_its_files_is_seen(folder: Path, loads: list[Path], name: str) -> None:
    facts(folder)
    with (folder / name).open("a") as file:
        file.write("\n")
    facts(folder)
    assert len(loads) == 2


def test_another_template_is_asked_anew(folder: Path) -> None:
    assert facts(folder)[1]
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    assert facts(folder)[1] == {}


def test_another_version_of_a_library_is_asked_anew(
    folder: Path, loads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts(folder)
    monkeypatch.setattr(tokenizer_facts, "version", lambda _: "99")
    facts(folder)
    assert len(loads) == 2


def test_a_broken_note_is_read_past(folder: Path, loads: list[Path], tmp_path: Path) -> None:
    first = facts(folder)
    whole = json.loads(note(tmp_path).read_bytes())
    broken = ["", "[]", "{", json.dumps({**whole, "key": "other"})]
    broken += [json.dumps({**whole, "writes_bos": 1}), json.dumps({**whole, "switches": []})]
    for content in broken:
        note(tmp_path).write_text(content)
        assert facts(folder) == first
    assert len(loads) == 1 + len(broken)


def test_a_cache_that_cannot_be_written_costs_only_time(
    folder: Path,
    loads: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "occupied").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "occupied"))
    file_hashes._warn_forgotten.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert facts(folder) == facts(folder)
    assert len(loads) == 2
    assert "tokenizers are loaded again by every command; set XDG_CACHE_HOME" in caplog.text


def test_what_is_noted_needs_no_library_that_loads_tokenizers(folder: Path) -> None:
    facts(folder)
    code = (
        "import sys\nfrom pipeline.inputs.tokenizer_files import writes_bos\n"
        f"print(writes_bos({str(folder)!r}), *[n for n in ('transformers', 'torch') "
        "if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["True"], done.stderr

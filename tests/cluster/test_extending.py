"""docs/extending.md, followed literally: its files written, its lines added, its commands run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from rledit.world import World, WorldConfig
from rledit.world.words import save_tokenizer, word_tokenizer, world_words
from tests.cluster.conftest import rledit

pytestmark = pytest.mark.cluster

TIMEOUT_SECONDS = 900

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = (REPOSITORY / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", DOCUMENT, re.S))
LINES = re.findall(r"<!-- lines: (\S+) (\S+) -->\n```python\n(.*?)```", DOCUMENT, re.S)
(COMMANDS,) = re.findall(r"<!-- run -->\n```bash\n(.*?)```", DOCUMENT, re.S)

INSIDE = """
name: inside
models:
  - {name: tiny, checkpoint: %s, modules: ["down:1"]}
datasets:
  - name: trivia
    files: {train: trivia_train.jsonl, evaluation: trivia.jsonl}
editors:
  - {editor: none}
  - {editor: gradient_step, settings: {step: 1.0e-2}}
streams:
  - {n_batches: 2, batch_size: 4}
protocols: [first_token]
"""


def shell(command: str, folder: Path, **environment: str) -> str:
    """Run a line as a reader does, with the console script of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", command],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
        | {"PATH": path, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_block_of_the_page_is_followed() -> None:
    assert len(FILES) + len(LINES) + 1 == DOCUMENT.count("```") / 2


def test_an_editor_from_outside_gets_into_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("my_editor.py", "mine.yaml"):
        (tmp_path / name).write_text(FILES[name])
    run, table, query = COMMANDS.strip().split("\n")
    shell(run, tmp_path)
    monkeypatch.chdir(tmp_path)

    def typed(line: str) -> str:
        program, *words = shlex.split(line)
        assert program == "rledit"
        return rledit(*words).stdout

    rows = [line.split("|")[1].strip() for line in typed(table).splitlines() if "|" in line]
    assert {"unedited", "ultraedit", "gradient_step"} <= set(rows)
    assert "(1 row)" in typed(query)


def add_lines(path: Path, registry: str, block: str) -> None:
    """An import before the registry, an entry as its first."""
    lines = block.splitlines(keepends=True)
    imports = "".join(line for line in lines if line.startswith("from "))
    entry = "".join(line for line in lines if not line.startswith("from "))
    text = path.read_text()
    found = re.search(rf"^{registry}\b.*?[({{]\n", text, re.M | re.S)
    assert found is not None, f"{path} has no {registry}"
    path.write_text(f"{text[: found.start()]}{imports}{found[0]}{entry}{text[found.end() :]}")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages, with everything of the page added."""
    folder = tmp_path_factory.mktemp("extended")
    for package in ("rledit", "pipeline"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / package, folder / package, ignore=ignored)
    for name, text in FILES.items():
        if "/" in name:
            (folder / name).write_text(text)
    (folder / "rledit" / "editors" / "gradient_step.py").write_text(FILES["my_editor.py"])
    for name, registry, block in LINES:
        add_lines(folder / name, registry, block)
    return folder


@pytest.mark.slow
def test_what_is_added_inside_works_together(copy: Path) -> None:
    """One grid: a new editor, schema, protocol, family and figure."""
    world = World(WorldConfig(n_subjects=60))
    for name, split, n in (("trivia_train", "train", 8), ("trivia", "evaluation", 20)):
        rows = [
            {"question": e.prompt, "new_answer": e.target, "paraphrase": e.rephrases[0],
             "unrelated": e.locality[0].prompt, "unrelated_answer": e.locality[0].answer}
            for e in world.draw(split, n, seed=0)
        ]  # fmt: skip
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (copy / f"{name}.jsonl").write_text(text)
    tokenizer = word_tokenizer(world_words(world), add_bos=False)
    config = AutoConfig.for_model(
        "olmo", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=len(tokenizer), max_position_embeddings=64,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(copy / "model")
    save_tokenizer(tokenizer, copy / "model", "olmo")
    (copy / "inside.yaml").write_text(INSIDE % (copy / "model"))
    own = {"PYTHONPATH": str(copy)}
    cli = f"{sys.executable} -m pipeline.cli"
    assert "trivia" in shell(f"{cli} data check trivia.jsonl", copy, **own)
    shell(f"{cli} run inside.yaml", copy, **own)
    asked = (
        "SELECT editor, protocol, max(value) FROM curves JOIN runs USING (cell, editor) "
        "WHERE metric = 'weight_change_norm' AND final GROUP BY ALL"
    )
    answer = shell(f'{cli} query "{asked}" --format csv', copy, **own)
    moved = {line.split(",")[0]: line.split(",")[1:] for line in answer.strip().splitlines()[1:]}
    assert moved["none"] == ["first_token", "0.0"]
    assert moved["gradient_step"][0] == "first_token" and float(moved["gradient_step"][1]) > 0
    page = (copy / "results" / "inside.html").read_text()
    assert "Peak memory" in page
    assert "share of edits whose first answer token is right" in page

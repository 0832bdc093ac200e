"""A judge behind a real server of the interface: `transformers serve` with a tiny random model.

The model answers nonsense, which is what the gate before a judge is for. Needs the packages of
``pip install 'rledit-at-scale[serving]'``; about half a minute on two cores.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.import_utils import is_serve_available

from pipeline.results.judge.endpoint import MAX_TOKENS, Judge, open_endpoint
from pipeline.results.judge.gate import CASES
from pipeline.results.judge.judging import waiting
from pipeline.results.judge.prompt import judge_prompt
from pipeline.results.lake.lake import Lake
from tests.unit.pipeline.results.test_judge import everything_in, fill

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(
        not is_serve_available(),
        reason="transformers serve needs more packages: pip install 'rledit-at-scale[serving]'",
    ),
]

KEY = "sk-nobody/looks+at+this"
START_SECONDS, ASK_SECONDS, END_SECONDS = 600, 600, 120
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass
class Served:
    """A server under way.

    Attributes:
        url: Base URL of its interface.
        model: The name of its model there.
        process: Its process.
        said: Where it writes what it does.
    """

    url: str
    model: str
    process: subprocess.Popen[bytes]
    said: Path


def random_model(folder: Path) -> None:
    """A tiny random Llama with a tokenizer of bytes and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "</s>"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8192,
        eos_token_id=len(pieces) - 1,
        pad_token_id=len(pieces) - 1,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def answers(url: str) -> bool:
    """Whether a server is there; another status than success is an error."""
    try:
        with urllib.request.urlopen(f"{url.removesuffix('/v1')}/health", timeout=20) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError:
        raise
    except OSError:
        return False


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """The server, ended with the test."""
    folder, said = tmp_path / "nonsense", tmp_path / "server.log"
    random_model(folder)
    port = free_port()
    command = "from transformers.cli.transformers import main; main()"
    options = ["serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with said.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", command, *options],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
    url = f"http://127.0.0.1:{port}/v1"
    try:
        until = time.monotonic() + START_SECONDS
        while not answers(url):
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < until, said.read_text()
            time.sleep(0.5)
        yield Served(url, str(folder), process, said)
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_the_gate_catches_a_model_that_answers_nonsense_and_the_server_ends(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Lake(str(tmp_path / "lake"))
    fill(lake)
    before = everything_in(lake)

    # The interface's own replies: few tokens, and the same at every time.
    endpoint = open_endpoint(served.url, served.model)
    case = CASES[0].asked
    question = judge_prompt(case.question, case.gold, case.answer)
    first, again = (Judge(endpoint).ask(question) for _ in range(2))
    assert first == again
    assert len(first) <= MAX_TOKENS  # a token is a byte

    words = [sys.executable, "-m", "pipeline.cli", "judge", "demo", "--lake", lake.storage.uri]
    words += ["--judge", served.url, "--model", served.model]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        timeout=ASK_SECONDS,
        env={**os.environ, "RLEDIT_JUDGE_KEY": KEY, "COLUMNS": "400"},
        check=False,
    )
    told = done.stdout + done.stderr
    assert done.returncode == 2, told
    assert "is not fit to judge" in told and "of 6 as they should be, e.g. it says" in told
    assert "Traceback" not in told
    # Nobody's answer was judged, and what the judge was asked with stays where it was.
    assert everything_in(lake) == before
    assert waiting(lake.manifest("demo")) == 1
    asked = served.said.read_text().count("POST /v1/chat/completions")
    assert asked == 2 + len(CASES)
    for text in (told, served.said.read_text()):
        assert KEY not in text

    served.process.terminate()
    served.process.wait(END_SECONDS)
    assert not answers(served.url)

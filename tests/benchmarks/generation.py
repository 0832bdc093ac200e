"""What texts behind prompts cost: written together, by length, and the prompts' passes alone.

python -m tests.benchmarks.generation --model FOLDER --rows FILE --prompts 64 --tokens 30
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rledit.datasets.edits import read_edits
from rledit.decoding import EndOfLine, decode
from rledit.model import EditableModel
from tests.benchmarks.machine import describe
from tests.benchmarks.report import lines


def generation_seconds(
    model: EditableModel, prompts: Sequence[str], tokens: int
) -> dict[str, float]:
    """CPU seconds by what they are of, and whether both ways write the same.

    Args:
        model: The model.
        prompts: The prompts.
        tokens: Most tokens behind each, up to a line break or the end of the sequence.
    """
    stop = EndOfLine(model)
    by_length: dict[int, list[str]] = {}
    for prompt in prompts:
        by_length.setdefault(len(model.encoder.prompt_ids(prompt)), []).append(prompt)
    alike = [prompt for own in by_length.values() for prompt in own]
    decode(model, alike[:1], 2, stop)  # what is made once
    together, seconds = _timed(lambda: decode(model, alike, tokens, stop))
    apart, seconds_apart = _timed(
        lambda: [text for own in by_length.values() for text in decode(model, own, tokens, stop)]
    )
    _, of_prompts = _timed(lambda: decode(model, alike, 1, stop))
    return {
        "together_seconds": seconds,
        "by_length_seconds": seconds_apart,
        "prompts_alone_seconds": of_prompts,
        "tokens": sum(map(len, together)),
        "equal": together == apart,
    }


@torch.no_grad()
def step_ms(
    model: EditableModel, rows: Sequence[int] = (1, 4, 8, 16, 32, 64, 128)
) -> dict[str, float]:
    """CPU milliseconds of a token in passes over one token of so many texts, the best of four."""
    found = {}
    for n in rows:
        ids = torch.randint(0, model.model.config.vocab_size, (n, 12))  # type: ignore[union-attr, arg-type]
        state = model.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
        best = float("inf")
        for _ in range(4):
            began = time.process_time()
            model.model(
                input_ids=ids[:, :1], past_key_values=state, use_cache=True, logits_to_keep=1
            )
            best = min(best, time.process_time() - began)
        found[str(n)] = 1000 * best / n
    return found


def _timed(work: Callable[[], list[list[int]]]) -> tuple[list[list[int]], float]:
    began = time.process_time()
    return work(), time.process_time() - began


def main() -> None:
    """Measure a model from a folder on rows of a file, with one thread."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.generation")
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--rows", type=Path, required=True, metavar="FILE")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=30)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    loaded = AutoModelForCausalLM.from_pretrained(chosen.model, dtype=torch.float32)
    model = EditableModel(loaded, AutoTokenizer.from_pretrained(chosen.model), ("down:0",))
    prompts = [edit.prompt for edit in read_edits(chosen.rows).edits[: chosen.prompts]]
    found = generation_seconds(model, prompts, chosen.tokens)
    print("\n".join(lines({**found, "step_ms": step_ms(model), "machine": describe(model.device)})))


if __name__ == "__main__":
    main()

"""World models on disk: trained on the spot, kept under the hash of all that made them.

``{cache_dir}/{family}-{hash}/`` holds what `from_pretrained` reads and ``training.json``: the
recall, the loss, the time it took, the versions, and a digest of each file. A build works in a
directory of its own and renames it as the last thing. So a directory that has its final name is
whole, and two builders of one model, at worst, both do the work and the second throws its away.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rledit.chat import PromptStyle
from rledit.errors import UserError
from rledit.lazy_torch import torch
from rledit.seeding import seeded
from rledit.tokenization import Encoder
from rledit.world.facts import SPLITS, World
from rledit.world.presets import WorldModelSpec, model_config
from rledit.world.recall import world_recall
from rledit.world.training import Progress, train
from rledit.world.words import save_tokenizer, word_tokenizer, world_words
from rledit.writing_systems import AnswerSpace

if TYPE_CHECKING:
    # Imported for their names alone, they take seconds, and plans need none of them.
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

# Part of a model's hash: raised when the same settings would train another model.
RECIPE_VERSION = 1
TRAINING_FILE = "training.json"
_MAX_LENGTH = 64
_MAX_LENGTH_WITH_TEXT = 192
_LOW_RECALL = 0.95


class WorldModelError(UserError, RuntimeError):
    """A cached world model that is not what was written."""


def world_model_key(world: World, spec: WorldModelSpec) -> str:
    """Name of the model's directory: the family and a hash of world, architecture and settings."""
    identity = {"recipe": RECIPE_VERSION, "world": world.data_hash, "spec": spec.identity}
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return f"{spec.family}-{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"


def build_world_model(
    world: World,
    spec: WorldModelSpec,
    cache_dir: str | os.PathLike[str],
    progress: Progress | None = None,
) -> Path:
    """The directory of a model that knows a world, trained now unless it is there already.

    Load it with ``AutoModelForCausalLM.from_pretrained`` and ``AutoTokenizer.from_pretrained``.
    The same world, spec and thread count give the same weights bit for bit on one machine.

    Args:
        world: The world to teach.
        spec: Architecture and training.
        cache_dir: Where the models are kept; made if absent.
        progress: Called now and then during training with steps done, steps in all, and the
            current loss and learning rate; not called for a model that is there already.

    Raises:
        WorldModelError: A file of the cached model is missing or is not what was written.
    """
    path = Path(cache_dir) / world_model_key(world, spec)
    if path.is_dir():
        _verify(path)
        return path
    building = path.parent / f".building-{path.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    building.mkdir(parents=True)
    try:
        _build(world, spec, building, progress)
        try:
            os.replace(building, path)
        except OSError:
            # A directory cannot replace one with files in it: another builder was first.
            if not path.is_dir():
                raise
            logger.info("%s was built by another process meanwhile; using that one", path)
            _verify(path)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return path


def world_encoder(
    world: World, spec: WorldModelSpec, answer_space: AnswerSpace = "auto"
) -> Encoder:
    """The encoder of a world's model; the model itself need not exist yet."""
    style: PromptStyle = "chat" if spec.chat else "bare"
    return Encoder(
        world_tokenizer(world, spec),
        max_length=_max_length(world),
        style=style,
        answer_space=answer_space,
    )


def world_tokenizer(world: World, spec: WorldModelSpec) -> PreTrainedTokenizerFast:
    """The tokenizer of a world's model."""
    return word_tokenizer(world_words(world), add_bos=spec.writes_bos, chat=spec.chat)


def training_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What ``training.json`` of a world model says: recall, loss, seconds, versions, digests."""
    record: dict[str, Any] = json.loads((Path(path) / TRAINING_FILE).read_text("utf-8"))
    return record


def _build(world: World, spec: WorldModelSpec, folder: Path, progress: Progress | None) -> None:
    import tokenizers
    import transformers

    tokenizer = world_tokenizer(world, spec)
    started, cpu_started = time.perf_counter(), time.process_time()
    with _threads(spec.threads), seeded(spec.seed):
        model = _untrained(spec, tokenizer, _max_length(world))
        loss = train(model, tokenizer, world, spec, progress)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        recall = _recalls(model, tokenizer, world)
    log = logger.info if recall["held_out"] >= _LOW_RECALL else logger.warning
    log(
        "trained %s on %d facts in %.0f s: recall %.1f %% on held-out prompts",
        spec.family,
        len(world.facts),
        seconds,
        100 * recall["held_out"],
    )
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder, spec.family)
    record = {
        "recall": recall,
        "loss": loss,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "seed": spec.seed,
        "parameters": model.num_parameters(),
        "recipe": RECIPE_VERSION,
        "spec": spec.identity,
        "world": {"data_hash": world.data_hash, "facts": len(world.facts)} | asdict(world.config),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "sha256": {file.name: _sha256(file) for file in sorted(folder.iterdir())},
    }
    (folder / TRAINING_FILE).write_text(json.dumps(record, indent=2) + "\n", "utf-8")


def _max_length(world: World) -> int:
    """Positions of the model: a fact takes few, a text of 100 tokens behind a prompt more."""
    return _MAX_LENGTH_WITH_TEXT if world.config.lessons else _MAX_LENGTH


def _untrained(
    spec: WorldModelSpec, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = model_config(spec, vocab_size=len(tokenizer), max_length=max_length, special=special)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model


def _recalls(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: World
) -> dict[str, float]:
    """Recall (0 to 1) on held-out prompts, in all and by pool, and on the trained ones."""
    recall = {
        "held_out": world_recall(model, tokenizer, world),
        "trained": world_recall(model, tokenizer, world, held_out=False),
    }
    for pool in (*SPLITS, "locality"):
        recall[f"held_out_{pool}"] = world_recall(model, tokenizer, world, pool=pool)
    return recall


def _verify(path: Path) -> None:
    """Raise `WorldModelError` unless every file is as it was written."""
    remedy = f"delete {path} and it is trained again"
    try:
        digests = training_record(path)["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise WorldModelError(
            f"{path / TRAINING_FILE} cannot be read ({error}); {remedy}"
        ) from error
    for name, digest in digests.items():
        file = path / name
        if not file.is_file():
            raise WorldModelError(f"{file} is missing; {remedy}")
        if _sha256(file) != digest:
            raise WorldModelError(f"{file} is not as it was written; {remedy}")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """Compute with `n` threads, then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)

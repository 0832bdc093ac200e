"""World models: training on the spot, the cache, and what is loaded from it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rledit.world import (
    FAMILIES,
    WORLD_MODELS,
    World,
    WorldConfig,
    WorldModelSpec,
    build_world_model,
    fact_recall,
    training_record,
    world_model_key,
    world_recall,
)
from rledit.world import model as world_model
from rledit.world.presets import Family
from rledit.world.recall import answer_logits
from rledit.world.sentences import IGNORED, epochs, tokenize

TINY_WORLD = WorldConfig(n_subjects=30, answers_per_relation=8)
# Enough to run every line, not to learn anything.
BRIEF = WorldModelSpec(hidden=16, intermediate=32, heads=2, steps=3, warmup=1, batch=16)


@pytest.fixture(scope="module", autouse=True)
def trained_anew(world_models: None) -> Iterator[None]:
    """Every model is trained here: the training is what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world_model, "_build", world_model._build.__wrapped__)  # type: ignore[attr-defined]
        yield


@pytest.fixture(scope="module")
def world() -> World:
    """A world of 90 facts."""
    return World(TINY_WORLD)


@pytest.fixture(scope="module")
def tiny(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny preset, trained."""
    return build_world_model(world, WORLD_MODELS["tiny"], tmp_path_factory.mktemp("models"))


def _weights(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


def test_tiny_model_learns_the_world_and_is_loaded_as_saved(world: World, tiny: Path) -> None:
    record = training_record(tiny)
    assert record["recall"]["trained"] >= 0.99
    assert record["recall"]["held_out"] >= 0.9
    model = AutoModelForCausalLM.from_pretrained(tiny)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    for key, pool in (("held_out", None), ("held_out_evaluation", "evaluation")):
        assert world_recall(model, tokenizer, world, pool=pool) == record["recall"][key]
    assert world_recall(model, tokenizer, world, held_out=False) == record["recall"]["trained"]
    assert record["seconds"] > 0 and record["loss"] < 0.1
    assert record["versions"]["torch"] == torch.__version__


def test_recall_counts_a_fact_only_if_all_its_tokens_are_right(world: World, tiny: Path) -> None:
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny),
        AutoTokenizer.from_pretrained(tiny),
    )
    known = [f for f in world.facts if fact_recall(model, tokenizer, [f]) == 1.0]
    fact = next(f for f in known if " " in f.answer)
    first, second = fact.answer.split()
    half_right = next(a.split()[1] for a in world.answers[fact.relation] if second not in a)
    wrong = dataclasses.replace(fact, answer=f"{first} {half_right}")
    assert fact_recall(model, tokenizer, [wrong]) == 0.0
    assert fact_recall(model, tokenizer, [fact, wrong]) == 0.5


def test_generation_stops_after_the_answer(world: World, tiny: Path) -> None:
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny),
        AutoTokenizer.from_pretrained(tiny),
    )
    fact = world.facts[0]
    prompt = tokenizer(fact.trained[0], return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0]
    new = ids[prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(new, skip_special_tokens=True) == fact.answer
    assert new[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_and_loads(family: Family, world: World, tmp_path: Path) -> None:
    spec = dataclasses.replace(BRIEF, family=family)
    steps: list[int] = []
    path = build_world_model(world, spec, tmp_path, lambda step, total, _: steps.append(step))
    assert steps[-1] == spec.steps
    assert path.name.startswith(f"{family}-")
    model = AutoModelForCausalLM.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert model.config.model_type == family and model.dtype == torch.float32
    answer = world.facts[0].answer
    ids = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == answer.split()
    has_bos = tokenizer(world.facts[0].trained[0])["input_ids"][0] == tokenizer.bos_token_id
    assert has_bos == (family in ("llama", "mistral", "gemma2", "gemma3_text"))
    # A copy made from what was loaded is the same tokenizer again.
    tokenizer.save_pretrained(tmp_path / "copy")
    model.config.save_pretrained(tmp_path / "copy")
    copied = AutoTokenizer.from_pretrained(tmp_path / "copy")
    assert copied(world.facts[0].trained[0]) == tokenizer(world.facts[0].trained[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_answer_logits_are_those_of_a_full_pass(
    family: Family, world: World, tmp_path: Path
) -> None:
    path = build_world_model(world, dataclasses.replace(BRIEF, family=family), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(path).double()
    tokenizer = AutoTokenizer.from_pretrained(path)
    questions = [(f.trained[0], f.answer) for f in world.facts[:12]]
    rows = tokenize(tokenizer, questions, end=True)
    wanted = rows.labels != IGNORED
    sparse = answer_logits(model, rows.input_ids, rows.labels)
    full = model(input_ids=rows.input_ids).logits[wanted]
    # GPT-J computes its attention and its logits in single precision whatever its weights are.
    rtol, atol = (1e-4, 1e-6) if family == "gptj" else (1e-9, 1e-12)
    torch.testing.assert_close(sparse, full, rtol=rtol, atol=atol)
    losses = [torch.nn.functional.cross_entropy(x, rows.labels[wanted]) for x in (sparse, full)]
    parameters = list(model.parameters())
    for ours, theirs in zip(*(torch.autograd.grad(x, parameters) for x in losses), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


def test_an_epoch_is_every_sentence_once() -> None:
    lengths = torch.randint(5, 9, (103,))
    batches = epochs(lengths, 10, torch.Generator().manual_seed(0))
    seen = torch.cat([next(batches) for _ in range(11)])
    assert seen.sort().values.tolist() == list(range(103))


def test_training_is_bitwise_deterministic(world: World, tmp_path: Path) -> None:
    first = build_world_model(world, BRIEF, tmp_path / "a")
    torch.manual_seed(999)
    second = build_world_model(World(TINY_WORLD), BRIEF, tmp_path / "b")
    assert first.name == second.name
    assert _weights(first) == _weights(second)
    other = build_world_model(world, dataclasses.replace(BRIEF, seed=1), tmp_path / "a")
    assert _weights(other) != _weights(first)


def test_building_leaves_threads_and_random_state_alone(world: World, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(BRIEF.threads + 1)
    try:
        state = torch.get_rng_state()
        build_world_model(world, BRIEF, tmp_path)
        assert torch.get_num_threads() == BRIEF.threads + 1
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(before)


def test_a_cached_model_is_not_trained_again(world: World, tmp_path: Path) -> None:
    path = build_world_model(world, BRIEF, tmp_path)
    written = (path / "model.safetensors").stat().st_mtime_ns
    steps: list[int] = []
    assert build_world_model(world, BRIEF, tmp_path, lambda s, *_: steps.append(s)) == path
    assert not steps and (path / "model.safetensors").stat().st_mtime_ns == written


def test_every_setting_and_the_world_are_in_the_key(world: World) -> None:
    changed: dict[str, Any] = {"family": "mistral", "kv_heads": 1, "init_std": 0.5, "clip": 2.0}
    changed["bos"] = False  # where the family's tokenizers write it
    for field in dataclasses.fields(WorldModelSpec):
        if field.name not in changed:
            changed[field.name] = getattr(BRIEF, field.name) * 2 or 1
    keys = {
        world_model_key(world, dataclasses.replace(BRIEF, **{k: v})) for k, v in changed.items()
    }
    keys.add(world_model_key(world, BRIEF))
    keys.add(world_model_key(World(dataclasses.replace(TINY_WORLD, seed=1)), BRIEF))
    assert len(keys) == len(changed) + 2


def test_a_build_that_fails_leaves_nothing(world: World, tmp_path: Path) -> None:
    def stop(step: int, total: int, values: dict[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_world_model(world, BRIEF, tmp_path, stop)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_model_is_refused_by_name(world: World, tmp_path: Path) -> None:
    path = build_world_model(world, BRIEF, tmp_path)
    whole = _weights(path)
    (path / "model.safetensors").write_bytes(whole[:-4])
    with pytest.raises(RuntimeError, match=r"model\.safetensors is not as it was written"):
        build_world_model(world, BRIEF, tmp_path)
    (path / "model.safetensors").unlink()
    with pytest.raises(RuntimeError, match=r"model\.safetensors is missing; delete"):
        build_world_model(world, BRIEF, tmp_path)
    (path / "training.json").unlink()
    with pytest.raises(RuntimeError, match=r"training\.json cannot be read"):
        build_world_model(world, BRIEF, tmp_path)


def test_the_second_of_two_builders_uses_the_first_ones_model(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(*args: object) -> None:
        # While this build trains, another one finishes.
        monkeypatch.undo()
        path = build_world_model(world, BRIEF, tmp_path)
        (path / "who").write_text("first")
        world_model._build(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(world_model, "_build", overtaken)
    path = build_world_model(world, BRIEF, tmp_path)
    assert (path / "who").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.slow
def test_two_processes_can_build_one_model_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from rledit.world import *; "
        "w = World(WorldConfig(n_subjects=30, answers_per_relation=8)); "
        "s = WorldModelSpec(hidden=16, intermediate=32, heads=2, steps=3, warmup=1, batch=16, "
        "threads=1); print(build_world_model(w, s, sys.argv[1]))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    command = [sys.executable, "-c", code, str(tmp_path)]
    builders = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    paths = {builder.communicate()[0].splitlines()[-1] for builder in builders}
    assert [builder.returncode for builder in builders] == [0, 0]
    assert [str(p) for p in tmp_path.iterdir()] == list(paths)
    AutoModelForCausalLM.from_pretrained(paths.pop())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "bert"}, "no world model family 'bert'"),
        ({"hidden": 30, "heads": 4}, "heads of an even width"),
        ({"warmup": 3}, "warmup is 3"),
        ({"kv_heads": 3}, "kv_heads is 3"),
        ({"family": "gptj", "kv_heads": 1}, "GPT-J"),
    ],
)
def test_impossible_specs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BRIEF, **change)

"""One of two ranks that share a model by ZeRO-3 and compare it with the whole one; see `test_zero`.

The ranks run the whole models by turns, and each compares by itself. Which editors are tried on
which family stands in ``editors.json``.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from pipeline.run.device import PeakMemory
from pipeline.run.fleet.process_group import joined
from pipeline.run.sharded_model import (
    Offload,
    ZeroSettings,
    _LayersAhead,
    held_share,
    open_sharded,
    shard,
)
from rledit.decoding import decode
from rledit.editors import EDITORS, Editor, TrainableEditor
from rledit.editors.overlay_editor import OverlayEditor
from rledit.finite import NonFiniteError
from rledit.model import EditableModel
from rledit.prefix_cache import PrefixCache
from rledit.protocols import read
from rledit.shift import LowRankShift, traced
from rledit.tokenization import EditBatch
from tests.cluster.ranks_worker import worst
from tests.reference.injected import injected
from tests.unit.helpers.interrupted import SMALL_NETWORK, train_with_an_interruption
from tests.unit.helpers.oracle import relative
from tests.unit.helpers.text_edits import equip, text_batches, tiny_tokenizer
from tests.unit.helpers.tiny_models import double_arithmetic, random_batches, tiny_model, two_shapes
from tests.unit.rledit.editors.test_editors import SETTINGS as EDITOR_SETTINGS

MIXED = ("llama", "gptj", "gemma2", "mistral", "qwen3", "gpt2")
LOW = ("up:1", "down:1")
"""Edited so low that gradients cross layers without edited matrices."""
EDITED: dict[tuple[str, torch.dtype], Offload] = {
    ("llama", torch.float32): "none",
    ("llama", torch.bfloat16): "none",
    ("gptj", torch.float32): "none",
    ("mistral", torch.float32): "cpu",
    ("gpt2", torch.float32): "none",
}
BATCHES = random_batches(4, 5)
N_OPERATIONS = 8
# Steps that are felt, and prompts of edits that their memory answers.
MEMORY_SETTINGS: dict[str, dict[str, Any]] = {
    "grace": {"lr": 0.5},
    "wise": {"lr": 1.0, "ratio": 0.5},
    "memoir": {"lr": 1.0},
}


Results = list[tuple[str, list[Tensor]]]
Operation = Callable[[EditableModel, random.Random], Results]


def full_pass(model: EditableModel, draw: random.Random) -> Results:
    """The model's own forward on a whole prompt."""
    sample = draw.choice(draw.choice(BATCHES).edit.samples)
    output = model.model(input_ids=sample.input_ids[None], use_cache=False)
    return [("full pass", [output.logits])]


def restart(model: EditableModel, draw: random.Random) -> Results:
    """Restart at the first edited layer, from cached hidden states where they are there."""
    samples = draw.choice(BATCHES).unrelated.samples
    logits = [
        model.prefix_cache.logits(micro_batch) for micro_batch in model.micro_batches(samples)
    ]
    return [("restart", [values.log_softmax(-1) for values in logits])]


def restart_elsewhere(model: EditableModel, draw: random.Random) -> Results:
    """Restart at another layer, without and with cached hidden states."""
    samples = draw.choice(BATCHES).edit.samples
    prefix_cache = PrefixCache(model.model, model.family, draw.randrange(4))
    logits = [
        prefix_cache.logits(micro_batch)
        for micro_batch in model.micro_batches(samples)
        for _ in range(2)
    ]
    return [("restart elsewhere", logits)]


def injection(model: EditableModel, draw: random.Random) -> Results:
    """Loss and gradients with shifts injected into the forward."""
    return [("injected", scored(model, draw, merged=False))]


def merge(model: EditableModel, draw: random.Random) -> Results:
    """Merge an edit; loss and gradients with its shifts traced."""
    found = scored(model, draw, merged=True)
    return [("merged", found), ("weights", list(model.weights.state_dict().values()))]


def look_back(model: EditableModel, draw: random.Random) -> Results:
    """Look at the unedited model for a moment."""
    with model.weights.unedited():
        ((_, values),) = restart(model, draw)
    return [("unedited", values)]


OPERATIONS: tuple[Operation, ...] = (
    full_pass,
    restart,
    restart_elsewhere,
    injection,
    merge,
    look_back,
)


def scored(model: EditableModel, draw: random.Random, *, merged: bool) -> list[Tensor]:
    """Loss of some samples under random shifts, and the gradients of the shifts' factors."""
    samples = draw.choice(BATCHES).equivalent.samples
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    shifts: dict[str, LowRankShift] = {}
    for name in model.modules:
        d_in, d_out = model.shape(name)
        left = torch.randn(3, d_in, generator=generator, dtype=torch.float64)
        right = torch.randn(3, d_out, generator=generator, dtype=torch.float64)
        shifts[name] = LowRankShift((0.02 * left).requires_grad_(), right.requires_grad_())
        if merged:
            model.weights.add(name, shifts[name])
    total = torch.zeros(())
    for micro_batch in model.micro_batches(samples):
        with torch.enable_grad(), (traced if merged else injected)(model, shifts):
            log_p = model.prefix_cache.logits(micro_batch).log_softmax(-1)
            loss = -log_p.gather(1, micro_batch.labels[:, None]).sum()
        loss.backward()
        total = total + loss.detach()
    factors = [t for s in shifts.values() for t in (s.left, s.right) if t is not None]
    gradients = [t.grad for t in factors if t.grad is not None]
    assert len(gradients) == len(factors)
    return [total, *gradients]


@torch.no_grad()
def mixed(model: EditableModel) -> Results:
    """Operations in random order, all kinds among them; back to the unedited model at the end."""
    draw = random.Random(0)
    results: Results = []
    for operation in (*OPERATIONS, *draw.choices(OPERATIONS, k=N_OPERATIONS)):
        results += operation(model, draw)
    model.weights.restore()
    return results + restart(model, draw)


def worst_by_kind(found: Results, expected: Results) -> dict[str, float]:
    """Largest relative error of each kind of result."""
    errors: dict[str, float] = {}
    for (kind, ours), (_, theirs) in zip(found, expected, strict=True):
        for f, e in zip(ours, theirs, strict=True):
            errors[kind] = max(errors.get(kind, 0.0), relative(f, e))
    return errors


def state(model: nn.Module) -> dict[str, Any]:
    """What a sharded model looks like between passes."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    whole = {n for n, p in model.named_parameters() if p.numel() == p.ds_numel}
    kept = {n for n, p in model.named_parameters() if p is head.weight or len(p.ds_shape) == 1}
    return {
        "share": held_share(model),
        "to keep": sorted(kept),
        "kept": sorted(kept & whole),
        "gathered": [n for n, p in model.named_parameters() if n not in kept and p.numel()],
        "with_gradient": [n for n, p in model.named_parameters() if p.grad is not None],
    }


def trained_and_scored(model: EditableModel) -> dict[str, dict[str, Tensor]]:
    """Two training steps, three edited batches and their scores: what they gave, by kind."""
    cls = EDITORS["rledit"]
    editors = [cls(model, cls.Config(modules=model.modules, **SMALL_NETWORK)) for _ in range(2)]
    ended, editor = editors
    assert isinstance(ended, TrainableEditor) and isinstance(editor, TrainableEditor)
    losses = train_with_an_interruption(ended, editor, 6)
    stream = random_batches(3, 6, 3)
    measured = [editor.edit(batch) for batch in stream]
    samples = [s for b in stream for p in (b.edit, b.equivalent, b.unrelated) for s in p.samples]
    readings = read(model, samples)
    return {
        "network": editor.state_dict(),
        "weights": model.weights.state_dict(),
        "measured": {
            f"{i} {k}": torch.tensor(v, dtype=torch.float64)
            for i, values in enumerate([*losses, *measured])
            for k, v in values.items()
        },
        "scores": {
            "predicted": torch.cat([r.predicted for r in readings]),
            "nll": torch.tensor([r.nll for r in readings], dtype=torch.float64),
        },
    }


def edited_by(model: EditableModel, editors: Collection[str]) -> dict[str, dict[str, Tensor]]:
    """The weights that each editor leaves, from the unedited model, with what it measures; what a
    memory answers; and texts that a fine-tuned one writes."""
    found: dict[str, dict[str, Tensor]] = {}
    for target_modules, names in by_target_modules(editors).items():
        of = editable_at(model, target_modules)
        for name in names:
            editor = new_editor(name, of)
            keeps_memory = isinstance(editor, OverlayEditor)
            batches = text_batches(of, 2 if keeps_memory else 1, 3, group_size=editor.group_size)
            measured = [value for batch in batches for value in editor.edit(batch).values()]
            values = torch.tensor(measured, dtype=torch.float64)
            found[name] = of.weights.state_dict() | {"measured": values}
            if isinstance(editor, OverlayEditor):
                found[name] |= answered(editor, batches)
            batch = batches[0]
            if name == "ft":
                lines = decode(of, [edit.prompt for edit in batch.edits], [2, 5, 3])
                found["texts"] = {str(i): torch.tensor(line) for i, line in enumerate(lines)}
            of.weights.restore()
    return found


def answered(editor: OverlayEditor, batches: Sequence[EditBatch]) -> dict[str, Tensor]:
    """What a model with a memory, and without it, says to edit and to unrelated prompts."""
    model = editor.model
    samples = [s for b in batches for p in (b.edit, b.unrelated) for s in p.samples]
    edits = [edit for batch in batches for edit in batch.edits]
    prompts = [e.prompt for e in edits] + [x.prompt for e in edits for x in e.locality[:1]]
    found = {f"memory {name}": tensor for name, tensor in editor.state_dict().items()}
    found["entry"] = editor.memory.route([s.prompt for s in samples])
    for kind, looked in (("with", nullcontext()), ("without", model.weights.unedited())):
        with looked:
            readings = read(model, samples)
            written = decode(model, prompts, 3)
        found[f"nll {kind} memory"] = torch.tensor([r.nll for r in readings], dtype=torch.float64)
        found[f"predicted {kind} memory"] = torch.cat([r.predicted for r in readings])
        found[f"written {kind} memory"] = torch.tensor([i for ids in written for i in ids])
    return found


def by_target_modules(editors: Collection[str]) -> dict[str, list[str]]:
    """Editors by the matrices they can edit."""
    found: dict[str, list[str]] = {}
    for name in editors:
        found.setdefault(EDITORS[name].target_modules, []).append(name)
    return found


def editable_at(model: EditableModel, target_modules: str) -> EditableModel:
    """The same model, sharded or whole, with other matrices to edit, and prompts in words."""
    modules = {"any": two_shapes(model.model), "down": ("down:1,2",), "one_down": ("down:2",)}
    tokenizer = tiny_tokenizer(model.family.name)
    chosen = modules[target_modules]
    access = model.weights._access
    return EditableModel(model.model, tokenizer, chosen, None, access, model.ranks)


def new_editor(name: str, model: EditableModel) -> Editor:
    """An editor with few steps, and what it needs."""
    cls = EDITORS[name]
    known = {f.name for f in dataclasses.fields(cls.Config)}
    wanted = EDITOR_SETTINGS | MEMORY_SETTINGS.get(name, {})
    settings = {k: v for k, v in wanted.items() if k in known}
    if not getattr(cls.Config, "transition", True):
        settings.pop("depth", None)
    editor = cls(model, cls.Config(modules=model.modules, **settings))
    equip(editor)
    return editor


def loaded(folder: Path) -> dict[str, Any]:
    """Memory that loading a larger model and a pass take, sharded and whole, in bytes."""
    ids = torch.arange(8)[None]
    with torch.no_grad():
        with measured_memory() as sharded:
            model = open_sharded(folder / "large", ("down:2",), with_tokenizer=False)
            found = model.model(input_ids=ids, use_cache=False).logits
        with measured_memory() as whole:
            plain: Any = AutoModelForCausalLM.from_pretrained(folder / "large")
            expected = plain(input_ids=ids, use_cache=False).logits
    parameters: list[nn.Parameter] = list(plain.parameters())
    return {
        "size": sum(p.numel() * p.element_size() for p in parameters),
        "sharded": sharded["peak"],
        "whole": whole["peak"],
        "share": held_share(model.model),
        "error": relative(found, expected),
    }


@contextmanager
def measured_memory() -> Iterator[dict[str, float]]:
    """Peak resident memory inside the context beyond that at its start, in bytes."""
    measured: dict[str, float] = {}
    meter = PeakMemory()
    before = meter.gigabytes()
    yield measured
    after = meter.gigabytes()
    assert before is not None
    assert after is not None
    measured["peak"] = 1e9 * (after - before)


def whole(folder: Path, dtype: torch.dtype) -> EditableModel:
    """The checkpoint in this process alone."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return EditableModel(model, None, two_shapes(model))


def noted(send: Callable[..., None], sent: list[bool]) -> Callable[..., None]:
    """`_LayersAhead._send`, noting whether a layer was sent for."""

    def sending(ahead: Any, layer: nn.Module) -> None:
        before = ahead._coming
        send(ahead, layer)
        sent.append(ahead._coming is not before)

    return sending


def in_turns(rank: int, size: int, folder: Path, work: Mapping[str, Callable[[], Any]]) -> Any:
    """What each piece of work gives; every rank does its share of it, alone."""
    for name in list(work)[rank::size]:
        torch.save(work[name](), folder / f"{name}.pt")
    dist.barrier()
    return {name: torch.load(folder / f"{name}.pt") for name in work}


def main(rank: int, size: int, folder: Path) -> None:
    """Do everything in one process group, and write it down."""
    torch.set_num_threads(1)
    chosen: dict[str, list[str]] = json.loads((folder / "editors.json").read_text())
    report: dict[str, Any] = {}
    with joined(rank, size, f"file://{folder}/rendezvous", "gloo", timedelta(minutes=5)):
        # DeepSpeed replaces torch's linear function for the whole process when it first shards a
        # model, so everything that is not sharded comes first.
        single = {
            f"{family} {dtype}": lambda place=folder / family, dtype=dtype: trained_and_scored(
                whole(place, dtype)
            )
            for family, dtype in EDITED
        }
        expected = in_turns(rank, size, folder, single)
        with pytest.MonkeyPatch.context() as patch:
            double_arithmetic(patch)
            twins = {family: tiny_model(family) for family in MIXED}

            def twin_of(family: str) -> EditableModel:
                twin = copy.deepcopy(twins[family])
                return EditableModel(twin, None, two_shapes(twin))

            low = copy.deepcopy(twins["llama"])
            double: dict[str, Callable[[], Any]] = {
                "mixed low": lambda: mixed(EditableModel(copy.deepcopy(low), None, LOW))
            }
            for family in twins:
                double[f"mixed {family}"] = lambda of=family: mixed(twin_of(of))
                if family in chosen:
                    double[f"editors {family}"] = lambda of=family: edited_by(
                        twin_of(of), chosen[of]
                    )
            expected |= in_turns(rank, size, folder, double)
        for (family, dtype), offload in EDITED.items():
            model = open_sharded(
                folder / family,
                tuple(expected[f"{family} {dtype}"]["weights"]),
                dtype=dtype,
                settings=ZeroSettings(offload=offload),
                with_tokenizer=False,
            )
            sent: list[bool] = []
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_LayersAhead, "_send", noted(_LayersAhead._send, sent))
                found = trained_and_scored(model)
            case = f"{family} {dtype}"
            errors = {kind: worst(found[kind], e) for kind, e in expected[case].items()}
            report[case] = {"errors": errors, "ahead": sum(sent), **state(model.model)}
        report["loaded"] = loaded(folder)
        try:
            open_sharded(folder / "broken", ("up:1",), with_tokenizer=False)
        except NonFiniteError as error:
            report["refused"] = str(error)
        with pytest.MonkeyPatch.context() as patch:
            double_arithmetic(patch)
            model = shard(low, LOW)
            errors = worst_by_kind(mixed(model), expected["mixed low"])
            report["mixed low"] = {"errors": errors, **state(model.model)}
            for family, twin in twins.items():
                model = shard(twin, two_shapes(twin))
                errors = worst_by_kind(mixed(model), expected[f"mixed {family}"])
                report[f"mixed {family}"] = {"errors": errors, **state(model.model)}
                if family in chosen:
                    expect = expected[f"editors {family}"]
                    found = edited_by(model, chosen[family])
                    report[f"editors {family}"] = {k: worst(found[k], expect[k]) for k in expect}
                    report[f"memories {family}"] = {
                        name: {
                            "tensors": sorted(own),
                            "answered": int((own["entry"] >= 0).sum()),
                            "moved": worst(
                                {"nll": own["nll with memory"]}, {"nll": own["nll without memory"]}
                            ),
                        }
                        for name, own in found.items()
                        if "entry" in own
                    }
    (folder / f"{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

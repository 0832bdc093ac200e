"""What is taken away is the edited model, read by the calls that its ecosystem has for it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from pipeline.run.editing import export_ledger
from rledit.editing import Delta, Host, Ledger, Session, Supplies
from rledit.editing.export import ExportError, adapter_deltas, adapter_of, write_adapter
from rledit.editing.files import PARTIAL
from rledit.editing.judge import took
from rledit.shift import LowRankShift
from tests.unit.helpers.small_editing import STEP, equal, learnt, rows, weights_of

ULTRA: dict[str, Any] = {"editor": "ultraedit", "settings": STEP, "floor": 0, "passes": 3}


def session_at(folder: Path, dtype: torch.dtype = torch.float32) -> Session:
    host = Host(*learnt(dtype))
    ledger = Ledger.create(folder / "out", host.record("here"))
    session = Session(host, ledger, Supplies(host, folder / "supplies"))
    session.edit(rows(4), **ULTRA)
    session.edit(rows(4, 4), **ULTRA)
    return session


def with_adapter(model: nn.Module, folder: Path) -> nn.Module:
    """A model with an adapter merged by PEFT's documented format: W + B A · alpha / r."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM"
    for name in config["target_modules"]:
        a = tensors.pop(f"base_model.model.{name}.lora_A.weight")
        b = tensors.pop(f"base_model.model.{name}.lora_B.weight")
        assert a.shape[0] == b.shape[1] == config["r"]
        change = (b @ a) * (config["lora_alpha"] / config["r"])
        with torch.no_grad():
            weight = model.get_submodule(name).weight
            weight += change.T if config["fan_in_fan_out"] else change
    assert not tensors
    return model


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=pytest.mark.long), torch.bfloat16], ids=str
)
def test_a_checkpoint_is_the_edited_model_in_its_own_type(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    session = session_at(tmp_path, dtype)
    made = export_ledger(session, "checkpoint", tmp_path / "whole")
    model: Any = AutoModelForCausalLM.from_pretrained(made.path)
    assert next(model.parameters()).dtype == dtype
    assert equal(weights_of(session.host.model), weights_of(model))
    prompt = rows(1)[0]["prompt"]
    tokenizer = AutoTokenizer.from_pretrained(made.path)
    written = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=6)
    fact = session.ledger.batches[0].facts[0]
    assert fact["result"]["took"] and fact["target"] in tokenizer.decode(written[0])
    card = (made.path / "README.md").read_text()
    assert "8 facts in 2 batches" in card and f"| {prompt} |" in card and "here" in card
    assert json.loads((made.path / "edited.json").read_text())["batches"] == [1, 2]


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.long)], ids=str
)
def test_the_change_alone_is_exact(dtype: torch.dtype, tmp_path: Path) -> None:
    session = session_at(tmp_path, dtype)
    made = export_ledger(session, "delta", tmp_path / "change")
    model, _ = learnt(dtype)
    for name, change in load_file(made.path).items():
        parameter = model.get_parameter(name)
        with torch.no_grad():
            parameter.copy_((parameter.double() + change).to(parameter.dtype))
    assert equal(weights_of(session.host.model), weights_of(model))


def test_an_adapter_is_exact_where_its_rank_allows(tmp_path: Path) -> None:
    session = session_at(tmp_path)
    made = export_ledger(session, "lora", tmp_path / "adapter")
    assert made.adapter is not None and made.adapter.exact and made.exact == made.adapted
    assert made.n_bytes == sum(p.stat().st_size for p in (tmp_path / "adapter").iterdir())
    model = with_adapter(learnt()[0], tmp_path / "adapter")
    for name, value in weights_of(session.host.model).items():
        assert float((value - model.get_parameter(name).detach()).abs().max()) < 1e-6
    opened = Host(model, session.host.tokenizer).open()
    edits = [e for b in session.ledger.batches for e in map(_edit, b.facts)]
    assert took(opened, edits) == took(session.host.open(), edits)


def test_peft_itself_reads_it(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    session = session_at(tmp_path)
    export_ledger(session, "lora", tmp_path / "adapter")
    model = peft.PeftModel.from_pretrained(learnt()[0], tmp_path / "adapter")
    merged = model.merge_and_unload()
    for name, value in weights_of(session.host.model).items():
        assert float((value - merged.get_parameter(name).detach()).abs().max()) < 1e-6


def test_a_smaller_adapter_is_the_nearest_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    session = session_at(tmp_path)
    made = export_ledger(session, "lora", tmp_path / "adapter", rank=2)
    adapter = made.adapter
    assert adapter is not None and not adapter.exact and adapter.rank == 2
    change, left, size = adapter_deltas(adapter), 0.0, 0.0
    for name in change.terms:
        whole = sum(d.matrix(name) for d in session.ledger.deltas())
        singular = torch.linalg.svdvals(whole)  # type: ignore[arg-type]
        left += float(singular[2:].square().sum())
        size += float(singular.square().sum())
        error = float((whole - change.matrix(name)).square().sum())
        assert error == pytest.approx(float(singular[2:].square().sum()), rel=1e-4)
    assert adapter.error == pytest.approx((left / size) ** 0.5, rel=1e-4) and adapter.error > 0.01
    assert made.costs is not None and made.adapted is not None and made.n_facts == 8


def test_a_dense_change_and_a_transposed_matrix_fit_an_adapter(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            n_embd=16,
            n_layer=1,
            n_head=2,
            vocab_size=20,
            n_positions=8,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    name = "transformer.h.0.mlp.c_proj"
    change = torch.randn(64, 3) @ torch.randn(3, 16)
    adapter = adapter_of([Delta({name: (LowRankShift(None, change),)})], None)
    assert adapter.rank == 3 and adapter.exact
    before = model.get_submodule(name).weight.clone()
    write_adapter(model, adapter, tmp_path / "a", "gpt2")
    with_adapter(model, tmp_path / "a")
    assert torch.allclose(model.get_submodule(name).weight - before, change, atol=1e-5)


def test_an_interrupted_export_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_at(tmp_path)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(session.host.tokenizer), "save_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_ledger(session, "checkpoint", tmp_path / "whole")
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "supplies"]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    for form in ("checkpoint", "delta", "lora"):
        with pytest.raises(OSError, match="no room"):
            export_ledger(session, form, tmp_path / form)  # type: ignore[arg-type]
        assert not list(tmp_path.glob(f"{form}/*"))
    monkeypatch.undo()
    left = tmp_path / f"{PARTIAL}whole-999999999-abc"
    left.mkdir()
    export_ledger(session, "checkpoint", tmp_path / "whole")
    assert not left.exists() and (tmp_path / "whole" / "config.json").is_file()
    with pytest.raises(FileExistsError, match="not empty"):
        export_ledger(session, "checkpoint", tmp_path / "whole")
    assert os.access(tmp_path / "whole", os.R_OK | os.X_OK)


def test_what_cannot_be_exported_says_why(tmp_path: Path) -> None:
    session = session_at(tmp_path)
    with pytest.raises(ExportError, match="--rank is for --export lora"):
        export_ledger(session, "checkpoint", tmp_path / "x", rank=4)
    with pytest.raises(ExportError, match="rank 1 at least"):
        export_ledger(session, "lora", tmp_path / "x", rank=0)
    session.undo([1, 2])
    with pytest.raises(ExportError, match="no batch is in force"):
        export_ledger(session, "delta", tmp_path / "x")


def _edit(fact: dict[str, Any]) -> Any:
    from rledit.editing.facts import edit_of

    return edit_of(fact)

"""The editor is chosen on the model at hand, and what it needs is made once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from rledit import edit
from rledit.editing import Host, HostError, MethodError, Session, Supplies, training
from rledit.editing.known import asked_facts
from rledit.editing.methods import candidates, late, method_of
from rledit.editing.training import trained_network
from rledit.editors import TrainableEditor
from rledit.editors.hypernetwork_editor import HypernetworkEditor
from rledit.records import Edit, Locality
from rledit.tokenization import EditBatch
from rledit.validation import ValidationStream
from tests.unit.helpers.small_editing import STEP, equal, learnt, rows, small_session, weights_of


def test_three_lines_edit_a_loaded_model_and_take_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model, tokenizer = learnt()
    model.save_pretrained(tmp_path / "model")  # type: ignore[operator]
    tokenizer.save_pretrained(tmp_path / "model")
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    unedited = weights_of(loaded)
    result = edit(loaded, rows(8))
    assert result.scores["efficacy"] == 100 and not result.failed
    assert result.facts[0].before != result.facts[0].after
    assert f"✓ {rows(1)[0]['prompt']}" in str(result)
    prompt = AutoTokenizer.from_pretrained(tmp_path / "model")(
        rows(1)[0]["prompt"], return_tensors="pt"
    )
    written = loaded.generate(**prompt, max_new_tokens=6)
    assert "Oban" in tokenizer.decode(written[0])
    result.undo()
    assert equal(unedited, weights_of(loaded))


def test_the_choice_is_made_once_for_a_model(tmp_path: Path) -> None:
    said: list[str] = []
    session = small_session(tmp_path, tell=said.append)
    before = weights_of(session.host.model)
    first = session.edit(rows(4))
    assert sum(line.startswith("  tried") for line in said) == len(candidates(session.host.model))
    assert "of known facts kept" in first.choice and first.method.settings["step"] > 0
    said.clear()
    second = session.edit(rows(4, 4))
    assert second.method == first.method and second.choice == "goes on with the ledger's editor"
    session.undo([1, 2])
    assert equal(before, weights_of(session.host.model))
    other = small_session(tmp_path, tell=said.append)  # another process, the same folder
    assert other.edit(rows(4)).method == first.method
    assert not any(line.startswith(("  tried", "asking", "calibrating")) for line in said)


def test_facts_that_a_method_is_told_by_are_not_those_it_is_chosen_by() -> None:
    choosing, telling = asked_facts("choosing"), asked_facts("telling")
    assert not {f.subject for f in choosing} & {f.subject for f in telling}


def test_known_facts_that_an_edit_is_about_do_not_count(tmp_path: Path) -> None:
    session = small_session(tmp_path)
    knowledge = session.supplies.knowledge("telling")
    names = knowledge.apart_from([])
    subject = knowledge.edits(names[:1])[0].subject
    about = Edit(edit_id="", prompt=f"The dish that {subject} is famous for is", target="soup")
    assert names[0] not in knowledge.apart_from([about]) and len(names) > 5


def test_a_pass_that_costs_too_much_is_taken_back(tmp_path: Path) -> None:
    said: list[str] = []
    session = small_session(tmp_path, tell=said.append)
    large = {**STEP, "step": 0.3}
    session.edit(rows(4), editor="ultraedit", settings=large, floor=0.9)
    assert any("pass 1: taken back (" in line for line in said)
    found = session.ledger.batches[0].record["choosing"]
    assert found["after"]["kept"] >= 0.5 * found["before"]["known"]


def test_a_trained_network_edits_and_is_kept(tmp_path: Path) -> None:
    short = {
        "modules": ["down:0-1"],
        "rank": 8,
        "train_steps": 1,
        "trajectory_batches": 2,
        "patience": 1,
    }
    said: list[str] = []
    session = small_session(tmp_path, tell=said.append)
    session.edit(rows(4), editor="rledit", settings=short, floor=0, passes=2)
    assert any("training: validation" in line for line in said)
    said.clear()
    again = small_session(tmp_path, tell=said.append)
    again.edit(rows(4), editor="rledit", settings=short, floor=0, passes=2)
    assert not any("training" in line for line in said)
    assert equal(weights_of(session.host.model), weights_of(again.host.model))
    again.supplies.training_facts = [
        Edit(edit_id=str(i), prompt=f"The ferry {i} sails from", target="Oban") for i in range(40)
    ]
    with pytest.raises(MethodError, match="lack one"):
        again.edit(rows(4, 4), editor="rledit", settings=short)


POOL = [
    Edit(
        edit_id=str(i), prompt=f"Ferry {i} sails from", target="Oban",
        rephrases=(f"The harbour of ferry {i} is",),
        locality=(Locality(prompt=f"Tram {i} leaves", answer="Largs"),),
    )
    for i in range(40)
]  # fmt: skip
SHORT = {
    "modules": ["down:0-1"], "rank": 8, "train_steps": 2, "trajectory_batches": 2, "augment": False
}  # fmt: skip


@pytest.mark.parametrize("augment", [True, False])
def test_a_network_is_trained_on_variants_where_its_recipe_has_them(
    augment: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Edit] = []
    encode = TrainableEditor.encode

    def noted(self: TrainableEditor, edits: Sequence[Edit]) -> Any:
        seen.extend(edits)
        return encode(self, edits)

    monkeypatch.setattr(TrainableEditor, "encode", noted)
    session = small_session(tmp_path)
    settings = {"modules": ["down:0-1"], "rank": 8, "augment": augment}
    short = {"train_steps": 2, "trajectory_batches": 2, "validation_batches": 1}
    method = method_of(session.host.model, "rledit", settings | short)
    trained_network(session.host.open(method.modules), method, POOL, lambda _: None)
    # Twenty facts a trajectory, and those that validate.
    assert len(seen) >= 40
    assert any(edit.prompt.startswith("The harbour") for edit in seen) is augment


def _trained_on(
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pool: Sequence[Edit] = POOL,
) -> tuple[list[list[str]], list[tuple[int, float]]]:
    """Ids of every trajectory, and how many facts were validated on, with the weight of locality
    in the reward."""
    seen: list[list[str]] = []
    validated: list[tuple[int, float]] = []
    train_batches = HypernetworkEditor.train_batches

    def noted(self: HypernetworkEditor, *trajectories: Sequence[EditBatch]) -> Any:
        seen.extend([e.edit_id for batch in t for e in batch.edits] for t in trajectories)
        return train_batches(self, *trajectories)

    class Noted(ValidationStream):
        def __init__(self, *args: Any) -> None:
            validated.append((len(args[1]), args[3]))
            super().__init__(*args)

    monkeypatch.setattr(HypernetworkEditor, "train_batches", noted)
    monkeypatch.setattr(training, "ValidationStream", Noted)
    session = small_session(tmp_path)
    method = method_of(session.host.model, "rledit", SHORT | settings)
    trained_network(session.host.open(method.modules), method, pool, lambda _: None)
    return seen, validated


def test_a_network_is_trained_without_validation_where_patience_is_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, validated = _trained_on({"patience": 0}, tmp_path, monkeypatch)
    assert not validated
    assert sorted(seen[0] + seen[1]) == sorted(e.edit_id for e in POOL)  # all facts, none twice


def test_a_network_is_trained_and_validated_as_its_settings_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (epochs, (by_default,)) = _trained_on({"trajectory_batches": 1}, tmp_path, monkeypatch)
    assert by_default == (8, 4.0)  # a fifth of the facts, and the recipe's weight
    assert not set(epochs[0]) & set(epochs[1])
    settings = {"validation_batches": 1, "loc_coef": 0.5, "drawing": "independent"}
    more = [*POOL, *(replace(e, edit_id=f"more {e.edit_id}") for e in POOL)]
    seen, (chosen,) = _trained_on(
        settings | {"train_steps": 4, "patience": 9}, tmp_path, monkeypatch, more
    )
    assert chosen == (10, 0.5)
    ids = [edit_id for trajectory in seen for edit_id in trajectory]
    assert len(ids) == 80 and len(set(ids)) < 65  # 70 facts are trained on, each walked once


def test_more_facts_to_validate_on_than_ship_are_refused(tmp_path: Path) -> None:
    session = small_session(tmp_path)
    method = method_of(session.host.model, "rledit", SHORT | {"validation_batches": 30})
    with pytest.raises(MethodError, match="30 batches of 10 facts are more than the 237"):
        trained_network(session.host.open(method.modules), method, None, lambda _: None)


def test_layers_go_by_relative_depth() -> None:
    config = LlamaConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=30,
        num_attention_heads=1,
    )  # fmt: skip
    with torch.device("meta"):
        thirty = AutoModelForCausalLM.from_config(config)
    assert late(thirty) == ("down:24-28",)
    assert method_of(thirty, "memit").modules == ("down:8-9",)
    assert method_of(thirty, "rome").modules == ("down:8",)
    with pytest.raises(MethodError, match="draws training data"):
        method_of(thirty, "stableedit")


def test_a_model_without_a_tokenizer_asks_for_one() -> None:
    model, tokenizer = learnt()
    model.config.name_or_path = ""
    with pytest.raises(HostError, match="pass one: edit.model, facts, tokenizer="):
        edit(model, rows(1))
    with pytest.raises(HostError, match="has edits that .* does not have"):
        host = Host.of(model, tokenizer)
        session = Session(host, supplies=Supplies(host, Path("/nonexistent")))
        session.edit(rows(2), editor="ultraedit", settings=STEP, floor=0)
        vars(model)["_rledit_session"] = session
        edit(model, rows(2), ledger="/tmp/never")

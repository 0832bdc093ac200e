"""Contract of every editor in the registry; a new editor is covered without code of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rledit.decoding import decode
from rledit.editors import EDITORS, Editor, TrainableEditor, editor_class
from rledit.editors.overlay_editor import OverlayEditor
from rledit.families import FAMILIES
from rledit.model import EditableModel, OccupiedError
from rledit.overlay import OverlayError
from rledit.protocols import protocol, read
from rledit.protocols.reading import Reading
from rledit.records import Locality
from rledit.scoring import Scorer
from rledit.step_size import SettingError
from rledit.tokenization import EditBatch, Sample, TokenizationError
from rledit.written_answers import Answers
from tests.unit.helpers.text_edits import equip, random_edits, text_batches, tiny_tokenizer
from tests.unit.helpers.tiny_models import tiny_model, two_shapes
from tests.unit.helpers.turns import by_turns, marked

# Small networks, few steps, and steps large enough for edits to show in float32.
SETTINGS: dict[str, Any] = {
    "rank": 4,
    "n_blocks": 1,
    "initial_step": 1e-2,
    "step": 1e-2,
    "steps": 3,
    "lr": 1e-2,
    "meta_lr": 1e-3,
    "depth": 2,
    "passes": 2,
    "contexts": ("w01 w02 {}", "w03 {}"),
    "value_steps": 4,
    "value_lr": 0.5,
    "clamp": 4.0,
    "moment_weight": 1.0,
    "threshold": 1.0,
    "ridge": 1.0,
    "warmup_batches": 2,
    "retrain_every": 1,
    "retrain_batches": 2,
    "hidden_width": 8,
    "head_width": 8,
    "weighing_width": 4,
    "inner_width": 8,
    "alpha": 0.1,
    "beta": 5.0,
    "gamma": 5.0,
    "ratio": 1.1,
    "save_freq": 4,
    "merge_freq": 8,
    "k": 8,
    "overlap": 0.9,
    "refresh_every": 6,
    "settling_edits": 4,
    "deviations": 0.1,
    "space_floor": 1e-6,
    "energy": 0.9,
    "active_modules": 2,
    "gate_width": 8,
}
EDITING = [name for name in EDITORS if name != "none"]
# One editor of each mechanism; the others differ from these in what they solve.
MECHANISMS = ("ultraedit", "rledit", "rome", "memit", "ft", "wise")
DTYPES = (torch.float32, torch.bfloat16)
OFTEN = {(name, DTYPES[i % 2]) for i, name in enumerate(MECHANISMS)}


def product_of(others: Iterable[Any]) -> list[Any]:
    """All editors with the first of the others; two of MECHANISMS with each, by turns, the rest of
    MECHANISMS long, other editors slow."""
    first, *more = others
    found: list[Any] = [(first, name) for name in EDITING]
    for i, other in enumerate(more):
        often = {MECHANISMS[i % 6], MECHANISMS[(i + 3) % 6]}
        for name in EDITING:
            rest = pytest.mark.long if name in MECHANISMS else pytest.mark.slow
            found.append(pytest.param(other, name, marks=() if name in often else rest))
    return found


def make(
    name: str,
    family: str = "llama",
    dtype: torch.dtype = torch.float32,
    equipped: bool = True,
) -> Editor:
    model = tiny_model(family).to(dtype)
    cls = editor_class(name)
    known = {f.name for f in fields(cls.Config)}
    choices = {"any": two_shapes(model), "down": ("down:1,3",), "one_down": ("down:2",)}
    modules = () if name == "none" else choices[cls.target_modules]
    settings = {k: v for k, v in SETTINGS.items() if k in known}
    if not getattr(cls.Config, "transition", True):
        settings.pop("depth")
    editable = EditableModel(model, tiny_tokenizer(family), modules)
    editor = cls(editable, cls.Config(modules=modules, **settings))
    if equipped:
        equip(editor)
    return editor


def batches(editor: Editor, n: int, size: int = 6, seed: int = 0) -> list[EditBatch]:
    return text_batches(editor.model, n, size, seed, editor.group_size)


def matrices(editor: Editor) -> dict[str, torch.Tensor]:
    """The model's matrices; where edits lie beside them, also what it says to edited prompts."""
    found = {k: v.clone() for k, v in editor.model.model.state_dict().items()}
    return {**found, "answers": answers(editor)} if is_overlay(editor) else found


def is_overlay(editor: Editor) -> bool:
    return isinstance(editor, OverlayEditor)


@torch.no_grad()
def answers(editor: Editor) -> torch.Tensor:
    """Logits behind the edit prompts that these tests edit, in one company."""
    edits = [edit for seed in range(3) for edit in random_edits(6, seed)]
    samples = editor.model.encoder.batch(edits, 4).edit.samples
    alone = editor.model.prefix_cache.another(cache_bytes=0)
    return torch.cat([alone.logits(m) for m in editor.model.micro_batches(samples)])


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(("family", "name"), product_of(FAMILIES))
def test_edits_change_the_declared_matrices_and_nothing_else(name: str, family: str) -> None:
    editor = make(name, family)
    before = matrices(editor)
    editor.edit(batches(editor, 1)[0])
    after = matrices(editor)
    changed = {k.removesuffix(".weight") for k in before if not torch.equal(before[k], after[k])}
    declared = {"answers"} if is_overlay(editor) else set(editor.model.modules)
    # HiEdit's gate picks some of them.
    assert changed <= declared
    assert len(changed) == getattr(editor, "active_modules", len(declared))


def test_the_unedited_row_changes_nothing() -> None:
    editor = make("none")
    before = matrices(editor)
    editor.edit(batches(editor, 1)[0])
    assert same(before, matrices(editor))


@pytest.mark.parametrize(("dtype", "name"), product_of(DTYPES))
def test_restoring_is_bit_exact(name: str, dtype: torch.dtype) -> None:
    editor = make(name, dtype=dtype)
    before = matrices(editor)
    for batch in batches(editor, 2):
        editor.edit(batch)
    assert not same(before, matrices(editor))
    with editor.model.weights.unedited():
        assert same(before, matrices(editor))
    assert not same(before, matrices(editor))
    editor.model.weights.restore()
    assert same(before, matrices(editor))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(
            name,
            dtype,
            marks=pytest.mark.long
            if dtype == DTYPES[0] or name in MECHANISMS
            else pytest.mark.slow,
        )
        if (name, dtype) not in OFTEN
        else (name, dtype)
        for dtype in DTYPES
        for name in EDITING
    ],
)
def test_resuming_at_a_batch_equals_a_straight_run(name: str, dtype: torch.dtype) -> None:
    straight = make(name, dtype=dtype)
    stream = batches(straight, 4)
    resumed = make(name, dtype=dtype)
    for batch in stream[:2]:
        straight.edit(batch)
    saved = (straight.model.weights.state_dict(), straight.state_dict())
    for batch in stream[2:]:
        straight.edit(batch)
    resumed.model.weights.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for batch in stream[2:]:
        resumed.edit(batch)
    assert same(matrices(straight), matrices(resumed))


@pytest.mark.parametrize("name", marked(EDITING, MECHANISMS))
def test_two_cells_do_not_leak_into_each_other(name: str) -> None:
    first, second = make(name), make(name)
    for batch in batches(first, 2, seed=1):
        first.edit(batch)
    fresh = make(name)
    for batch in batches(fresh, 2, seed=2):
        second.edit(batch)
        fresh.edit(batch)
    assert same(matrices(second), matrices(fresh))


@pytest.mark.parametrize("name", EDITING)
def test_a_batch_of_one_and_a_repeated_edit_work(name: str) -> None:
    editor = make(name)
    (single,) = batches(editor, 1, size=1)
    before = matrices(editor)
    for _ in range(2):
        metrics = editor.edit(single)
        assert all(torch.isfinite(torch.tensor(v)) for v in metrics.values())
        assert not same(before, matrices(editor))


@pytest.mark.parametrize("name", EDITING)
def test_contradicting_edits_work(name: str) -> None:
    """The same prompt with two targets, in one batch and in the next."""
    editor = make(name)
    first, second = random_edits(2)
    contrary = replace(first, target=second.target)
    before = matrices(editor)
    for members in ([first, contrary, second], [contrary]):
        metrics = editor.edit(editor.model.encoder.batch(members, editor.group_size))
        assert all(torch.isfinite(torch.tensor(v)) for v in metrics.values())
    after = matrices(editor)
    assert all(bool(value.isfinite().all()) for value in after.values())
    assert not same(before, after)


@pytest.mark.parametrize("name", EDITING)
def test_a_state_comes_back_from_a_file_bit_by_bit(name: str, tmp_path: Path) -> None:
    editor, other = make(name), make(name)
    editor.edit(batches(editor, 1)[0])
    state = editor.state_dict()
    save_file(state, tmp_path / "state.safetensors")
    other.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert same(state, other.state_dict())


@pytest.mark.parametrize("name", EDITING)
def test_edits_without_a_subject_are_edited_or_refused_by_row(name: str) -> None:
    editor = make(name)
    edits = [replace(edit, subject=None) for edit in random_edits(2)]
    batch = editor.model.encoder.batch(edits, editor.group_size)
    before = matrices(editor)
    if "subject" in editor.needs_of(editor.config):
        with pytest.raises(TokenizationError, match=r"random.json:0: the edit has no subject"):
            editor.edit(batch)
        assert same(before, matrices(editor))
    else:
        editor.edit(batch)
        assert not same(before, matrices(editor))


@pytest.mark.parametrize("name", EDITING)
def test_what_an_editor_needs_is_asked_for_by_name(name: str) -> None:
    editor = make(name, equipped=False)
    needs = editor.needs_of(editor.config)
    stream = batches(editor, 3)
    for need, call in {"statistics": "load_covariance", "training_data": "load_training"}.items():
        if need in needs:
            with pytest.raises(ValueError, match=call):
                for batch in stream:
                    editor.edit(batch)


@pytest.mark.parametrize("name", EDITING)
def test_state_of_another_editor_is_refused(name: str) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        make(name).load_state_dict({"nonsense": torch.zeros(1)})


@pytest.mark.parametrize("name", EDITING)
def test_a_misspelt_choice_is_refused(name: str) -> None:
    """Each would else be taken for one of the others, or for none at all."""
    cls = EDITORS[name].Config
    hints = get_type_hints(cls)
    for setting in (field.name for field in fields(cls)):
        # A number or `auto` is checked where it is reckoned with.
        if "Literal" in repr(hints[setting]) and "float" not in repr(hints[setting]):
            with pytest.raises(SettingError, match=f"^{setting}: .*'offical'$"):
                cls(modules=("down:1",), **{setting: "offical"})


TRAINABLE = [n for n in EDITORS if issubclass(EDITORS[n], TrainableEditor)]


@pytest.mark.parametrize("name", marked(TRAINABLE, ("rledit", "hiedit", "mend")))
def test_training_resumed_in_the_middle_equals_training_straight_through(name: str) -> None:
    straight, resumed = make(name), make(name)
    trajectories = [batches(straight, 3, seed=s) for s in range(4)]
    assert isinstance(straight, TrainableEditor)
    assert isinstance(resumed, TrainableEditor)
    start = straight.state_dict()
    for trajectory in trajectories[:2]:
        straight.train_step(trajectory)
    saved = straight.training_state_dict()
    for trajectory in trajectories[2:]:
        straight.train_step(trajectory)
    resumed.load_training_state_dict(saved)
    for trajectory in trajectories[2:]:
        resumed.train_step(trajectory)
    assert same(straight.state_dict(), resumed.state_dict())
    assert not same(straight.state_dict(), start)


@pytest.mark.parametrize("name", TRAINABLE)
def test_training_leaves_the_model_unedited(name: str) -> None:
    editor = make(name)
    assert isinstance(editor, TrainableEditor)
    before = matrices(editor)
    editor.train_step(batches(editor, 3))
    assert same(before, matrices(editor))


def test_an_unknown_editor_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'malmen'"):
        editor_class("malmenn")


def test_bf16_edits_keep_an_fp32_master() -> None:
    """Many edits too small for bf16 add up in the master, and the model follows."""
    editor = make("ultraedit", dtype=torch.bfloat16)
    name = editor.model.modules[0]
    metrics = editor.edit(batches(editor, 1)[0])
    weights = editor.model.weights
    master = weights.read(name)
    assert master.dtype == torch.float32
    assert torch.equal(weights.parameter(name).detach(), master.to(torch.bfloat16))
    assert 0 < metrics["realised_cosine"] < 1


OVERLAYS = [n for n in EDITORS if issubclass(EDITORS[n], OverlayEditor)]


def overlay(name: str, family: str = "llama", dtype: torch.dtype = torch.float64) -> OverlayEditor:
    editor = make(name, family, dtype)
    assert isinstance(editor, OverlayEditor)
    return editor


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_empty_memory_is_the_unedited_model_bit_by_bit(name: str) -> None:
    editor = overlay(name, dtype=torch.float32)
    plain = make("none", dtype=torch.float32)
    assert torch.equal(answers(editor), answers(plain))
    editor.edit(batches(editor, 1)[0])
    assert editor.memory.entries
    assert not torch.equal(answers(editor), answers(plain))
    editor.model.weights.restore()
    assert not editor.memory.entries
    assert torch.equal(answers(editor), answers(plain))


@pytest.mark.parametrize("name", OVERLAYS)
def test_after_restoring_a_stream_begins_anew(name: str) -> None:
    editor, fresh = overlay(name), overlay(name)
    stream = batches(editor, 2)
    for batch in stream:
        editor.edit(batch)
    editor.model.weights.restore()
    editor.edit(stream[1])
    fresh.edit(stream[1])
    assert same(editor.state_dict(), fresh.state_dict())


@pytest.mark.parametrize(
    "scored",
    ["token_accuracy", *(pytest.param(p, marks=pytest.mark.long) for p in ("exact_match", "wild"))],
)
@pytest.mark.parametrize("name", OVERLAYS)
def test_what_is_read_of_the_unedited_model_never_sees_the_memory(
    name: str, scored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """References, the pre-edit row and specificity against the model itself; texts as well."""
    monkeypatch.setitem(SETTINGS, "lr", 1.0)  # for edits that change what is written
    editor = overlay(name)
    edits = random_edits(6)
    # Their unrelated prompts are the edited ones: the memory answers all of them.
    others = [
        replace(other, locality=(Locality(prompt=edit.prompt, answer=edit.target),))
        for edit, other in zip(edits, random_edits(6, seed=9), strict=True)
    ]
    protocols = [protocol(scored)]
    before = Scorer(editor.model, others, protocols)
    asking = Answers(editor.model, others, range(6))
    answers_before = asking.ask(0)
    unedited = before.score(6)
    assert [s.specificity_self for s in unedited] == [100.0] * 6
    editor.edit(editor.encode(edits))
    after = Scorer(editor.model, others, protocols)
    assert [plainly(r) for r in after.unedited] == [plainly(r) for r in before.unedited]
    edited = after.score(6)
    assert edited == before.score(6)
    assert scored == "exact_match" or any((s.specificity_self or 0) < 100 for s in edited)
    assert asking.ask(0) != answers_before
    unrelated = [q.sample for asked in after.asked(6) for q in asked.unrelated]
    assert [r.nll for r in read(editor.model, unrelated)] != [r.nll for r in after.unedited]
    with editor.model.weights.unedited():
        assert before.score(6) == unedited
        assert asking.ask(0) == answers_before


def plainly(reading: Reading) -> dict[str, Any]:
    """A reading as what can be compared."""
    return {k: v.tolist() if isinstance(v, Tensor) else v for k, v in vars(reading).items()}


@pytest.mark.parametrize(("name", "family"), by_turns(OVERLAYS, ["llama", "gptj"]))
def test_a_prompt_is_answered_alike_in_any_company(
    name: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by one, in batches, in another order: to the last bit routed alike, and read alike up to
    round-off."""
    monkeypatch.setitem(SETTINGS, "ratio", 3.0)  # so that WISE leaves some prompts to the model
    editor = overlay(name, family)
    stream = batches(editor, 3)
    for batch in stream[:2]:
        editor.edit(batch)
    samples = [s for b in stream for phase in (b.edit, b.equivalent) for s in phase.samples]
    routes = editor.memory.route([s.prompt for s in samples])
    assert set((routes >= 0).tolist()) == {True, False}
    editor.memory.forget_prompts()
    turned = editor.memory.route([s.prompt for s in reversed(samples)])
    assert torch.equal(turned.flip(0), routes)
    together = [r.nll for r in read(editor.model, samples)]
    editor.model.prefix_cache.clear()
    editor.memory.forget_prompts()
    alone = [read(editor.model, [s])[0].nll for s in samples]
    assert together == pytest.approx(alone, rel=1e-6)
    with editor.model.weights.unedited():
        plain = [r.nll for r in read(editor.model, samples)]
    for route, one, other in zip(routes.tolist(), together, plain, strict=True):
        assert (abs(one - other) < 1e-6) == (route < 0)


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_answer_does_not_change_how_its_prompt_is_answered(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short and long answers behind one prompt, padded in one pass: the first token is as likely
    behind either, and the memory answers those that it does when asked of the prompt alone."""
    monkeypatch.setitem(SETTINGS, "ratio", 3.0)  # so that WISE leaves some prompts to the model
    editor = overlay(name)
    stream = batches(editor, 3)
    for batch in stream[:2]:
        editor.edit(batch)
    edits = [edit for seed in range(3) for edit in random_edits(6, seed)]
    ends = ("w01", "w02 w03 w04 w05", "w06 w07")
    samples = [
        sample
        for end in ends
        for sample in editor.encode([replace(e, target=end) for e in edits]).edit.samples
    ]
    (micro_batch,) = editor.model.micro_batches(samples, 10_000)
    counts = torch.tensor([len(samples[i].answer_ids) for i in micro_batch.index.tolist()])
    assert len(set(counts.tolist())) > 1
    with torch.no_grad():
        logits = editor.model.prefix_cache.logits(micro_batch)
    first = logits[counts.cumsum(0) - counts][micro_batch.index.argsort()].chunk(len(ends))
    for other in first[1:]:
        assert torch.allclose(first[0], other, atol=1e-9)
    routes = editor.memory.route([s.prompt for s in samples[: len(edits)]])
    with editor.model.weights.unedited(), torch.no_grad():
        plain = editor.model.prefix_cache.logits(micro_batch)
    unedited = plain[counts.cumsum(0) - counts][micro_batch.index.argsort()][: len(edits)]
    answered = ((first[0] - unedited).abs().amax(1) > 1e-9).tolist()
    assert answered == (routes >= 0).tolist()
    assert set(answered) == {True, False}


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_prompt_is_looked_at_once_and_its_prefix_serves_with_a_memory(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edits change what is decided of a prompt, not what is known of it."""
    editor = overlay(name)
    first, second = batches(editor, 2)
    asked = [*first.equivalent.samples, *second.equivalent.samples]
    editor.edit(first)
    before = [r.nll for r in read(editor.model, asked)]
    looked: list[int] = []
    of = editor.memory._inputs.of

    def noting(prompts: list[Tensor]) -> Any:
        looked.append(len(prompts))
        return of(prompts)

    monkeypatch.setattr(editor.memory._inputs, "of", noting)
    assert [r.nll for r in read(editor.model, asked)] == before
    editor.edit(editor.encode([replace(e, target="w05") for e in first.edits]))
    looked.clear()
    misses = editor.model.prefix_cache.misses
    read(editor.model, asked)
    assert sum(looked) == 0
    assert editor.model.prefix_cache.misses == misses


@pytest.mark.parametrize("name", OVERLAYS)
def test_beams_go_on_with_the_decision_of_their_prompt(name: str) -> None:
    """The beams of one prompt lie together, and are what whole passes with its decision give."""
    editor = overlay(name)
    edits = random_edits(4)
    editor.edit(editor.encode(edits))
    model = editor.model
    for edit in edits:
        prompt = torch.tensor(model.encoder.prompt_ids(edit.prompt))[None]
        found = model.model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, num_beams=3,
            max_new_tokens=4, eos_token_id=None, pad_token_id=0, return_dict_in_generate=True,
            output_scores=True,
        )  # fmt: skip
        with model.announced(prompt), torch.no_grad():
            logits = model.model(input_ids=found.sequences, use_cache=False).logits[0]
        chances = logits.log_softmax(-1)[prompt.shape[1] - 1 : -1]
        written = found.sequences[0, prompt.shape[1] :]
        total = chances.gather(1, written[:, None]).sum() / len(written)
        assert float(total) == pytest.approx(float(found.sequences_scores[0]), rel=1e-6)


@pytest.mark.parametrize("name", OVERLAYS)
def test_hidden_states_that_nobody_announced_are_refused(name: str) -> None:
    editor = overlay(name)
    batch = batches(editor, 1)[0]
    editor.edit(batch)
    model = editor.model.model
    states = model.get_input_embeddings()(batch.edit.samples[0].prompt[None])
    with pytest.raises(OverlayError, match="begins with hidden states was not announced"):
        model(inputs_embeds=states)
    with editor.model.weights.unedited():
        model(inputs_embeds=states)


@pytest.mark.parametrize("name", OVERLAYS)
def test_written_text_goes_on_with_the_decision_of_its_prompt(name: str) -> None:
    """Decoding from a cache gives what whole passes over prompt and text so far give."""
    editor = overlay(name)
    edits = random_edits(6)
    editor.edit(editor.encode(edits))
    written = decode(editor.model, [e.prompt for e in edits], 4)
    for edit, tokens in zip(edits, written, strict=True):
        prompt = torch.tensor(editor.model.encoder.prompt_ids(edit.prompt))
        ids, labels = prompt, torch.full_like(prompt, -100)
        labels[-1] = 0
        for token in tokens:
            (reading,) = read(editor.model, [Sample(ids, labels)])
            assert int(reading.predicted[-1]) == token
            ids = torch.cat([ids, torch.tensor([token])])
            labels = torch.cat([labels[:-1], torch.tensor([token, 0])])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", OVERLAYS)
def test_a_pass_that_nobody_announced_is_decided_by_its_last_real_token(
    name: str, side: str
) -> None:
    editor = overlay(name)
    batch = batches(editor, 1)[0]
    editor.edit(batch)
    prompts = [s.prompt for s in batch.edit.samples]
    width = max(map(len, prompts))
    assert len(set(map(len, prompts))) > 1
    ids, mask = (torch.stack([padded(row, width, side) for row in rows])
                 for rows in (prompts, [torch.ones_like(p) for p in prompts]))  # fmt: skip
    places = (mask.cumsum(1) - 1).clamp_min(0)
    out = editor.model.model(input_ids=ids, attention_mask=mask, position_ids=places)
    assert editor.memory.unannounced == len(prompts)
    for i, prompt in enumerate(prompts):
        with editor.model.announced(prompt[None]):
            known = editor.model.model(input_ids=prompt[None]).logits[0, -1]
        assert torch.allclose(
            out.logits[i, width - 1 if side == "left" else len(prompt) - 1], known
        )
    if side == "right":
        return
    # Held while it is continued, token by token.
    token = out.logits[:, -1].argmax(-1)
    more = editor.model.model(
        input_ids=token[:, None],
        attention_mask=torch.cat([mask, torch.ones_like(token)[:, None]], 1),
        position_ids=places[:, -1:] + 1,
        past_key_values=out.past_key_values,
    ).logits
    for i, prompt in enumerate(prompts):
        with editor.model.announced(prompt[None]):
            longer = torch.cat([prompt, token[i : i + 1]])[None]
            known = editor.model.model(input_ids=longer).logits[0, -1]
        assert torch.allclose(more[i, 0], known)


def padded(row: Tensor, width: int, side: str) -> Tensor:
    empty = width - len(row)
    return torch.nn.functional.pad(row, (empty, 0) if side == "left" else (0, empty))


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_memory_does_not_depend_on_how_edits_are_cut_into_batches(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One edit is there already and comes again, until the memory gives its target and after."""
    monkeypatch.setitem(SETTINGS, "lr", 1.0)  # with which GRACE's value takes two trainings
    whole, single = overlay(name), overlay(name)
    other, first, *more = random_edits(6)
    edits = [first, first, first, other, *more, first]
    for editor in (whole, single):
        editor.edit(editor.encode([first]))
    whole.edit(whole.encode(edits))
    for edit in edits:
        single.edit(single.encode([edit]))
    one, other = whole.state_dict(), single.state_dict()
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.allclose(value.double(), other[key].double(), atol=1e-7), key


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_a_memory_takes_is_what_it_holds(name: str) -> None:
    editor = overlay(name, dtype=torch.float32)
    for batch in batches(editor, 2, size=5):
        editor.edit(batch)
    memory = editor.memory
    memory.route([s.prompt for s in batch.edit.samples])  # makes what decisions are taken by
    tensors, numbers = held(memory)
    assert memory.n_bytes == tensors + 8 * numbers
    shape = editor.model.shape(editor.module)
    assert editor.bytes_of(editor.config, shape, 10) >= tensors


def held(memory: Any) -> tuple[int, int]:
    """Bytes of the tensors that a memory holds for itself, and whole numbers in its lists."""
    of_passes = {"_raw", "_held", "_forced"}
    found: dict[int, int] = {}
    numbers = 0
    for name, value in vars(memory).items():
        for one in value if isinstance(value, tuple | list) else [value]:
            if isinstance(one, Tensor) and name not in of_passes:
                found[one.data_ptr()] = one.nbytes
            elif isinstance(value, list):
                numbers += len(one) if isinstance(one, tuple) else 1
    return sum(found.values()), numbers


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_model_with_a_memory_is_not_taken_for_an_unedited_one(name: str) -> None:
    editor = overlay(name)
    editor.edit(batches(editor, 1)[0])
    with pytest.raises(OccupiedError, match=r"restore\(\)"):
        EditableModel(editor.model.model, None, ("down:1",))
    editor.model.weights.restore()
    EditableModel(editor.model.model, None, ("down:1",))


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_memory_at_the_last_layer_sees_whole_prompts(name: str) -> None:
    """Passes run the last layer's MLP on answer rows only; decisions rest on the prompt's."""
    model = tiny_model("llama")
    cls = editor_class(name)
    known = {f.name for f in fields(cls.Config)}
    settings = {k: v for k, v in SETTINGS.items() if k in known}
    editor = cls(
        EditableModel(model, tiny_tokenizer("llama"), ("down:3",)),
        cls.Config(modules=("down:3",), **settings),
    )
    assert isinstance(editor, OverlayEditor)
    equip(editor)
    batch = batches(editor, 1)[0]
    editor.edit(batch)
    (micro_batch,) = editor.model.micro_batches(batch.edit.samples, 1000)
    narrow = editor.model.prefix_cache.logits(micro_batch)
    assert torch.allclose(narrow, editor.model.prefix_cache.logits(micro_batch, narrow=False))
    with editor.model.weights.unedited():
        assert not torch.allclose(narrow, editor.model.prefix_cache.logits(micro_batch))

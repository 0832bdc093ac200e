"""Numbers that are not finite: the right score, or an error that names the place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rledit.editors import editor_class
from rledit.editors.hypernetwork_editor import HypernetworkEditor
from rledit.finite import NonFiniteError, _listed, usable
from rledit.locate.covariance import CovarianceError, KeyCovariance, accumulate
from rledit.measurements.downstream import Item
from rledit.measurements.perplexity import perplexity, text_samples
from rledit.measurements.registry import EvalData, Measurements
from rledit.model import EditableModel, Execution
from rledit.protocols import PROTOCOLS, generate, read
from rledit.records import Consequence, Edit
from rledit.scoring import EditScore, Scorer
from rledit.stream import StreamScored, run_stream
from tests.unit.helpers.text_edits import WORDS, random_covariances, random_edits, tiny_tokenizer
from tests.unit.helpers.tiny_models import tiny_model, two_shapes

NAN, INF = float("nan"), float("inf")
EDITS = [
    replace(edit, old_target=other.target)
    for edit, other in zip(random_edits(6, seed=5), random_edits(6, seed=6), strict=True)
]
EVERY = list(PROTOCOLS.values())


def opened(model: nn.Module | None = None, **execution: Any) -> EditableModel:
    whole = tiny_model("llama") if model is None else model
    return EditableModel(whole, tiny_tokenizer("llama"), two_shapes(whole), Execution(**execution))


def put(model: nn.Module, name: str, place: tuple[int, ...], value: float) -> None:
    with torch.no_grad():
        model.get_parameter(name)[place] = value


@pytest.mark.parametrize(
    ("name", "place", "value", "says"),
    [
        (
            "model.embed_tokens.weight",
            (7, 3),
            NAN,
            r"model\.embed_tokens\.weight has nan in row 7, column 3 \(1 of 640 entries\)",
        ),
        (
            "model.layers.2.mlp.down_proj.weight",
            (1, 2),
            INF,
            r"down_proj\.weight has inf in row 1, column 2 \(1 of 384 entries\)",
        ),
        ("model.norm.weight", (4,), -INF, r"model\.norm\.weight has -inf in entry 4 \(1 of 16"),
        ("lm_head.weight", (0, 0), NAN, r"lm_head\.weight has nan in row 0, column 0"),
    ],
)
def test_a_checkpoint_with_a_weight_that_is_no_number_is_refused(
    name: str, place: tuple[int, ...], value: float, says: str
) -> None:
    model = tiny_model("llama")
    put(model, name, place, value)
    with pytest.raises(NonFiniteError, match=says) as caught:
        opened(model)
    assert str(caught.value).startswith("the checkpoint holds weights that are no numbers: ")
    assert str(caught.value).endswith(
        "No score is made of such a model: the file was saved or fetched broken; fetch it again, "
        "or take a revision without"
    )


def test_all_matrices_are_counted_and_large_float64_weights_are_numbers() -> None:
    model = tiny_model("llama")
    put(model, "model.layers.0.mlp.up_proj.weight", (0, 0), 1e200)
    opened(model)
    for layer in (1, 2, 3):
        put(model, f"model.layers.{layer}.mlp.up_proj.weight", (0, 0), NAN)
    with pytest.raises(NonFiniteError, match=r"layers\.1\.mlp\.up_proj.*and 2 more matrices"):
        opened(model)


def test_what_a_row_of_logits_has_to_be() -> None:
    rows = torch.tensor([[1.0, -INF, 2.0], [1.0, NAN, 2.0], [INF, 0.0, 0.0], [-INF] * 3])
    assert usable(rows).tolist() == [True, False, False, False]


@contextmanager
def masked(model: EditableModel, tokens: Sequence[int]) -> Iterator[None]:
    """Logits of -inf at some tokens, as models mask the vocabulary's padding."""

    def hide(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        hidden = output.clone()
        hidden[..., list(tokens)] = -INF
        return hidden

    head: Any = model.model.get_output_embeddings()
    handle = head.register_forward_hook(hide)
    try:
        yield
    finally:
        handle.remove()


def test_masked_tokens_that_nobody_asks_for_change_no_score() -> None:
    model = opened()
    asked = {
        token
        for edit in EDITS
        for text in (edit.target, edit.old_target or "", edit.locality[0].answer)
        for token in model.encoder.sample("w01", text, "here").answer_ids.tolist()
    }
    with torch.no_grad():
        every = [
            int(model.prefix_cache.logits(micro_batch).argmax(-1).unique()[0])
            for micro_batch in model.micro_batches(
                [model.encoder.sample(e.prompt, e.target, "") for e in EDITS]
            )
        ]
    free = [t for t in range(40) if t not in asked and t not in every][:1]
    assert free
    teacher = [p for p in EVERY if not p.asks & {"text", "free"}]
    expected = Scorer(model, EDITS, teacher).score(len(EDITS))
    with masked(model, free):
        found = Scorer(model, EDITS, teacher).score(len(EDITS))
        assert generate(model, [e.prompt for e in EDITS])
    changed = sum(a != b for a, b in zip(expected, found, strict=True))
    assert changed <= len(expected) // 4  # where the masked token was the likeliest
    assert all(s.efficacy is not None for s in found)


def test_an_answer_that_the_model_masks_is_refused() -> None:
    model = opened()
    token = int(model.encoder.sample(EDITS[0].prompt, EDITS[0].target, "").answer_ids[0])
    with (
        masked(model, [token]),
        pytest.raises(NonFiniteError, match=rf"the logit of its answer's token {token} is -inf"),
    ):
        Scorer(model, EDITS, EVERY[:1]).score(len(EDITS))


def test_only_prompts_that_meet_the_broken_row_are_refused() -> None:
    model = opened(token_budget=1)  # a prompt a pass
    word = EDITS[0].prompt.split()[-1]
    token = model.encoder.text_ids(word)[-1]
    put(model.model, "model.embed_tokens.weight", (token, 0), NAN)  # as if it came to be so later
    hit = [e for e in EDITS if word in e.prompt.split()]
    spared = [e for e in EDITS if word not in f"{e.prompt} {e.target}".split()]
    assert hit and spared
    healthy = opened(token_budget=1)

    def samples(chosen: Sequence[Edit]) -> list[Any]:
        return [healthy.encoder.sample(e.prompt, e.target, "") for e in chosen]

    found, expected = read(model, samples(spared)), read(healthy, samples(spared))
    assert [r.nll for r in found] == [r.nll for r in expected]
    with pytest.raises(NonFiniteError) as caught:
        read(model, samples(EDITS))
    message = str(caught.value)
    assert f"of {len(EDITS)} prompts" in message and word in message
    assert "the first layer to give no numbers is model.embed_tokens: " in message
    assert f"weight has nan in row {token}, column 0 (1 of 640 entries)" in message
    with pytest.raises(NonFiniteError, match=r"what the model writes is not finite for \d of"):
        generate(model, [e.prompt for e in hit])


@pytest.mark.parametrize("where", ["an edited layer", "another layer"])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_no_protocol_scores_it(name: str, where: str) -> None:
    model = opened()
    scorer = Scorer(model, EDITS, [PROTOCOLS[name]])
    broken = model.modules[-1] if where == "an edited layer" else "model.layers.3.mlp.up_proj"
    put(model.model, f"{broken}.weight", (2, 2), NAN)
    with pytest.raises(NonFiniteError, match=broken):
        scorer.score(len(EDITS))
    if where == "another layer":  # the unedited model is broken as well
        with pytest.raises(NonFiniteError, match=broken):
            Scorer(model, EDITS, [PROTOCOLS[name]])


@pytest.mark.parametrize("name", ["perplexity", "fluency", "consistency", "ability", "portability"])
def test_no_measurement_is_made_of_it(name: str) -> None:
    model = opened()
    told = replace(
        EDITS[0],
        consequences=(Consequence(prompt=EDITS[1].prompt, answers=(EDITS[1].target,), kind="x"),),
        reference_key="r",
    )
    item = Item(prompt=EDITS[2].prompt, answers=("w01", "w02"), right=0)
    material = EvalData(
        text=["w01 w02 w03"], references={"r": ["w01 w02"]}, ability={"sst": [item]}, n_prompts=1
    )
    made = Measurements(model, [told], [name], material)
    assert made.measure(1)
    put(model.model, "model.layers.3.mlp.up_proj.weight", (2, 2), NAN)
    with pytest.raises(NonFiniteError, match=r"model\.layers\.3\.mlp\.up_proj"):
        made.measure(1)


def test_a_perplexity_beyond_float64_is_no_number() -> None:
    model = opened()
    samples = text_samples(model, [" ".join(WORDS[:8])])
    assert perplexity(model, samples) > 1
    with torch.no_grad():
        model.model.get_output_embeddings().weight.mul_(1e5)  # type: ignore[operator]
    with pytest.raises(NonFiniteError, match=r"perplexity is beyond float64: .* nats a token"):
        perplexity(model, samples)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_overflow_of_a_narrow_type_is_named(dtype: torch.dtype) -> None:
    model = opened(tiny_model("llama").to(dtype))
    name = model.modules[-1]
    largest = torch.finfo(dtype).max
    with torch.no_grad():
        model.weights.set(name, torch.full_like(model.weights.read(name).float(), 0.9 * largest))
    with pytest.raises(NonFiniteError) as caught:
        read(model, [model.encoder.sample(e.prompt, e.target, "") for e in EDITS])
    kind = str(dtype).removeprefix("torch.")
    assert f"the first layer to give no numbers is {name}: its output is beyond {kind}" in str(
        caught.value
    )


class _Exploding:
    """An editor whose third batch writes what is no number."""

    name = "exploding"

    def __init__(self, model: EditableModel, value: float, metric: float = 0.5) -> None:
        self.model, self._value, self._metric, self._batches = model, value, metric, 0

    def encode(self, edits: Any) -> Any:
        return self.model.encoder.batch(edits, 4)

    def edit(self, _: Any) -> dict[str, float]:
        self._batches += 1
        if self._batches == 3:
            name = self.model.modules[0]
            weight = self.model.weights.read(name).float().clone()
            weight[0, 0] = self._value
            self.model.weights.set(name, weight)
            return {"shift_norm": self._metric}
        return {"shift_norm": 0.5}


@pytest.mark.parametrize(
    ("dtype", "value", "metric", "says"),
    [
        (torch.float32, NAN, 0.5, r"gate_proj holds weights that are no numbers after the edit"),
        (torch.float32, INF, 0.5, r"gate_proj holds weights that are no numbers after the edit"),
        (torch.float16, 1e5, 0.5, r"gate_proj holds weights beyond float16 \(at most 6\.55e\+04\)"),
        (torch.float32, 0.1, NAN, r"what exploding measures of the edit is not finite \(shift_no"),
    ],
)
def test_an_edit_that_breaks_the_model_is_named_by_its_batch(
    dtype: torch.dtype, value: float, metric: float, says: str
) -> None:
    model = opened(tiny_model("llama").to(dtype))
    scorer = Scorer(model, EDITS, EVERY[:1])
    editor: Any = _Exploding(model, value, metric)
    events = []
    with pytest.raises(NonFiniteError, match=says) as caught:
        for event in run_stream(editor, EDITS, 1, [1, 2, 3, 4], scorer):
            events.append(event)
    assert str(caught.value).startswith(
        "editing batch 3 (edits 3 to 3): model.layers."
        if metric == 0.5
        else "editing batch 3 (edits 3 to 3): what"
    )
    assert [e.n_edits for e in events if isinstance(e, StreamScored)] == [1, 2]


@pytest.mark.parametrize("name", ["ultraedit", "ft", "rledit", "memit"])
def test_editing_a_broken_model_names_the_layer(name: str) -> None:
    from tests.unit.rledit.editors.test_editors import batches, make

    editor = make(name)
    (batch,) = batches(editor, 1)
    layer = "model.layers.0.mlp.up_proj"
    put(editor.model.model, f"{layer}.weight", (2, 2), NAN)
    before = {n: editor.model.weights.read(n).clone() for n in editor.model.modules}
    with pytest.raises(NonFiniteError, match=layer):
        editor.edit(batch)
    assert all(editor.model.weights.read(n).equal(w) for n, w in before.items())


def test_a_training_that_diverges_names_its_batch() -> None:
    model = opened()
    cls = editor_class("rledit")
    config = cls.Config(modules=model.modules, rank=3, n_blocks=1, depth=2, initial_step=1e-3)
    editor = cls(model, config)
    assert isinstance(editor, HypernetworkEditor)
    trajectory = [model.encoder.batch(EDITS[i : i + 2], 4) for i in range(0, 6, 2)]
    with torch.no_grad():
        next(iter(editor.networks.values())).log_ridge.fill_(0.0)
        next(iter(editor.networks.values())).step_parameter.fill_(NAN)
    with pytest.raises(NonFiniteError, match=r"^training, batch 1 of 3: the training loss is not"):
        editor.train_step(trajectory)


def test_second_moments_are_not_summed_over_it() -> None:
    model = opened()
    moments = random_covariances(model)
    name, moment = next(iter(moments.items()))
    put(model.model, "model.layers.0.mlp.up_proj.weight", (2, 2), NAN)
    with pytest.raises(
        NonFiniteError, match=rf"key covariance of '{name}'.*layers\.0\.mlp\.up_proj"
    ):
        accumulate(model, [[4, 5, 6]], moments)
    with pytest.raises(CovarianceError, match="no numbers; delete it, and compute it again"):
        KeyCovariance.load(moment.tensors(), moment.metadata())


def scores_of(model: EditableModel, scorer: Scorer | None = None) -> list[EditScore]:
    return (scorer or Scorer(model, EDITS, EVERY)).score(len(EDITS))


@cache
def right() -> list[EditScore]:
    return scores_of(opened())


PARAMETERS = {name: tuple(p.shape) for name, p in tiny_model("llama").named_parameters()}
places = st.sampled_from(sorted(PARAMETERS)).flatmap(
    lambda name: st.tuples(st.just(name), *(st.integers(0, n - 1) for n in PARAMETERS[name]))
)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    place=places,
    value=st.sampled_from([NAN, INF, -INF]),
    when=st.sampled_from(["at rest", "in memory"]),
)
# The token that fills shorter prompts up: none of them meets it by itself.
@example(place=("model.embed_tokens.weight", 0, 0), value=NAN, when="in memory")
def test_a_mutated_checkpoint_gives_the_right_scores_or_an_error(
    place: tuple[Any, ...], value: float, when: str
) -> None:
    name, *index = place
    if when == "at rest":
        model = tiny_model("llama")
        put(model, name, tuple(index), value)
        with pytest.raises(NonFiniteError, match=name.replace(".", r"\.")):
            opened(model)
        return
    editable = opened()
    edited = name.removesuffix(".weight") in editable.modules
    # Outside the edited matrices an infinity cannot come to be after the checkpoint was looked at.
    put(editable.model, name, tuple(index), value if edited else NAN)
    try:
        found = scores_of(editable)
    except NonFiniteError as error:
        assert "model." in str(error) or "lm_head" in str(error)
        return
    assert found == right()


def test_several_broken_matrices_are_said_as_one_and_how_many_more() -> None:
    broken = ["down:0 holds weights that are no numbers", "down:1 holds the same", "down:2 too"]
    assert _listed(broken) == "down:0 holds weights that are no numbers (2 more like it)"
    assert _listed(broken[:1]) == "down:0 holds weights that are no numbers"

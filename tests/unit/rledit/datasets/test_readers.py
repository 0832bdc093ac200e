"""Every format of the registry: mapping, detection, and mutated rows."""

from __future__ import annotations

import copy
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rledit.datasets import (
    FORMATS,
    DatasetError,
    Place,
    RowError,
    check_paths,
    detect_format,
    get_format,
    read_edits,
)
from rledit.datasets.downstream import SCHEMAS, find_schema, map_downstream
from rledit.datasets.errors import RowErrors
from rledit.datasets.format import Format
from rledit.datasets.known import map_known
from rledit.datasets.rows import RowFile, open_rows
from rledit.records import Edit, Locality

PLACE = Place(file="dir/file.json", row=17)
NAMES = list(FORMATS)


def read_row(form: Format, row: object) -> list[Edit]:
    return form.read(form.open_row(row, PLACE), PLACE)


def read_example(name: str, **changes: Any) -> list[Edit]:
    return read_row(FORMATS[name], {**FORMATS[name].example, **changes})


@pytest.mark.parametrize("name", NAMES)
def test_registry_entry_is_whole_and_reads_its_own_example(name: str) -> None:
    form = FORMATS[name]
    assert form.name == name
    edits = read_row(form, form.example)
    assert len({edit.edit_id for edit in edits}) == len(edits)
    for edit in edits:
        assert edit.edit_id.startswith(f"{name}:17")
        assert edit.source == "file.json:17"
        assert edit.prompt.strip() and edit.target.strip()
        assert edit.subject is None or edit.subject in edit.prompt


@pytest.mark.parametrize("name", [n for n in NAMES if FORMATS[n].detected])
def test_detection_finds_the_format_of_every_example(name: str) -> None:
    assert detect_format(FORMATS[name].example).name == name


@pytest.mark.parametrize("name", NAMES)
def test_every_missing_key_is_named_at_once(name: str) -> None:
    form = FORMATS[name]
    with pytest.raises(RowError) as caught:
        read_row(form, {})
    assert caught.value.missing == (*form.required, *form.marks)
    assert "dir/file.json, row 17" in str(caught.value)


def test_zsre_readings_differ_in_target_locality_and_truth() -> None:
    (mend,) = read_example("zsre_mend", alt="A", answers=["B"])
    (malmen,) = read_example("zsre_malmen", ans="C", loc="nq question: who")
    (rome,) = read_example("zsre_rome", alt="A", answers=["B"])
    assert (mend.target, malmen.target, rome.target) == ("A", "C", "B")
    assert (mend.old_target, malmen.old_target, rome.old_target) == ("B", None, None)
    assert mend.locality[0].prompt == FORMATS["zsre_mend"].example["loc"]
    assert malmen.locality[0].prompt == "nq question: who?"
    assert rome.locality[0].prompt == "nq question: how many strings does a viola have?"


def test_malmen_never_doubles_the_question_mark() -> None:
    (edit,) = read_example("zsre_malmen", loc="who?")
    assert edit.locality[0].prompt == "who?"


def test_a_row_with_alt_and_answers_is_mends_and_one_with_ans_is_malmens() -> None:
    both = {**FORMATS["zsre_mend"].example, "ans": "x"}
    assert detect_format(both).name == "zsre_mend"
    del both["answers"]
    assert detect_format(both).name == "zsre_malmen"


def test_counterfact_keeps_all_paraphrases_and_neighbours() -> None:
    (edit,) = read_example("counterfact", paraphrase_prompts=["p", "q"])
    assert edit.prompt == "The ferry Maribel sails from"
    assert (edit.target, edit.old_target, edit.subject) == ("Esbjerg", "Oban", "Maribel")
    assert edit.rephrases == ("p", "q")
    assert edit.locality == (
        Locality(prompt="The ferry Colonsay sails from", answer="Oban"),
        Locality(prompt="The ferry Tiree sails from", answer="Oban"),
    )


def test_template_subject_with_braces_is_filled_literally() -> None:
    rewrite = {**FORMATS["counterfact"].example["requested_rewrite"], "subject": "{0} & {}"}
    (edit,) = read_example("counterfact", requested_rewrite=rewrite)
    assert edit.prompt == "The ferry {0} & {} sails from"


@pytest.mark.parametrize("template", ["The ferry sails from", "{} and {} sail from"])
@pytest.mark.parametrize("name", ["counterfact", "mquake"])
def test_template_without_exactly_one_slot_gives_row_and_reason(name: str, template: str) -> None:
    row = copy.deepcopy(dict(FORMATS[name].example))
    rewrite = row["requested_rewrite"]
    (rewrite[0] if name == "mquake" else rewrite)["prompt"] = template
    with pytest.raises(RowError, match=r"row 17.*requested_rewrite.*prompt.*slot"):
        read_row(FORMATS[name], row)


def test_fever_keeps_every_equivalent_claim() -> None:
    (edit,) = read_example("fever", equiv_prompt=["a", "b", "c"])
    assert edit.rephrases == ("a", "b", "c")
    assert (edit.target, edit.old_target, edit.subject) == ("REFUTES", "SUPPORTS", None)


def test_mquake_gives_one_edit_per_changed_hop() -> None:
    first, second = read_example("mquake")
    assert (first.edit_id, second.edit_id) == ("mquake:17.1", "mquake:17.2")
    assert second.prompt == "Esbjerg lies in the country of"
    assert second.rephrases == ("In which country does Esbjerg lie?",)
    with pytest.raises(RowError, match="asks for no edit"):
        read_example("mquake", requested_rewrite=[])


@pytest.mark.parametrize(
    ("truth", "expected"),
    [("a", "a"), (["a", "b"], "a"), ([["a", "b"], ["c"]], "a"), ([[], ["c"]], "c"), ([], None)],
)
def test_knowedit_takes_the_first_text_of_any_ground_truth(truth: Any, expected: str) -> None:
    (edit,) = read_example(
        "knowedit",
        ground_truth=truth,
        locality={"Forgetfulness": [{"prompt": "f", "ground_truth": truth}]},
    )
    assert edit.old_target == expected
    assert [probe.answer for probe in edit.locality] == ([expected] if expected else [])


def test_knowedit_without_ground_truth_and_with_two_sections() -> None:
    row = dict(FORMATS["knowedit"].example)
    del row["ground_truth"]
    row["locality"] = {
        "Forgetfulness": [{"prompt": "f", "ground_truth": "x"}],
        "Relation_Specificity": [{"prompt": "r", "ground_truth": "y"}],
    }
    (edit,) = read_row(FORMATS["knowedit"], row)
    assert edit.old_target is None
    assert [probe.prompt for probe in edit.locality] == ["r", "f"]


def test_qaedit_keeps_all_probes() -> None:
    probes = [{"loc": str(i), "loc_ans": "x"} for i in range(5)]
    (edit,) = read_example("qaedit", locality=probes)
    assert [probe.prompt for probe in edit.locality] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("form", "old", "locality"),
    [
        ("ultraeditbench", "old_answer", {"locality_prompt": "A is", "locality_answer": "B"}),
        ("ultraeditbench", "target_old", {"loc": "A is", "loc_ans": "B"}),
        ("counterfact_flat", "ground_truth", {"loc": "A is", "loc_ans": "B"}),
        ("qaedit", "ground_truth", {"locality": [{"prompt": "A is", "ground_truth": "B"}]}),
        ("qaedit", "old_target", {"locality": [{"prompt": "A is", "ground_truth": "B"}]}),
    ],
)
@pytest.mark.parametrize(
    ("subject", "relation"), [("subject", "relation"), ("entity", "relation_id")]
)
def test_facts_of_ones_own_lose_nothing_by_what_their_other_columns_are_called(
    form: str, old: str, locality: dict[str, Any], subject: str, relation: str
) -> None:
    row = {"prompt": "The ferry Maribel sails from", "target": "Esbjerg", "rephrase": "Maribel's",
           subject: "Maribel", relation: "harbour", old: "Oban", **locality}  # fmt: skip
    assert detect_format(row).name == form
    report = read_edits("a.json", rows=[row])
    (edit,) = report.edits
    assert (edit.subject, edit.relation, edit.old_target) == ("Maribel", "harbour", "Oban")
    assert edit.locality == (Locality(prompt="A is", answer="B"),) and not report.unread


@pytest.mark.parametrize("name", ["zsre_malmen", "wikibigedit", "ultraeditbench", "qaedit"])
def test_null_or_blank_probes_are_absent(name: str) -> None:
    rephrase = "rephrase_prompt" if name == "ultraeditbench" else "rephrase"
    locality = {"locality": None} if name == "qaedit" else {"loc": " ", "loc_ans": None}
    (edit,) = read_example(name, **{rephrase: None}, **locality)
    assert edit.rephrases == () and edit.locality == ()


def test_unknown_schema_names_the_nearest_and_all_accepted() -> None:
    row = dict(FORMATS["counterfact_flat"].example)
    del row["locality_prompt"]
    with pytest.raises(RowError) as caught:
        detect_format(row, file="mine.json", row_number=3)
    message = str(caught.value)
    assert "mine.json, row 3" in message
    assert "nearest is counterfact_flat, for which it lacks `locality_prompt`" in message
    assert caught.value.missing == ("locality_prompt",)
    for form in FORMATS.values():
        assert (f"{form.name} (" in message) == form.detected


def test_unknown_format_name_names_the_nearest() -> None:
    with pytest.raises(DatasetError, match="zsre_mend"):
        get_format("zsre_mnd")


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(RowError, match="row 17: `src` holds half of a surrogate pair"):
        read_example("zsre_mend", src="abc \ud83d")


def test_errors_survive_the_trip_between_processes() -> None:
    error = RowErrors([RowError("f", 3, "reason", ("k",), "schemas")])
    copied = pickle.loads(pickle.dumps(error))
    assert str(copied) == str(error) and copied.errors[0].missing == ("k",)


# ---- mutated rows -------------------------------------------------------------------------------

GARBAGE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


def paths_of(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a JSON value, so that a mutation can reach the nested ones too."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    return [p for key, inner in items for p in [(*prefix, key), *paths_of(inner, (*prefix, key))]]


def mutate(row: Any, data: st.DataObject) -> Any:
    """Delete, blank, or replace one to three places of a row."""
    mutated = json.loads(json.dumps(row))
    for _ in range(data.draw(st.integers(1, 3))):
        paths = paths_of(mutated)
        if not paths:
            break
        *parents, last = data.draw(st.sampled_from(paths))
        target = mutated
        for key in parents:
            target = target[key]
        if data.draw(st.booleans()):
            del target[last]
        else:
            target[last] = data.draw(st.sampled_from([None, "", " ", 0, [], {}]) | GARBAGE)
    return mutated


def assert_located(error: RowError) -> None:
    assert error.file == "dir/file.json" and error.row == 17 and len(error.reason) > 8
    assert "dir/file.json, row 17: " in str(error)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_mutated_rows_give_edits_or_file_row_and_reason(name: str, data: st.DataObject) -> None:
    form = FORMATS[name]
    row = mutate(form.example, data)
    try:
        edits = read_row(form, row)
    except RowError as error:
        assert_located(error)
        return
    traps = form.observe(row)
    assert all(isinstance(trap, str) for trap in traps)
    for edit in edits:
        assert edit.prompt.strip() and isinstance(edit.target, str)
        assert all(rephrase.strip() for rephrase in edit.rephrases)
        assert all(probe.prompt.strip() and probe.answer.strip() for probe in edit.locality)


@settings(max_examples=50, deadline=None)
@given(row=GARBAGE)
def test_garbage_is_no_schema_and_no_crash(row: Any) -> None:
    with pytest.raises(RowError) as caught:
        detect_format(row, file="dir/file.json", row_number=17)
    assert_located(caught.value)
    for form in FORMATS.values():
        with pytest.raises(RowError):
            read_row(form, row)


DOWNSTREAM_ROWS: dict[str, dict[str, Any]] = {
    "cola": {"sentence": "Ferries sail.", "label": 1, "idx": 4},
    "sentiment_analysis": {"sentence": "fine ferries", "label": "1"},
    "rte": {"sentence1": "Ferries sail.", "sentence2": "They do.", "label": 0, "idx": 4},
    "nli": {"sentence1": "Ferries sail.", "sentence2": "They do.", "label": "entailment"},
    "mmlu": {"question": "1+1?", "subject": "math", "choices": [*"1234"], "answer": 1},
    "dialogue": {"article": "m: hello", "options": ["f: hi", "f: no"], "answers": "B", "id": "1"},
}
KNOWN_ROW = {"known_id": 0, "subject": "Maribel", "attribute": "Oban", "prompt": "Maribel is in"}


@pytest.mark.parametrize("task", DOWNSTREAM_ROWS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_mutated_ability_items_give_row_and_reason(task: str, data: st.DataObject) -> None:
    good = DOWNSTREAM_ROWS[task]
    schema = find_schema(good)
    assert schema is not None and task in schema.tasks
    mutated = mutate(good, data)
    file = RowFile(path="dir/file.json", rows=((17, mutated),), data_hash="")
    try:
        report = map_downstream(file, schema)
    except RowErrors as errors:
        assert_located(errors.errors[0])
    else:
        assert report.n_items == 1 and len(report.labels) == 1


@pytest.mark.parametrize(
    ("task", "change", "reason"),
    [
        ("mmlu", {"choices": [*"12345"]}, "`choices` has 5 answers, and the task is asked with 4"),
        ("mmlu", {"choices": [*"123"]}, "`choices` has 3 answers, and the task is asked with 4"),
        ("mmlu", {"choices": [*"123", " "]}, "`choices` has 3 answers, and the task is asked w"),
        ("mmlu", {"answer": 4}, "`answer` is 4, but there are 4 options"),
        ("mmlu", {"answer": -1}, "`answer` is -1, but there are 4 options"),
        ("sst2", {"label": -1}, "`label` is -1, not 0 or 1; -1 marks items whose answers are not"),
        ("cola", {"label": 2}, "`label` is 2, not 0 or 1"),
        ("rte", {"label": -1}, "`label` is -1, not 0 or 1"),
        ("mrpc", {"label": -1}, "`label` is -1, not 0 or 1"),
        ("nli", {"label": "-"}, "`label` is '-', not 'entailment' or 'not_entailment'"),
        ("sentiment_analysis", {"label": "-1"}, "`label` is '-1', not '0' or '1'"),
        ("dialogue", {"answers": "C"}, "`answers` is 'C', but there are 2 options"),
    ],
)
def test_an_answer_that_the_task_does_not_have(
    task: str, change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    good = DOWNSTREAM_ROWS[{"sst2": "cola", "mrpc": "rte"}.get(task, task)]
    path = tmp_path / f"{task}.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in (good, good, {**good, **change})))
    lines, code = check_paths([path])
    assert code == 1 and any(f"{path}, row 3: {reason}" in line for line in lines)
    (schema,) = [s for s in SCHEMAS if task in s.tasks]
    with pytest.raises(RowErrors, match=re.escape(f"{path}, row 3: {reason}")):
        map_downstream(open_rows(path), schema)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_mutated_known_facts_give_row_and_reason(data: st.DataObject) -> None:
    file = RowFile(path="dir/file.json", rows=((17, mutate(KNOWN_ROW, data)),), data_hash="")
    try:
        (fact,) = map_known(file)
    except RowErrors as errors:
        assert_located(errors.errors[0])
    else:
        assert fact.subject in fact.prompt


def test_every_ability_schema_has_a_row_here() -> None:
    found = [find_schema(row) for row in DOWNSTREAM_ROWS.values()]
    assert all(schema in found for schema in SCHEMAS)

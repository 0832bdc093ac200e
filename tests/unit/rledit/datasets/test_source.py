"""The file-backed source: deterministic draws from pools that share nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rledit.datasets import DatasetError, FileEditSource, read_edits
from rledit.datasets.cut import cut
from rledit.datasets.overlap import prompts
from rledit.records import SPLITS, Edit, EditSource, Split


def rows(first: int, count: int, **changes: Any) -> list[dict[str, Any]]:
    return [
        {
            "src": f"Where is ferry {i}?",
            "ans": f"harbour {i}",
            "rephrase": f"Ferry {i} is where?",
            "loc": f"who built bridge {i}",
            "loc_ans": "Ann",
            **changes,
        }
        for i in range(first, first + count)
    ]


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def single(tmp_path: Path) -> Path:
    return write(tmp_path / "all.json", rows(0, 100))


def test_one_file_is_cut_into_disjoint_pools_by_share(single: Path) -> None:
    source = FileEditSource(all=single)
    assert isinstance(source, EditSource)
    assert source.name == "zsre_malmen"
    assert source.sizes() == {"train": 70, "validation": 10, "evaluation": 20}
    drawn = [source.draw(s, source.sizes()[s], 0) for s in ("train", "validation", "evaluation")]
    assert len(set().union(*map(prompts, drawn))) == 100


@pytest.mark.parametrize("split", SPLITS)
def test_a_file_given_for_a_pool_is_that_pool(single: Path, split: Split) -> None:
    source = FileEditSource(**{split: single})  # type: ignore[arg-type]
    assert source.sizes() == {s: 100 * (s == split) for s in SPLITS}
    assert source.origin(split) == "all 100 edits of all.json"
    assert {source.origin(s) for s in SPLITS if s != split} == {"no file is given for it"}


def test_the_cut_depends_on_content_not_on_the_file_name(single: Path) -> None:
    one = FileEditSource(all=single)
    two = FileEditSource(all=single.rename(single.with_name("renamed.json")))
    drawn = [[e.prompt for e in s.draw("evaluation", 20, 5)] for s in (one, two)]
    assert drawn[0] == drawn[1]


def test_shares_may_leave_pools_empty(single: Path) -> None:
    source = FileEditSource(all=single, shares={"evaluation": 1.0})
    assert source.sizes() == {"train": 0, "validation": 0, "evaluation": 100}


def test_a_prompt_or_subject_is_never_cut_apart(tmp_path: Path) -> None:
    same_prompt = rows(0, 60) + rows(0, 60, ans="elsewhere")
    same_subject = rows(60, 30, subject="fleet A") + rows(90, 10, subject="fleet B")
    source = FileEditSource(all=write(tmp_path / "a.json", same_prompt + same_subject))
    pools = [source.draw(split, n, 0) for split, n in source.sizes().items()]  # type: ignore[arg-type]
    assert sum(map(len, pools)) == 160
    for i, pool in enumerate(pools):
        for other in pools[i + 1 :]:
            assert not prompts(pool) & prompts(other)
            assert not {e.subject for e in pool if e.subject} & {e.subject for e in other}


@settings(max_examples=60, deadline=None)
@given(
    keys=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=60),
    shares=st.tuples(*[st.floats(0, 1)] * 3).filter(lambda s: sum(s) > 0),
)
def test_cut_keeps_every_edit_once_and_order(
    keys: list[tuple[int, int]], shares: tuple[float, float, float]
) -> None:
    edits = [
        Edit(edit_id=str(i), prompt=f"p{a}", target="t", subject=f"s{b}" if b else None)
        for i, (a, b) in enumerate(keys)
    ]
    pools = cut(edits, dict(zip(("train", "validation", "evaluation"), shares, strict=True)))
    ids = [int(e.edit_id) for pool in pools.values() for e in pool]
    assert sorted(ids) == list(range(len(edits)))
    for pool, share in zip(pools.values(), shares, strict=True):
        assert [int(e.edit_id) for e in pool] == sorted(int(e.edit_id) for e in pool)
        assert share > 0 or not pool
    assert len(set.union(*map(prompts, pools.values()))) == sum(
        len(prompts(pool)) for pool in pools.values()
    )


def test_draws_repeat_and_shorter_ones_are_prefixes(single: Path) -> None:
    source, again = FileEditSource(all=single), FileEditSource(all=single)
    long = source.draw("train", 70, 3)
    assert again.draw("train", 25, 3) == long[:25]
    assert source.draw("train", 70, 4) != long
    assert source.draw("train", 70, 3) == long  # also after another seed was drawn
    assert sorted(e.edit_id for e in long) == sorted(e.edit_id for e in source.draw("train", 70, 4))


def test_shuffled_order_is_pinned_for_ever(single: Path) -> None:
    drawn = FileEditSource(all=single, shares={"evaluation": 1}).draw("evaluation", 4, 0)
    # Streams are part of a result's identity: a change here makes old results incomparable.
    assert [edit.edit_id for edit in drawn] == [
        "zsre_malmen:100",
        "zsre_malmen:33",
        "zsre_malmen:4",
        "zsre_malmen:9",
    ]


def test_file_order_is_the_same_for_every_seed(single: Path) -> None:
    source = FileEditSource(evaluation=single, order="file")
    drawn = source.draw("evaluation", 3, 9)
    assert [edit.source for edit in drawn] == ["all.json:1", "all.json:2", "all.json:3"]


def test_too_long_a_stream_names_the_pools(single: Path) -> None:
    source = FileEditSource(all=single)
    message = (
        "cannot draw 21 edits from evaluation, which holds 20 (20 of the 100 edits of all.json, "
        "which is given as `all` and cut into train/validation/evaluation 70/10/20); shorten"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        source.draw("evaluation", 21, 0)
    with pytest.raises(ValueError, match="cannot draw -1"):
        source.draw("evaluation", -1, 0)
    with pytest.raises(ValueError, match="split 'test' is unknown"):
        source.draw("test", 1, 0)  # type: ignore[arg-type]


def test_two_files_are_two_pools_and_validation_is_cut_where_it_is_asked_for(
    tmp_path: Path,
) -> None:
    train = write(tmp_path / "t.json", rows(0, 80))
    evaluation = write(tmp_path / "e.json", rows(80, 15))
    whole = FileEditSource(train=train, evaluation=evaluation)
    assert whole.sizes() == {"train": 80, "validation": 0, "evaluation": 15}
    source = FileEditSource(all=train, evaluation=evaluation)
    assert source.sizes() == {"train": 70, "validation": 10, "evaluation": 15}
    assert source.origin("validation") == (
        "10 of the 80 edits of t.json, which is given as `all` and cut into train/validation "
        "87.5/12.5"
    )
    assert source.origin("evaluation") == "all 15 edits of e.json"
    ids = [e.edit_id for s, n in source.sizes().items() for e in source.draw(s, n, 0)]  # type: ignore[arg-type]
    assert len(set(ids)) == 95
    assert set(source.file_hashes) == {"all", "evaluation"}
    half = FileEditSource(all=train, evaluation=evaluation, shares={"train": 1, "validation": 1})
    assert half.sizes() == {"train": 40, "validation": 40, "evaluation": 15}
    turned = FileEditSource(all=train, train=evaluation)
    assert turned.sizes() == {"train": 15, "validation": 27, "evaluation": 53}
    last = FileEditSource(all=train, evaluation=evaluation, shares={"train": 1})
    assert last.origin("train") == (
        "80 of the 80 edits of t.json, which is given as `all` and all goes there"
    )
    assert last.origin("validation") == "no file is given for it"


def test_shared_prompts_are_refused_or_dropped_from_the_weaker_pool(tmp_path: Path) -> None:
    files = {
        "train": write(tmp_path / "t.json", rows(0, 40)),
        "validation": write(tmp_path / "v.json", rows(35, 10)),
        "evaluation": write(tmp_path / "e.json", rows(38, 20)),
    }
    with pytest.raises(DatasetError, match=r"validation and evaluation share 7 prompts \(7"):
        FileEditSource(**files)  # type: ignore[arg-type]
    source = FileEditSource(**files, on_overlap="drop")  # type: ignore[arg-type]
    assert source.sizes() == {"train": 35, "validation": 3, "evaluation": 20}
    assert source.dropped == {"validation": 7, "train": 5}
    assert source.origin("train") == (
        "35 of the 40 edits of t.json, 5 dropped because another file has their prompts"
    )
    files["all"] = files.pop("train")
    with pytest.raises(DatasetError, match=r"all and evaluation share 2 prompts"):
        FileEditSource(all=files["all"], evaluation=files["evaluation"])
    cut = FileEditSource(**files, on_overlap="drop")  # type: ignore[arg-type]
    assert cut.sizes() == source.sizes() and cut.dropped == {"validation": 7, "all": 5}


def test_data_hash_follows_the_data_and_what_shapes_the_pools(single: Path) -> None:
    base = FileEditSource(all=single).data_hash
    assert FileEditSource(all=single).data_hash == base
    assert FileEditSource(all=single, shares={"train": 1}).data_hash != base
    assert FileEditSource(all=single, order="file").data_hash == base
    assert FileEditSource(train=single).data_hash != base
    assert FileEditSource(evaluation=single).data_hash != base
    write(single, rows(1, 100))
    assert FileEditSource(all=single).data_hash != base


def test_pools_that_were_cut_before_it_had_to_be_asked_for_keep_their_hash(tmp_path: Path) -> None:
    """What was a file for `evaluation`, or for `train` beside it, and is given as `all` now."""
    train = write(tmp_path / "t.json", rows(0, 8))
    evaluation = write(tmp_path / "e.json", rows(8, 4))
    alone = FileEditSource(all=evaluation)
    assert alone.data_hash == "c6685dcdc03d13f62b2fa0410d27e548dc144c4cb0a210e2a0be2220aafbb78c"
    both = FileEditSource(all=train, evaluation=evaluation)
    assert both.data_hash == "bc6e84a1fe5aa5557755d3e3de4d952302bd982c7e295b4475b9e76bad2465db"
    assert both.draw("train", 1, 0)[0].edit_id.startswith("train:")
    whole = FileEditSource(train=train, validation=train, evaluation=evaluation, on_overlap="drop")
    assert whole.data_hash == "0b178cc00f2343e8e24ec11466f710b66fc1254723e72dd1ca0470d1d26706ea"


def test_reports_read_by_the_caller_are_accepted() -> None:
    report = read_edits("s3://b/x.parquet", rows=rows(0, 10), data_hash="h")
    source = FileEditSource(evaluation=report, name="mine")
    assert source.name == "mine" and len(source.draw("evaluation", 10, 0)) == 10


@pytest.mark.parametrize(
    "wrong",
    [
        {"order": "random"},
        {"on_overlap": "ignore"},
        {"shares": {"train": -1}},
        {"shares": {}},
        {"shares": {"train": 0}},
        {"evaluation": "e.json", "shares": {"evaluation": 1}},
    ],
)
def test_wrong_settings_are_refused_before_reading(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"unknown|make no sense"):
        FileEditSource(all="does-not-exist.json", **wrong)
    with pytest.raises(DatasetError, match="no data file"):
        FileEditSource()
    with pytest.raises(DatasetError, match="a file given for a pool is that pool"):
        FileEditSource(evaluation="does-not-exist.json", shares={"evaluation": 1})
    with pytest.raises(DatasetError, match="nothing of `all` would be used"):
        FileEditSource(all="a", train="t", validation="v", evaluation="e")

"""The file-backed source: deterministic draws from pools that share nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rledit.datasets import DatasetError, FileEditSource, read_edits
from rledit.datasets.cut import cut
from rledit.datasets.overlap import prompts
from rledit.records import Edit, EditSource


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
    source = FileEditSource(train=single)
    assert isinstance(source, EditSource)
    assert source.name == "zsre_malmen"
    assert source.sizes() == {"train": 70, "validation": 10, "evaluation": 20}
    drawn = [source.draw(s, source.sizes()[s], 0) for s in ("train", "validation", "evaluation")]
    assert len(set().union(*map(prompts, drawn))) == 100


def test_the_cut_depends_on_content_not_on_argument_or_file_name(single: Path) -> None:
    other = single.rename(single.with_name("renamed.json"))
    one, two = FileEditSource(train=other), FileEditSource(evaluation=other)
    drawn = [[e.prompt for e in s.draw("evaluation", 20, 5)] for s in (one, two)]
    assert drawn[0] == drawn[1]


def test_shares_may_leave_pools_empty(single: Path) -> None:
    source = FileEditSource(evaluation=single, shares={"evaluation": 1.0})
    assert source.sizes() == {"train": 0, "validation": 0, "evaluation": 100}


def test_a_prompt_or_subject_is_never_cut_apart(tmp_path: Path) -> None:
    same_prompt = rows(0, 60) + rows(0, 60, ans="elsewhere")
    same_subject = rows(60, 30, subject="fleet A") + rows(90, 10, subject="fleet B")
    source = FileEditSource(train=write(tmp_path / "a.json", same_prompt + same_subject))
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
    source, again = FileEditSource(train=single), FileEditSource(train=single)
    long = source.draw("train", 70, 3)
    assert again.draw("train", 25, 3) == long[:25]
    assert source.draw("train", 70, 4) != long
    assert source.draw("train", 70, 3) == long  # also after another seed was drawn
    assert sorted(e.edit_id for e in long) == sorted(e.edit_id for e in source.draw("train", 70, 4))


def test_shuffled_order_is_pinned_for_ever(single: Path) -> None:
    drawn = FileEditSource(evaluation=single, shares={"evaluation": 1}).draw("evaluation", 4, 0)
    # Streams are part of a result's identity: a change here makes old results incomparable.
    assert [edit.edit_id for edit in drawn] == [
        "zsre_malmen:100",
        "zsre_malmen:33",
        "zsre_malmen:4",
        "zsre_malmen:9",
    ]


def test_file_order_is_the_same_for_every_seed(single: Path) -> None:
    source = FileEditSource(evaluation=single, shares={"evaluation": 1}, order="file")
    drawn = source.draw("evaluation", 3, 9)
    assert [edit.source for edit in drawn] == ["all.json:1", "all.json:2", "all.json:3"]


def test_too_long_a_stream_names_the_pools(single: Path) -> None:
    source = FileEditSource(train=single)
    with pytest.raises(ValueError, match=r"cannot draw 21 edits from evaluation, which holds 20"):
        source.draw("evaluation", 21, 0)
    with pytest.raises(ValueError, match="cannot draw -1"):
        source.draw("evaluation", -1, 0)
    with pytest.raises(ValueError, match="split 'test' is unknown"):
        source.draw("test", 1, 0)  # type: ignore[arg-type]


def test_two_files_keep_evaluation_whole_and_validation_comes_from_train(tmp_path: Path) -> None:
    source = FileEditSource(
        train=write(tmp_path / "t.json", rows(0, 80)),
        evaluation=write(tmp_path / "e.json", rows(80, 15)),
    )
    assert source.sizes() == {"train": 70, "validation": 10, "evaluation": 15}
    ids = [e.edit_id for s, n in source.sizes().items() for e in source.draw(s, n, 0)]  # type: ignore[arg-type]
    assert len(set(ids)) == 95
    assert set(source.file_hashes) == {"train", "evaluation"}


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


def test_data_hash_follows_the_data_and_what_shapes_the_pools(single: Path) -> None:
    base = FileEditSource(train=single).data_hash
    assert FileEditSource(train=single).data_hash == base
    assert FileEditSource(train=single, shares={"train": 1}).data_hash != base
    assert FileEditSource(train=single, order="file").data_hash == base
    write(single, rows(1, 100))
    assert FileEditSource(train=single).data_hash != base


def test_reports_read_by_the_caller_are_accepted() -> None:
    report = read_edits("s3://b/x.parquet", rows=rows(0, 10), data_hash="h")
    source = FileEditSource(evaluation=report, shares={"evaluation": 1}, name="mine")
    assert source.name == "mine" and len(source.draw("evaluation", 10, 0)) == 10


@pytest.mark.parametrize(
    "wrong",
    [{"order": "random"}, {"on_overlap": "ignore"}, {"shares": {"train": -1}}, {"shares": {}}],
)
def test_wrong_settings_are_refused_before_reading(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"unknown|make no sense"):
        FileEditSource(train="does-not-exist.json", **wrong)
    with pytest.raises(DatasetError, match="no data file"):
        FileEditSource()

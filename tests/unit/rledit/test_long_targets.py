"""Targets that go on behind the end of a written answer."""

from __future__ import annotations

import pytest

from rledit.free_answers import MOST_TOKENS
from rledit.long_targets import FREE_WORDS, outruns


def test_the_limit_is_that_of_free_answers() -> None:
    assert FREE_WORDS == MOST_TOKENS


@pytest.mark.parametrize(
    ("target", "cut"),
    [
        ("Esbjerg", False),
        ("Esbjerg.", False),  # normalisation drops the stop
        ("3.5", False),
        ("She sails. She rests.", True),
        ("埃斯比约。北海。", True),
        ("one\ntwo", True),
        ("one two\n", False),
        ("word " * FREE_WORDS, False),
        ("word " * (FREE_WORDS + 1), True),
    ],
)
def test_a_free_answer_ends_before_some_targets(target: str, cut: bool) -> None:
    assert outruns(target) is cut


def test_a_full_stop_ends_only_what_it_ends() -> None:
    assert not outruns("She sails. She rests.", full_stop=False)
    assert outruns("She sails. She rests.", most_words=3, full_stop=False)

"""Variants of edits to train on: other words for the same fact, drawn by a seed."""

from __future__ import annotations

from rledit.augmentation import augmented
from rledit.records import Edit, Locality


def edit(i: int, subject: str | None = None) -> Edit:
    return Edit(
        edit_id=str(i),
        prompt=f"Q{i} of Anna?",
        target=f"A{i}",
        rephrases=(f"R{i} of Anna?", f"S{i}?"),
        locality=(Locality(prompt=f"L{i}", answer="x"), Locality(prompt=f"M{i}", answer="y")),
        subject=subject,
    )


def test_prompt_and_rephrase_change_places_in_about_half_and_nothing_is_lost() -> None:
    edits = [edit(i) for i in range(200)]
    found = augmented(edits, "a")
    swapped = [one for one, other in zip(found, edits, strict=True) if one.prompt != other.prompt]
    assert 70 < len(swapped) < 130
    for one, other in zip(found, edits, strict=True):
        assert {one.prompt, *one.rephrases} == {other.prompt, *other.rephrases}
        assert set(one.locality) == set(other.locality)
        assert one.target == other.target
    assert 70 < sum(one.locality[0].prompt.startswith("M") for one in found) < 130


def test_a_seed_gives_its_variants_again() -> None:
    edits = [edit(i) for i in range(20)]
    assert augmented(edits, "a") == augmented(edits, "a") != augmented(edits, "b")


def test_a_prompt_without_its_subject_is_no_edit_prompt() -> None:
    """Methods that look for the subject find it in every variant."""
    found = augmented([edit(i, subject="Anna") for i in range(60)], "a")
    assert all("Anna" in one.prompt for one in found)
    assert any(one.prompt.startswith("R") for one in found)


def test_an_edit_without_other_prompts_is_left() -> None:
    bare = Edit(edit_id="1", prompt="Q", target="A")
    assert augmented([bare], "a") == [bare]

"""Random edits in words for tiny models, and what editors ask for beside them."""

from __future__ import annotations

from collections.abc import Collection

import torch
from transformers import PreTrainedTokenizerFast

from rledit.editors import Editor
from rledit.locate.covariance import (
    CovarianceFingerprint,
    KeyCovariance,
    sum_over_ranks,
)
from rledit.locate.output_gradients import accumulate_all, covariances_of, width_of
from rledit.model import EditableModel
from rledit.records import Edit, Locality
from rledit.tokenization import EditBatch
from rledit.world import BOS_FAMILIES
from rledit.world.words import word_tokenizer
from tests.unit.helpers.tiny_models import VOCABULARY

WORDS = tuple(f"w{i:02}" for i in range(VOCABULARY - 4))


def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose ids are those of the tiny models."""
    return word_tokenizer(WORDS, add_bos=family in BOS_FAMILIES)


def random_edits(n: int, seed: int = 0) -> list[Edit]:
    """Edits of two to eight words with a subject inside, and targets of one to three words."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    def words(low: int, high: int) -> str:
        return " ".join(WORDS[draw(0, len(WORDS))] for _ in range(draw(low, high)))

    edits: list[Edit] = []
    for i in range(n):
        subject = words(1, 3)
        before = words(0, 4)
        prompt = " ".join(part for part in (before, subject, words(1, 3)) if part)
        edits.append(
            Edit(
                edit_id=str(i),
                prompt=prompt,
                target=words(1, 4),
                rephrases=(words(2, 8),),
                locality=(Locality(prompt=words(2, 8), answer=words(1, 4)),),
                subject=subject,
                source=f"random.json:{i}",
            )
        )
    return edits


def text_batches(
    model: EditableModel, n_batches: int, size: int, seed: int = 0, group_size: int = 4
) -> list[EditBatch]:
    """Batches of random edits with their text."""
    edits = random_edits(n_batches * size, seed)
    return [
        model.encoder.batch(edits[first : first + size], group_size)
        for first in range(0, len(edits), size)
    ]


def random_texts(seed: int = 0) -> list[list[int]]:
    """Forty texts of twelve random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, VOCABULARY, (12,), generator=generator).tolist() for _ in range(40)]


def random_covariances(
    model: EditableModel, seed: int = 0, needs: Collection[str] = ()
) -> dict[str, KeyCovariance]:
    """Key covariance of the target modules over random token sequences; with what needs ask for."""
    moments = {
        name: KeyCovariance(
            CovarianceFingerprint(model_hash="tiny", module=name, corpus_hash=f"random {seed}"),
            width_of(model, name),
        )
        for name in covariances_of(model.modules, needs)
    }
    accumulate_all(model, random_texts(seed), moments)
    sum_over_ranks(model.ranks, moments)
    return moments


def equip(editor: Editor) -> None:
    """Give an editor whatever it says it needs."""
    needs = editor.needs_of(editor.config)
    if "statistics" in needs:
        editor.load_covariance(random_covariances(editor.model, needs=needs))
    if "texts" in needs:
        editor.load_texts(random_texts)
    if "training_data" in needs:
        editor.load_training_data(
            lambda n, seed: text_batches(editor.model, n, 4, 1000 + seed, editor.group_size)
        )

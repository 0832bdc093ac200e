"""Measurements of an edited model beside its edits: perplexity, long texts, downstream tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from rledit.finite import require_finite
from rledit.measurements.downstream import Item, measure_downstream
from rledit.measurements.fluency import References, ngram_entropy, write_texts
from rledit.measurements.perplexity import perplexity, text_samples
from rledit.measurements.portability import consequences_of, portability
from rledit.model import EditableModel
from rledit.protocols import Protocol
from rledit.records import Edit
from rledit.superseded import Facts, Standing
from rledit.tokenization import Sample

MEASUREMENTS: dict[str, str] = {
    "perplexity": "perplexity of a fixed sample of text",
    "fluency": "weighted 2- and 3-gram entropy in bits, times 100, of 100-token texts",
    "consistency": "TF-IDF cosine, times 100, of the same texts with reference texts",
    "ability": "six classification tasks, zero-shot: weighted F1 of a greedy answer of at most "
    "5 tokens, and of the likeliest answer, in percent",
    "portability": "questions whose answers follow from an edit, where the data has some: token "
    "accuracy, and share of written answers that contain the answer, in percent",
}


@dataclass(frozen=True, kw_only=True)
class EvalData:
    """What the measurements look at.

    Attributes:
        text: Texts for perplexity.
        references: Reference texts by name, for consistency.
        ability: Items by task.
        n_prompts: Prompts of the stream behind which texts are written.
    """

    text: Sequence[str] = ()
    references: Mapping[str, Sequence[str]] = field(default_factory=dict)
    ability: Mapping[str, Sequence[Item]] = field(default_factory=dict)
    n_prompts: int = 50


class Measurements:
    """Measures a model along a stream; the same prompts and items every time.

    Args:
        model: The model.
        edits: All edits of the stream.
        names: Names in `MEASUREMENTS`.
        eval_data: What to look at.

    Attributes:
        samples: What of it the prefix cache may come to hold.

    Raises:
        ValueError: A measurement is unknown, or there is no evaluation data for it.
        TokenizationError: An item does not fit the model.
    """

    def __init__(
        self, model: EditableModel, edits: Sequence[Edit], names: Sequence[str], eval_data: EvalData
    ) -> None:
        _check(names, eval_data)
        self._model = model
        self._names = frozenset(names)
        self._eval_data = eval_data
        self._references = References(eval_data.references)
        self._facts = Facts(edits)
        self._written = [(i, edits[i]) for i in _evenly(len(edits), eval_data.n_prompts)]
        self._text = text_samples(model, eval_data.text) if "perplexity" in names else []
        self._consequences = consequences_of(model, edits) if "portability" in names else []
        self.samples: list[Sample] = [*self._text, *(s for _, _, s in self._consequences)]
        if "ability" in names:
            self.samples += [
                model.encoder.sample(item.prompt, answer, f"ability item of task {task}")
                for task, items in eval_data.ability.items()
                for item in items
                for answer in item.answers
            ]

    def measure(self, n_edits: int) -> dict[str, float]:
        """All measurements on the current weights, by metric name.

        Args:
            n_edits: Edits applied. Consistency and portability are asked of these only, or of all
                before the first, and of none that a later one supersedes: a text is to be like the
                references of a fact that was written, and still is.

        Raises:
            NonFiniteError: The model gives no numbers, or a measured value is none.
        """
        values: dict[str, float] = {}
        asks_facts = bool(self._consequences) or "consistency" in self._names
        standing = Standing(self._facts, n_edits) if asks_facts else None
        if "perplexity" in self._names:
            values["perplexity"] = perplexity(self._model, self._text)
        if self._names & {"fluency", "consistency"}:
            values |= self._texts(n_edits, standing)
        if "ability" in self._names:
            for task, score in measure_downstream(self._model, self._eval_data.ability).items():
                values[f"ability_{task}_f1"] = score.f1
                values[f"ability_{task}_probability"] = score.probability
                values[f"ability_{task}_answered"] = score.answered
        if standing is not None and self._consequences:
            values |= portability(self._model, self._consequences, n_edits, standing)
        require_finite(values, "what is measured", self._model)
        return values

    def _texts(self, n_edits: int, standing: Standing | None) -> dict[str, float]:
        prompts = [edit.generation_prompts or (edit.prompt,) for _, edit in self._written]
        written = iter(write_texts(self._model, [p for own in prompts for p in own]))
        texts = [[next(written) for _ in own] for own in prompts]
        values: dict[str, float] = {}
        if "fluency" in self._names:
            values["fluency"] = 100 * fmean(fmean(map(ngram_entropy, own)) for own in texts)
        if standing is not None and "consistency" in self._names:
            similar = [
                self._references.similarity(" ".join(own), edit.reference_key)
                for own, (i, edit) in zip(texts, self._written, strict=True)
                if edit.reference_key in self._references and (i < n_edits or not n_edits)
                if edit.reference_key is not None and not standing.edit(i)
            ]
            if similar:
                values["consistency"] = 100 * fmean(similar)
        return values


def not_measured(
    edits: Sequence[Edit], protocols: Sequence[Protocol], names: Sequence[str]
) -> dict[str, str]:
    """What is asked for of a stream whose edits have nothing to measure it on.

    Args:
        edits: The edits of the stream.
        protocols: By which they are scored.
        names: Names in `MEASUREMENTS`.

    Returns:
        Score, protocol or measurement → why it has no value.
    """

    def new(edit: Edit) -> bool:
        old = edit.old_target
        return old is not None and old.strip() not in ("", edit.target.strip())

    found = {}
    if not any(edit.rephrases for edit in edits):
        found["generalization"] = "no edit of the stream has a rephrase"
    if not any(edit.locality for edit in edits):
        found["specificity"] = "no edit of the stream has a locality prompt"
    for protocol in protocols:
        if "rival" in protocol.asks and not any(map(new, edits)):
            why = "no edit of the stream has an old answer that differs from its new one"
            found[f"{protocol.name} of the edits"] = why
    if "portability" in names and not any(edit.consequences for edit in edits):
        found["portability"] = "no edit of the stream has a question that follows from it"
    if "consistency" in names and not any(edit.reference_key for edit in edits):
        found["consistency"] = "no edit of the stream names reference texts"
    return found


def _check(names: Sequence[str], eval_data: EvalData) -> None:
    needed = {
        "perplexity": eval_data.text,
        "consistency": eval_data.references,
        "ability": eval_data.ability,
    }
    for name in names:
        if name not in MEASUREMENTS:
            raise ValueError(f"unknown measurement {name!r}; valid: {', '.join(MEASUREMENTS)}")
        if name in needed and not needed[name]:
            raise ValueError(f"there is no evaluation data for the measurement {name!r}")


def _evenly(n: int, wanted: int) -> list[int]:
    """At most `wanted` places of a sequence of `n`, evenly spaced."""
    count = min(n, wanted)
    return [i * n // count for i in range(count)]

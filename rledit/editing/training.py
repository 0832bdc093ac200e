"""A network trained for a model outside a grid: on facts that are given, or those that ship."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import count

from rledit.augmentation import augmented
from rledit.editing.methods import Method, MethodError
from rledit.editors.base import State, TrainableEditor
from rledit.epochs import walk
from rledit.facts import RealFacts
from rledit.model import EditableModel
from rledit.records import Edit, has_probe
from rledit.tokenization import EditBatch
from rledit.training import Training
from rledit.validation import ValidationStream

BATCH = 10
_VALIDATED = 4  # batches of the validation stream, where the editor does not say how many
_STREAM = 10  # batches of the stream that it is trained for


def trained_network(
    opened: EditableModel,
    method: Method,
    facts: Sequence[Edit] | None,
    tell: Callable[[str], None],
) -> State:
    """The state of an editor after its training.

    Args:
        opened: The unedited model.
        method: The editor; its settings say how long it is trained.
        facts: What it is trained on, and, of an editor that validates its training, validated on:
            its `validation_batches`, a fifth of the facts at most. None: the train and validation
            pools of the facts that ship.
        tell: Told of every training step and validation.

    Raises:
        MethodError: The facts are too few, or lack the rephrases and locality it learns from; or
            fewer facts ship than it is to be validated on.
    """
    editor = method.cls(opened, method.config)
    assert isinstance(editor, TrainableEditor)
    length = editor.trajectory_batches(_STREAM, BATCH) * BATCH
    stopping = type(editor).stopping_of(editor.config)
    validated = 0 if stopping is None else BATCH * (stopping.batches or _VALIDATED)
    train, validation = _pools(method, facts, length, validated)
    trajectories = _trajectories(editor, train, length)

    def draw(step: int) -> list[list[EditBatch]]:
        drawn = [next(trajectories) for _ in range(editor.trajectories_per_step)]
        if getattr(method.config, "augment", False):
            drawn = [augmented(edits, f"{step}/{i}") for i, edits in enumerate(drawn)]
        return [_batches(editor, edits) for edits in drawn]

    validate = None
    if validation:
        loc_coef = getattr(method.config, "loc_coef", 1.0)
        validate = ValidationStream(editor, validation, BATCH, loc_coef)
    training = Training(editor, draw, validate)
    for event in training.run():
        if event.validation is not None:
            tell(
                f"  training: validation {event.validation.score:.1f} after "
                f"{event.step * editor.trajectories_per_step} trajectories"
            )
        elif event.batches % 5 == 0:
            tell(f"  training: {event.batches} batches of {BATCH} facts")
    return {name: value.detach().cpu().clone() for name, value in editor.state_dict().items()}


def _trajectories(
    editor: TrainableEditor, train: Sequence[Edit], length: int
) -> Iterator[list[Edit]]:
    """Trajectories of `length` edits without end, as the editor's `drawing` says."""
    if getattr(editor.config, "drawing", "epochs") == "epochs":
        return walk(lambda epoch: random.Random(epoch).sample(train, len(train)), length)
    return (random.Random(i).sample(train, length) for i in count())


def _pools(
    method: Method, facts: Sequence[Edit] | None, length: int, validated: int
) -> tuple[list[Edit], list[Edit]]:
    """Edits to train on, and edits to validate on, `validated` of them at most."""
    if facts is None:
        source = RealFacts()
        sizes = source.sizes()
        if validated > sizes["validation"]:
            raise MethodError(
                f"validation_batches: {validated // BATCH} batches of {BATCH} facts are more than "
                f"the {sizes['validation']:,} that ship to validate on; set fewer"
            )
        return source.draw("train", sizes["train"], 0), source.draw("validation", validated, 0)
    lacking = [
        edit
        for edit in facts
        if not all(has_probe(edit, p) for p in method.cls.trains_on_of(method.config))
    ]
    if lacking:
        raise MethodError(
            f"{lacking[0].source or lacking[0].prompt!r}: a network learns from rephrases and "
            f"locality, and {len(lacking):,} of the training facts lack one; give them, or train "
            "on the facts that ship (--train without --train-on)"
        )
    kept = max(1, min(validated, len(facts) // 5)) if validated else 0
    cut = len(facts) - kept
    if cut < length:
        raise MethodError(
            f"{len(facts):,} facts are too few to train on: a trajectory takes {length:,}, and "
            f"{kept:,} are kept to validate; give more, or set a shorter trajectory_batches"
        )
    return list(facts[:cut]), list(facts[cut:])


def _batches(editor: TrainableEditor, edits: Sequence[Edit]) -> list[EditBatch]:
    return [
        editor.encode_training(edits[i : i + BATCH], str(i)) for i in range(0, len(edits), BATCH)
    ]

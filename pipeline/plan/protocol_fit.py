"""Says in `rledit plan` where a grid scores or orders a dataset otherwise than the dataset asks.

These are warnings: the cells run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.config.grid import DatasetEntry
from pipeline.inputs.datasets import source_of
from pipeline.plan.cells import Cell
from rledit.datasets import FORMATS, FileEditSource
from rledit.decoding import MAX_NEW_TOKENS
from rledit.long_targets import FREE_WORDS, outruns
from rledit.protocols import protocol
from rledit.records import Edit

_STEPS_SHOWN = 3


def fit_lines(cells: Sequence[Cell], dataset: DatasetEntry) -> Iterator[str]:
    """What does not fit between a dataset's files and the cells that are scored on it."""
    source = source_of(dataset)
    own = [cell for cell in cells if cell.dataset == dataset]
    if not isinstance(source, FileEditSource) or not dataset.files or not own:
        return
    edits = source.draw(dataset.split, source.sizes()[dataset.split], seed=0)
    yield from _order(source, dataset)
    protocols = list(dict.fromkeys(name for cell in own for name in cell.protocols))
    forms = [FORMATS[name] for name in source.formats]
    for form in forms:
        if form.protocols and not set(form.protocols) & set(protocols):
            yield (
                f"protocols: {form.name} is scored by {', '.join(form.protocols)}, and here by "
                f"{', '.join(protocols)} alone"
            )
    yield from _unasked(own, [name for form in forms for name in form.measurements], edits)
    yield from _out_of_reach(own, protocols, edits)


def _order(source: FileEditSource, dataset: DatasetEntry) -> Iterator[str]:
    """In which order streams come, where there is a time step or another order than by lot."""
    steps = source.steps(dataset.split)
    if dataset.order == "file":
        yield "order: as the file has it" + (f"; {_said(steps)}" if steps else "")
    elif dataset.order == "time":
        yield f"order: time, {_said(steps)}; a shorter stream has the first of them"
    elif len(steps) > 1:
        yield (
            f"order: shuffled, though the edits have time steps ({_said(steps)}); "
            "order: time takes them in that order"
        )


def _said(steps: Sequence[str]) -> str:
    shown = ", ".join(steps[:_STEPS_SHOWN])
    more = f", … {steps[-1]}" if len(steps) > _STEPS_SHOWN else ""
    return f"{len(steps)} time step{'s' * (len(steps) != 1)}: {shown}{more}"


def _unasked(
    cells: Sequence[Cell], measurements: Sequence[str], edits: Sequence[Edit]
) -> Iterator[str]:
    """Questions that follow from edits, where no cell asks them."""
    if "portability" not in measurements or any("portability" in c.measurements for c in cells):
        return
    if n := sum(bool(edit.consequences) for edit in edits):
        kinds = dict.fromkeys(item.kind for edit in edits for item in edit.consequences)
        yield (
            f"portability: not asked for; {n} of {len(edits)} edits have questions that follow "
            f"from them ({', '.join(kinds)}), which measurements: [portability] asks"
        )


def _out_of_reach(
    cells: Sequence[Cell], protocols: Sequence[str], edits: Sequence[Edit]
) -> Iterator[str]:
    """Targets that the answers of a protocol end before."""
    full_stop = all(cell.wild.full_stop for cell in cells)
    for name in protocols:
        asks = protocol(name).asks
        if "free" in asks:
            most, stops = FREE_WORDS, full_stop
        elif "text" in asks:
            most, stops = MAX_NEW_TOKENS, False
        else:
            continue
        n = sum(outruns(edit.target, most, stops) for edit in edits)
        if n:
            ends = f"{'a full stop, ' * stops}a line break or {most} tokens"
            yield (
                f"{name}: {n} of {len(edits)} targets go on behind {ends}, where an answer ends, "
                "and cannot be met; score them by token_accuracy, and by the questions that follow "
                "from them, if there are some"
            )

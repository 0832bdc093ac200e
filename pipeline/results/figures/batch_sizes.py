"""The same number of edits in batches of different sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from pipeline.results.figures.canvas import streams_of
from pipeline.results.figures.figure_data import FigureData, Picture
from pipeline.results.figures.lines import draw_lines
from pipeline.results.figures.style import Row, Style, label_of
from pipeline.results.tables import UNEDITED

PANELS = {
    "efficacy": "Eff (%)",
    "generalization": "Gen (%)",
    "specificity": "Spe (%)",
    "edit_ms": "editing (ms per edit)",
    "peak_memory_gb": "peak memory (GB)",
}
FEWEST_SIZES = 3


def pictures(figure_data: FigureData) -> Iterator[Picture]:
    """Scores, time and memory against the batch size, for streams of equally many edits."""
    sizes = Counter(n * m for n, m in streams_of(figure_data.done))
    for n_edits, count in sorted(sizes.items()):
        if count >= FEWEST_SIZES:
            rows = [r for r in figure_data.done if r["n_batches"] * r["batch_size"] == n_edits]
            yield Picture(
                title=f"{n_edits} edits in batches of different sizes",
                text=f"Scores by {figure_data.protocol} after the stream, editing time (set-up "
                "apart) and peak memory against edits per batch; mean over seeds.",
                svg=draw(rows, figure_data.style),
            )


def draw(rows: Sequence[Row], style: Style, fmt: str = "svg") -> bytes:
    """A panel per quantity, a line per editor.

    Args:
        rows: final rows of `runs` of one protocol and one number of edits.
    """
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for column, title in PANELS.items():
        for row in rows:
            timed = column == "edit_ms" and row["editor"] == UNEDITED  # nothing was edited
            if row[column] is not None and not timed:
                panel = lines.setdefault(title, {}).setdefault(label_of(row), [])
                panel.append((row["batch_size"], row[column]))
    return draw_lines(
        lines,
        style,
        x_label="edits per batch",
        percent=list(PANELS.values())[:3],
        logarithmic=[PANELS["edit_ms"]],
        fmt=fmt,
    )

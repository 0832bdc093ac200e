"""Files of edits against a model's tokenizer, for `rledit data check --model`.

What a plan checks of the rows that a cell draws is checked of all rows of a file, before there is a
grid: whether prompts and answers keep the token contract, and whether subjects stand in their
prompts, which only methods that look them up need.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.inputs.edit_files import read_data
from pipeline.plan.preflight import checkpoint_encoder
from pipeline.plan.row_faults import Faults, edit_faults, subject_faults
from rledit.chat import PromptStyle
from rledit.datasets.check import data_files
from rledit.datasets.errors import DatasetError


def model_lines(
    checkpoint: str, paths: Sequence[str], style: PromptStyle = "bare"
) -> tuple[list[str], bool]:
    """Say of each file which of its edits a model's tokenizer cannot take.

    Args:
        checkpoint: A folder, or ``owner/name@revision`` on the hub.
        paths: Files, or folders of them. What holds no edits is passed over.
        style: How prompts are put.

    Returns:
        The lines to print, and whether every edit can be used.

    Raises:
        CheckpointError: The tokenizer cannot be read.
    """
    encoder = checkpoint_encoder(checkpoint, style, None, "auto")
    lines, usable = [f"with the tokenizer of {checkpoint}"], True
    for file in (file for path in paths for file in data_files(path)):
        try:
            edits = read_data(file).edits
        except DatasetError:
            continue  # no edits, or said above
        broken = edit_faults(file, encoder, edits)
        lines += _said("ERROR", broken) or [f"  {file}: all {len(edits):,} edits can be used"]
        usable = usable and not broken.rows
        with_subject = [edit for edit in edits if edit.subject]
        lines += _said("subjects", subject_faults(encoder, with_subject, file))
    return lines, usable


def _said(kind: str, faults: Faults) -> list[str]:
    """What is wrong with a file's rows; nothing where nothing is."""
    if not faults.rows:
        return []
    only = " by methods that look up subjects" if kind == "subjects" else ""
    return [f"  {kind:10}{faults.count}{only}", *(f"    {line}" for line in faults.lines)]

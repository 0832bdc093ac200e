"""Readers of editing data: one small file per format, one registry, one audit.

>>> report = read_edits("zsre_train.json")
>>> audit_report(report).count("target_equals_old")
"""

from rledit.datasets.audit import NOTES, TRAPS, Audit, Finding, audit, audit_report
from rledit.datasets.check import check_paths
from rledit.datasets.downstream import DownstreamReport
from rledit.datasets.edits import ReadReport, read_edits
from rledit.datasets.errors import (
    DataFileError,
    DatasetError,
    RowError,
    RowErrors,
    RowIssue,
)
from rledit.datasets.fields import Place
from rledit.datasets.format import Format
from rledit.datasets.overlap import Overlap, overlap
from rledit.datasets.registry import FORMATS, detect_format, get_format
from rledit.datasets.rows import RowFile, open_rows, rows_given
from rledit.datasets.source import FileEditSource

__all__ = [
    "FORMATS",
    "NOTES",
    "TRAPS",
    "Audit",
    "DataFileError",
    "DatasetError",
    "DownstreamReport",
    "FileEditSource",
    "Finding",
    "Format",
    "Overlap",
    "Place",
    "ReadReport",
    "RowError",
    "RowErrors",
    "RowFile",
    "RowIssue",
    "audit",
    "audit_report",
    "check_paths",
    "detect_format",
    "get_format",
    "open_rows",
    "overlap",
    "read_edits",
    "rows_given",
]

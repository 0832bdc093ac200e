"""The lake's tables, column by column, and what makes a row of each unique.

Version 1. Anyone may read the files with plain duckdb, pandas or polars; a column is therefore
never given another meaning, and a new column raises `SCHEMA_VERSION`. The types are spelled in
words here, so that only `lake.py` knows the Parquet library.
"""

from __future__ import annotations

SCHEMA_VERSION = 1
VERSION_KEY = "rledit.schema_version"  # in the Parquet metadata of every file

# Hive folders; not repeated inside the files, because pandas refuses a column that is in both.
PARTITION = ("model", "editor", "dataset")

# name -> (type, required)
Columns = dict[str, tuple[str, bool]]

ADDRESS: Columns = {
    "cell_key": ("string", True),
    "grid": ("string", True),
    "editor": ("string", True),
    "variant": ("string", True),
    "model": ("string", True),
    "dataset": ("string", True),
    "scale": ("string", True),
    "seed": ("int32", True),
    "batch_size": ("int32", True),
    "n_batches": ("int32", True),
}

# A file of addresses: where results are shown beside the columns they were written with.
ADDRESS_ROWS: Columns = ADDRESS | {"since": ("timestamp", True)}

# Of cells in memory alone: the key in a cell's own files (see `lake.key_versions`), and what a cell
# asks for of another's rows (see `lake.contained`).
IN_MEMORY: Columns = {
    "stored_key": ("string", True),
    "asked_protocols": ("list<string>", False),
    "asked_from": ("int32", False),
    "asked_edits": ("int32", False),
}

_SCORES: Columns = {  # percent, 0-100; null where a score is undefined
    "efficacy": ("float64", False),
    "generalization": ("float64", False),
    "specificity": ("float64", False),
    "specificity_self": ("float64", False),
}

# The columns of one table apart from the address.
TABLES: dict[str, Columns] = {
    "edits": {
        "checkpoint": ("int32", True),  # edits applied when measured
        "protocol": ("string", True),
        "edit_index": ("int32", True),
        "batch_index": ("int32", True),
        "edit_id": ("string", True),
        **_SCORES,
        "superseded": ("bool", True),  # a later edit of the stream rewrites the same fact
    },
    "steps": {
        # Edits applied; training steps for metrics named train_* and validation_*.
        "step": ("int32", True),
        "metric": ("string", True),
        "value": ("float64", False),
    },
    "scores": {
        "checkpoint": ("int32", True),
        "n_edits": ("int32", True),
        "final": ("bool", True),
        "protocol": ("string", True),
        **_SCORES,
        "n_scored": ("int32", True),
        "n_superseded": ("int32", True),
    },
    "answers": {  # in words, of a sample of the edits
        "checkpoint": ("int32", True),  # edits applied when asked; 0: the unedited model
        "edit_index": ("int32", True),
        "edit_id": ("string", True),
        "probe": ("string", True),  # edit, rephrase, locality or portability
        "probe_index": ("int32", True),
        "prompt": ("string", True),
        "target": ("string", True),  # what should be said
        "answer": ("string", False),  # what is said; null where the model gives no numbers
        "tokens": ("list<int32>", True),
        "target_logprob": ("float64", False),  # nats, of all its tokens; null: not finite
        "is_target": ("bool", True),
        "has_target": ("bool", True),
        "superseded": ("bool", True),
    },
    "free_answers": {  # of all edits that are scored, for a judge
        "checkpoint": ("int32", True),  # edits applied when asked; 0: the unedited model
        "edit_index": ("int32", True),
        "edit_id": ("string", True),
        "probe": ("string", True),  # edit or rephrase
        "probe_index": ("int32", True),
        "prompt": ("string", True),
        "target": ("string", True),
        "answer": ("string", True),
        "matches": ("bool", True),  # the target by comparison, as in the protocol `wild`
        "counted": ("bool", True),  # no later edit answers the rephrase otherwise
        "superseded": ("bool", True),  # the edit
        "judge": ("string", False),  # who was asked; null: nobody yet
        "reply": ("string", False),  # its raw reply
        "verdict": ("bool", False),  # the answer is right; null: the reply says neither
    },
    "cells": {
        "status": ("string", True),
        "reason": ("string", False),
        "identity": ("string", True),  # JSON
        "key_version": ("int32", True),
        "data_hash": ("string", False),
        "model_hash": ("string", False),
        "code_version": ("string", True),
        "versions": ("string", True),  # JSON
        "resolved": ("string", True),  # JSON
        "protocols": ("list<string>", True),
        "train_seconds": ("float64", False),
        "edit_seconds": ("float64", False),
        "edit_ms": ("float64", False),
        "score_seconds": ("float64", False),
        "peak_memory_gb": ("float64", False),
        "n_edits": ("int32", False),
        "n_contradicting": ("int32", False),
        "threads": ("int32", True),
        "ranks": ("int32", True),
        "started_at": ("timestamp", False),  # UTC
        "finished_at": ("timestamp", False),  # UTC
        "files": ("string", True),  # JSON: {table: {path, rows, bytes, sha256}}
    },
}

DATA_TABLES = ("edits", "steps", "scores")  # in the order in which they are written
# Tables of which a cell may have no shard, as it has none where it was asked for no such rows.
OPTIONAL_TABLES = ("answers", "free_answers")
JSON_COLUMNS = ("identity", "versions", "resolved", "files")

# Within one cell these columns name a row.
ROW_KEYS: dict[str, tuple[str, ...]] = {
    "edits": ("checkpoint", "protocol", "edit_index"),
    "steps": ("metric", "step"),
    "scores": ("checkpoint", "protocol"),
    "answers": ("checkpoint", "edit_index", "probe", "probe_index"),
    "free_answers": ("checkpoint", "edit_index", "probe", "probe_index"),
    "cells": (),
}

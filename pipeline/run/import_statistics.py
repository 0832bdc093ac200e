"""Published key covariance and projections, verified against their model and put into the cache."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from pipeline.config.parse import parse_grid
from pipeline.config.presets import PRESETS
from pipeline.config.scale import scaled
from pipeline.config.yaml_location import Located
from pipeline.errors import ConfigError
from pipeline.inputs.corpus import REAL_FACTS, open_corpus
from pipeline.inputs.published_statistics import (
    file_hash,
    is_torch_file,
    read_factors,
    read_projections,
    read_sum,
)
from pipeline.plan.architecture import architecture_of
from pipeline.plan.cache_names import imported_file
from pipeline.plan.cell_keys import model_hash_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.run.cache import Cache
from pipeline.run.imported_statistics import PROJECTION, imported_identity
from pipeline.run.reporting import silent
from pipeline.run.resume import write_tensors
from pipeline.run.stages.prepare import open_model, prepare_model
from rledit.locate.covariance import CovarianceError, KeyCovariance, called
from rledit.locate.output_gradients import gradients_of, observe_gradients
from rledit.locate.verification import (
    Check,
    Observed,
    check_projection,
    check_sum,
    compare_gradients,
    compare_projection,
    compare_sum,
    observe,
    rank_of,
    require,
)
from rledit.model import EditableModel

DOCUMENTS = 200
"""Documents of the sample that a file is held against, evenly spread over the corpus."""
_SPREAD_OVER = 20_000
_ADVICE = (
    "Either the file is of another model, linear or kind than it is given for, or the sample of "
    "text is unlike the one it was made from: name the model and the linear it is of, and give "
    "text of its kind with --corpus"
)

Kind = Literal["imported", "projections"]


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A published file of one linear that has been verified.

    Attributes:
        kind: The key of ``covariance`` that a grid names it under.
        linear: The linear, or the name that the covariance of its output gradients goes by.
        file_hash: What a grid calls it.
        checks: What it was checked by.
    """

    kind: Kind
    linear: str
    file_hash: str
    checks: tuple[Check, ...]


def model_cell(
    model: str, modules: Sequence[str], dtype: str | None = None, corpus: str = REAL_FACTS
) -> Cell:
    """A cell of a model as a grid would have it, for a file that is held against the model.

    Args:
        model: A preset's name, or a checkpoint as a grid takes it.
        modules: The linears that the file is of, in its order.
        dtype: Precision the model is loaded in; None: as in a grid that does not say.
        corpus: Text for the sample.

    Raises:
        ConfigError: The model is none, or does not have these linears.
    """
    entry: dict[str, Any] = {"name": Path(model).name.partition("@")[0] or model}
    entry |= {"preset": model} if model in PRESETS else {"checkpoint": model}
    entry |= {} if dtype is None else {"dtype": dtype}
    data = {
        "name": "statistics-import",
        "scale": "full",
        "models": [entry],
        "datasets": [{"name": REAL_FACTS, "real_facts": True}],
        "editors": [{"editor": "memit", "settings": {"modules": list(modules)}}],
        "streams": [{"n_batches": 1, "batch_size": 1}],
        "statistics": {"corpus": corpus, "documents": DOCUMENTS},
    }
    (cell,) = cells_of(scaled(parse_grid(Located.of_data(data, "rledit statistics"))))
    if dtype is None:
        return cell
    precision: Any = dtype  # which the parser has checked; a preset would set its own
    return replace(cell, model=replace(cell.model, dtype=precision))


def import_statistics(
    path: Path,
    model: str,
    modules: Sequence[str],
    cache: Cache,
    dtype: str | None = None,
    corpus: str = REAL_FACTS,
) -> list[Imported]:
    """Verify a published file against its model, and put it into the cache.

    Args:
        path: An ``.npz`` of the ROME family or of CrispEdit, or a ``.pt`` of projections.
        model: The model it is said to be of, as `model_cell` takes it.
        modules: The linear it is said to be of; of a ``.pt`` the linears of its layers, in order.
        cache: Where grids will look for it.
        dtype: Precision the model is loaded in.
        corpus: Text like that which the file was made from; 200 documents of it are used.

    Raises:
        CovarianceError: The file cannot be read, or is refused; names the numbers that failed.
            Nothing has been put into the cache then.
        ConfigError: The model, its linears or the corpus are none.
    """
    content = file_hash(path)
    cell = model_cell(model, modules, dtype, corpus)
    architecture = architecture_of(cell)
    try:
        shapes = architecture.target_modules(tuple(modules))
    except ValueError as error:
        raise ConfigError(f"--module {', '.join(modules)}: {error}") from None
    widths = {name: d_in for name, (d_in, _) in shapes.items()}
    if path.suffix == ".npz" and is_torch_file(path):
        return _import_factors(path, content, cell, shapes, cache)
    if path.suffix == ".npz":
        return _import_sum(path, content, cell, widths, cache)
    if path.suffix == ".pt":
        return _import_projections(path, content, cell, widths, cache)
    raise CovarianceError(
        f"{path}: expected a .npz of the ROME family (the sum of k kᵀ and its tokens), one of "
        "CrispEdit (A, B and N), or a .pt of null-space projections"
    )


def _import_sum(
    path: Path, content: str, cell: Cell, widths: dict[str, int], cache: Cache
) -> list[Imported]:
    if len(widths) != 1:
        raise ConfigError(
            f"{path} is of one linear, and --module names {len(widths)}: {', '.join(widths)}"
        )
    ((name, width),) = widths.items()
    found = read_sum(path)
    config: Any = architecture_of(cell).model.config
    window = getattr(config, "max_position_embeddings", None)
    what = f"{path}, as key covariance of {name},"
    checks = check_sum(found.total, found.count, found.documents, width, window)
    require(checks, what, _ADVICE)  # before the model is loaded
    identity = imported_identity(cell, name, content, found.dtype)
    moment = KeyCovariance(identity, width)
    moment.total, moment.count = found.total, found.count
    checks += compare_sum(_observed(cell, widths, cache), name, moment.mean())
    require(checks, what, _ADVICE)
    said = {"documents": json.dumps(found.documents)}
    _write(cell, name, content, cache, moment.tensors(), moment.metadata() | said, path, checks)
    return [Imported(kind="imported", linear=name, file_hash=content, checks=tuple(checks))]


def _import_factors(
    path: Path,
    content: str,
    cell: Cell,
    shapes: Mapping[str, tuple[int, int]],
    cache: Cache,
) -> list[Imported]:
    """Both covariances of a file; which linear they are of, that of the keys says."""
    if len(shapes) != 1:
        raise ConfigError(
            f"{path} is of one linear, and --module names {len(shapes)}: {', '.join(shapes)}"
        )
    ((name, (d_in, d_out)),) = shapes.items()
    found = read_factors(path)
    means = {name: found.keys, gradients_of(name): found.gradients}
    checks = {
        name: check_sum(found.keys, found.count, None, d_in, None),
        gradients_of(name): check_sum(found.gradients, found.count, None, d_out, None, "outputs"),
    }
    for part, done in checks.items():
        require(done, f"{path}, as {called(part)},", _ADVICE)  # before the model is loaded
    opened, texts = _sample(cell, {name: d_in}, cache)
    checks[name] += compare_sum(observe(opened, texts, [name]), name, found.keys)
    checks[gradients_of(name)] += compare_gradients(
        observe_gradients(opened, texts, name), found.gradients
    )
    for part, done in checks.items():
        require(done, f"{path}, as {called(part)},", _ADVICE)
    taken = []
    for place, (part, mean) in enumerate(means.items()):
        known = f"{content}#{place}"
        moment = KeyCovariance(imported_identity(cell, part, known, found.dtype), len(mean))
        moment.total, moment.count = mean * found.count, found.count
        said = {"documents": json.dumps(None)}
        facts = moment.metadata() | said
        _write(cell, part, known, cache, moment.tensors(), facts, path, checks[part])
        taken.append(
            Imported(kind="imported", linear=part, file_hash=known, checks=tuple(checks[part]))
        )
    return taken


def _import_projections(
    path: Path, content: str, cell: Cell, widths: dict[str, int], cache: Cache
) -> list[Imported]:
    every = read_projections(path)
    if len(every) != len(widths):
        raise ConfigError(
            f"{path} holds projections of {len(every)} linears, and --module names "
            f"{len(widths)} ({', '.join(widths)}); name them all, in the order of the file's layers"
        )
    checks: dict[str, list[Check]] = {}
    for (name, width), projection in zip(widths.items(), every, strict=True):
        checks[name] = check_projection(projection, width)
        require(checks[name], f"{path}, as projection of {name},", _ADVICE)
    observed = _observed(cell, widths, cache)
    for name, projection in zip(widths, every, strict=True):
        checks[name] += compare_projection(observed, name, projection)
        require(checks[name], f"{path}, as projection of {name},", _ADVICE)
    taken = []
    for place, (name, projection) in enumerate(zip(widths, every, strict=True)):
        known = f"{content}#{place}" if len(every) > 1 else content
        identity = imported_identity(cell, name, known, "float32")
        facts = {**asdict(identity), "rank": str(rank_of(projection))}
        tensors = {PROJECTION: projection.contiguous()}
        _write(cell, name, known, cache, tensors, facts, path, checks[name])
        taken.append(
            Imported(kind="projections", linear=name, file_hash=known, checks=tuple(checks[name]))
        )
    return taken


def _observed(cell: Cell, widths: dict[str, int], cache: Cache) -> Observed:
    """What the model's linears take in over documents of the corpus."""
    opened, texts = _sample(cell, widths, cache)
    return observe(opened, texts, list(widths))


def _sample(
    cell: Cell, widths: dict[str, int], cache: Cache
) -> tuple[EditableModel, list[Sequence[int]]]:
    """The model, opened with all linears of some widths, and documents of the corpus as tokens."""
    architecture = architecture_of(cell)
    alike = [
        name
        for kind in architecture.description.target_modules
        for name, (d_in, _) in architecture.target_modules((f"{kind}:all",)).items()
        if d_in in widths.values()
    ]
    folder = prepare_model(cell, cache, silent)
    settings = {**cell.editor.settings, "modules": alike}
    opened = open_model(replace(cell, editor=replace(cell.editor, settings=settings)), folder)
    every = open_corpus(cell.corpus, _SPREAD_OVER, None, "--corpus").documents
    n = min(DOCUMENTS, len(every))
    most = min(opened.encoder.max_length or cell.statistics.max_tokens, cell.statistics.max_tokens)
    documents = [every[i * len(every) // n] for i in range(n)]
    return opened, [opened.encoder.text_ids(text)[:most] for text in documents]


def _write(
    cell: Cell,
    linear: str,
    known: str,
    cache: Cache,
    tensors: dict[str, Tensor],
    facts: dict[str, str],
    path: Path,
    checks: Iterable[Check],
) -> None:
    name = imported_file(model_hash_of(cell), linear, known)
    numbers = {check.name: check.value for check in checks}
    facts = {**facts, "file": path.name, "checks": json.dumps(numbers)}
    write_tensors(cache.folder / name, tensors, facts)
    cache.publish(name)

"""Files of key covariance and of projections as releases publish them, read without running code.

The ``.npz`` of the ROME family (ROME, MEMIT, AlphaEdit, EasyEdit, PRUNE, RECT) holds the sum of
k kᵀ and the number of its tokens:

- ``mom2.mom2``: (d_in, d_in), the sum, not the mean;
- ``mom2.count``: tokens;
- ``mom2.constructor``: the class that wrote it, another in each fork;
- ``sample_size``: documents that were asked for.

A value that is missing is a float64 NaN of one special bit pattern. AlphaEdit's
``null_space_project.pt`` is one tensor (layers, d_in, d_in) in the order of its layer list, and
BetaEdit's files are one (d_in, d_in) each. CrispEdit's ``…_kfac_….npz`` is no archive of arrays but
a file of torch with ``A``, ``B`` and ``N``: covariance of a linear's inputs and of its output
gradients, divided by their N tokens already.
"""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from rledit.locate.covariance import CovarianceError, KeyCovariance

MISSING = 0xFFF8000000000002
"""Bits of the float64 that stands for a value that is not there."""
SUM, COUNT, CONSTRUCTOR, SAMPLE_SIZE = (
    "mom2.mom2", "mom2.count", "mom2.constructor", "sample_size",
)  # fmt: skip
_KINDS = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True, eq=False)
class PublishedSum:
    """The second moment of one linear, as its file has it.

    Attributes:
        path: The file.
        total: Σ k kᵀ (d_in, d_in).
        count: Tokens.
        documents: Documents that were asked for, by the file; None where it does not say.
    """

    path: Path
    total: Tensor
    count: int
    documents: int | None

    @property
    def dtype(self) -> str:
        """Precision of the sum, as a grid names it."""
        return next(name for name, kind in _KINDS.items() if kind == self.total.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class PublishedFactors:
    """Both covariances of one linear, as CrispEdit's file has them.

    Attributes:
        keys: A (d_in, d_in), a mean.
        gradients: B (d_out, d_out), a mean.
        count: Tokens that both are of.
    """

    keys: Tensor
    gradients: Tensor
    count: int

    @property
    def dtype(self) -> str:
        """Precision, as a grid names it."""
        return next(name for name, kind in _KINDS.items() if kind == self.keys.dtype)


def file_hash(path: Path) -> str:
    """sha256 of a file's content, which tells imported statistics apart.

    Raises:
        CovarianceError: There is no such file.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CovarianceError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_sum(path: Path) -> PublishedSum:
    """The sum and count of an ``.npz`` of the ROME family; pickled arrays are refused.

    Raises:
        CovarianceError: The file is none of these, is damaged, or has no usable sum or count.
    """
    values = _arrays(path)
    if lacking := [name for name in (SUM, COUNT) if values.get(name) is None]:
        raise CovarianceError(
            f"{path}: {', '.join(lacking)} missing; expected {SUM}, the sum of k kᵀ, and {COUNT}, "
            f"its tokens, as MEMIT writes them; found {', '.join(values) or 'nothing'}"
        )
    total, count, documents = values[SUM], values[COUNT], values.get(SAMPLE_SIZE)
    if str(total.dtype) not in _KINDS or total.ndim != 2 or total.shape[0] != total.shape[1]:
        raise CovarianceError(
            f"{path}: {SUM} is {total.dtype} of shape {list(total.shape)}; expected a square "
            "matrix of float32 or float64"
        )
    return PublishedSum(
        path=path,
        total=torch.from_numpy(total),
        count=_whole(path, COUNT, count),
        documents=None if documents is None else _whole(path, SAMPLE_SIZE, documents),
    )


def write_sum(path: Path, moment: KeyCovariance, documents: int) -> None:
    """Write a moment as MEMIT does, whole or not at all.

    Args:
        path: The ``.npz``.
        moment: The sum.
        documents: Documents it is of.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    arrays: dict[str, Any] = {
        CONSTRUCTOR: np.array("util.runningstats.SecondMoment()"),
        COUNT: np.array(moment.count, dtype=np.int64),
        SUM: moment.total.cpu().numpy(),
        SAMPLE_SIZE: np.array(documents, dtype=np.int64),
    }
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    temporary.replace(path)


def is_torch_file(path: Path) -> bool:
    """Whether a file, whatever it is called, is one of torch and not an archive of arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read_factors(path: Path) -> PublishedFactors:
    """Both covariances of a file of CrispEdit, read with `weights_only`.

    Raises:
        CovarianceError: It holds anything else, or is damaged.
    """
    found = _tensors(path)
    given = found if isinstance(found, dict) else {}
    if lacking := [name for name in ("A", "B", "N") if name not in given]:
        there = ", ".join(map(str, given)) or type(found).__name__
        raise CovarianceError(
            f"{path}: {', '.join(lacking)} missing; expected A and B, the covariances of a "
            f"linear's inputs and output gradients, and N, their tokens, as CrispEdit writes them; "
            f"found {there}"
        )
    keys, gradients, count = given["A"], given["B"], given["N"]
    for name, matrix in (("A", keys), ("B", gradients)):
        square = isinstance(matrix, Tensor) and matrix.ndim == 2 and len(set(matrix.shape)) == 1
        if not square or matrix.dtype not in _KINDS.values() or matrix.dtype != keys.dtype:
            what = f"{matrix.dtype} of shape {list(matrix.shape)}" if square else repr(matrix)[:80]
            raise CovarianceError(
                f"{path}: {name} is {what}; expected square matrices of float32, or both of float64"
            )
    number = count.item() if isinstance(count, Tensor) and count.numel() == 1 else count
    return PublishedFactors(
        keys=keys, gradients=gradients, count=_whole(path, "N", np.asarray(number))
    )


def read_projections(path: Path) -> Tensor:
    """The projections (layers, d_in, d_in) of a ``.pt`` of one tensor, read with `weights_only`.

    Raises:
        CovarianceError: It holds anything else, or is damaged.
    """
    found = _tensors(path)
    if not isinstance(found, Tensor) or found.ndim not in (2, 3):
        what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise CovarianceError(
            f"{path}: expected one tensor (layers, d_in, d_in) of projections, or one (d_in, "
            f"d_in); found {what}"
        )
    if found.shape[-1] != found.shape[-2] or not found.is_floating_point():
        raise CovarianceError(
            f"{path}: the tensor is {found.dtype} of shape {list(found.shape)}; expected square "
            "matrices of floating-point numbers"
        )
    return found if found.ndim == 3 else found[None]


def _tensors(path: Path) -> Any:
    """What a file of torch holds, of tensors and plain values alone."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CovarianceError(
            f"{path}: this pickle holds something beside tensors, which loading it in full would "
            f"run as code; it is not loaded ({str(error).splitlines()[0][:120]})"
        ) from None
    except Exception as error:
        raise CovarianceError(_damaged(path, error)) from None


def _arrays(path: Path) -> dict[str, Any]:
    """Every array of an archive by its name, None for a value that is missing."""
    try:
        with path.open("rb") as file:
            return _open(path, file)
    except CovarianceError:
        raise
    except OSError as error:
        raise CovarianceError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # numpy, zipfile and zlib each have their own
        if "allow_pickle" in str(error):
            raise CovarianceError(
                f"{path}: holds pickled objects, which may run code when they are loaded; it is "
                f"not loaded. Take a file of plain arrays, as MEMIT writes it"
            ) from None
        raise CovarianceError(_damaged(path, error)) from None


def _open(path: Path, file: IO[bytes]) -> dict[str, Any]:
    if not zipfile.is_zipfile(file):
        file.seek(0)
        if file.read(1) == b"\x80":  # a pickle says its protocol first
            raise CovarianceError(
                f"{path}: this is a pickle, which may run code when it is loaded; it is not "
                "loaded. Take the .npz of plain arrays"
            )
        raise zipfile.BadZipFile("no archive of arrays, or its end is missing")
    file.seek(0)
    with np.load(file, allow_pickle=False) as archive:
        return {name: _present(archive[name]) for name in archive.files}


def _present(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    if value.ndim == 0 and value.dtype == np.float64 and value.view(np.uint64) == MISSING:
        return None
    return value


def _whole(path: Path, name: str, value: np.ndarray[Any, Any]) -> int:
    if value.ndim or value.dtype.kind not in "iuf" or value != np.floor(value) or value < 1:
        raise CovarianceError(
            f"{path}: {name} is {value.tolist()!r}; expected a whole number of at least 1"
        )
    return int(value)


def _damaged(path: Path, error: Exception) -> str:
    size = f", {path.stat().st_size} bytes" if path.is_file() else ""
    why = str(error).strip().splitlines()
    return (
        f"{path}: cannot be read{size} ({type(error).__name__}: {why[0][:150] if why else '-'}); "
        "the file is cut short or damaged, or of another kind: fetch it again"
    )

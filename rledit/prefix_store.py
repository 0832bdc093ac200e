"""Prefix store: prefixes of prompts on disk, made once and found by every process on this model.

    cache = model.prefix_cache
    cache.keep_in(PrefixStore(folder, cache.fingerprint(), budget=2 << 30))

A prefix (see `rledit.prefix_cache`) depends on the model below the first edited layer and on the
prompt's tokens. With a store it is recorded by itself, or in a pass of which it is known that it
gives the same bits (see `PrefixPasses.same_bits`), so that they depend on nothing else: whoever
makes it, and when, gives the same. On a card all passes over prompts of a length have one shape
instead (see `PrefixPasses.fixed_rows`). What a store holds therefore saves time and changes no
number.

A store is a folder of segments: safetensors files that are written whole or not at all and never
changed, each with the rows of some prompts one after another. They are mapped into memory, not
read: processes on one machine share the pages. A file that is broken is removed, and what was in it
is recorded again; one that was made from another model, or on a machine that adds otherwise, is
left alone and not read. Beside the segments lies, for each length, which passes give the same bits:
that is tried once on machines of one kind.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rledit.lazy_torch import Tensor, torch
from rledit.tokenization import Sample

logger = logging.getLogger(__name__)

Prefix = tuple[Tensor, Tensor]
"""Hidden states entering the first edited layer, and its attention's output: both (T, hidden)."""

FORMAT = "1"
DIGEST_BYTES = 16
FLUSH_BYTES = 8 << 20
FLUSH_SECONDS = 20.0
WORTHWHILE = {16: 12, 4: 2}
"""Rows of a pass, and the prompts that make it cheaper than smaller passes on a core."""
ABANDONED_SECONDS = 3600.0
_PARTIAL = ".tmp-"
# Variables that choose kernels.
_KERNELS = ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_CARD_KERNELS = ("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE")
_PARTS = ("hidden", "attention", "digests", "lengths")


class PrefixStore:
    """Prefixes of one model at one layer, in a folder that other processes may write to as well.

    Args:
        folder: The folder; made when something is written.
        identity: What the prefixes depend on beside the tokens, see `PrefixCache.fingerprint`.
        budget: Bytes that its prefixes may come to; what is over it is not kept.
        published: Called with every file that is written.
        claim: The right to record prompts of a length, where other processes may want the same:
            a context that says whether it is had now. None: nobody else is asked.
    """

    def __init__(
        self,
        folder: Path,
        identity: str,
        budget: int,
        published: Callable[[Path], None] = lambda _: None,
        claim: Callable[[int], AbstractContextManager[bool]] | None = None,
    ) -> None:
        self.folder = folder
        self.identity = identity
        self.claim = claim
        self._budget = budget
        self._published = published
        self._segments: dict[str, Prefix] = {}
        self._ignored: set[str] = set()
        self._places: dict[bytes, tuple[str, int, int]] = {}
        self._written: dict[bytes, Prefix] = {}  # put, and in no file yet
        self._in_files = self._in_memory = 0
        self._unpublished: list[Path] = []
        self._full = self._unwritable = False
        self._flushed = time.monotonic()
        self._remove_abandoned()
        self.refresh()

    @property
    def n_bytes(self) -> int:
        """What its files take, and what will be written."""
        return self._in_files + self._in_memory

    @property
    def room(self) -> int:
        """Bytes that may be put yet."""
        return 0 if self._full else max(0, self._budget - self.n_bytes)

    def __contains__(self, sample: Sample) -> bool:
        digest = digest_of(sample)
        return digest in self._places or digest in self._written

    def __len__(self) -> int:
        return len(self._places) + len(self._written)

    def missing(self, samples: Iterable[Sample]) -> list[Sample]:
        """Those of the samples whose prefixes it lacks, each input once."""
        return [s for s in {s.key: s for s in samples}.values() if s not in self]

    def get(self, sample: Sample) -> Prefix | None:
        """The prefix of a prompt, as views of a file; None where it is not there."""
        digest = digest_of(sample)
        if (written := self._written.get(digest)) is not None:
            return written
        if (place := self._places.get(digest)) is None:
            return None
        name, start, length = place
        hidden, attention = self._segments[name]
        return hidden[start : start + length], attention[start : start + length]

    def put(self, sample: Sample, prefix: Prefix) -> bool:
        """Keep a prefix; returns whether there was room for it."""
        size = sum(t.nbytes for t in prefix)
        if size > self.room:
            self._say_full(f"its {self._budget / 1e9:.3g} GB are used up")
            return False
        self._written[digest_of(sample)] = (prefix[0].cpu(), prefix[1].cpu())
        self._in_memory += size
        late = time.monotonic() - self._flushed > FLUSH_SECONDS
        if self._in_memory > FLUSH_BYTES or late:
            self.flush()
        return True

    def tried(self, length: int) -> tuple[int, ...] | None:
        """What `PrefixPasses.same_bits` has found for a length on a machine like this one.

        None where nobody has tried.
        """
        try:
            noted = json.loads(self._note(length).read_bytes())
            found, about = tuple(noted["sizes"]), noted["about"]
        except (OSError, ValueError, KeyError, TypeError):
            return None  # never tried, or a broken file: it is tried again
        same = about == self._about() and set(found) <= set(WORTHWHILE)
        return tuple(sorted(found, reverse=True)) if same else None

    def keep_tried(self, length: int, sizes: Sequence[int]) -> None:
        """Keep what was found for a length, beside the prefixes."""
        note = self._note(length)
        partial = note.with_name(f"{_PARTIAL}{uuid.uuid4().hex}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps({"sizes": list(sizes), "about": self._about()}))
            os.replace(partial, note)
            self._published(note)
        except Exception as error:  # drivers of object stores raise classes of their own
            logger.debug("what passes of %d tokens give is tried again: %s", length, error)

    def _about(self) -> dict[str, Any]:
        return {"identity": self.identity, "format": FORMAT, **machine()}

    def _note(self, length: int) -> Path:
        about = hashlib.sha256(json.dumps(self._about(), sort_keys=True).encode()).hexdigest()
        return self.folder / f"tried-{about[:12]}-{length}.json"

    def flush(self) -> None:
        """Write what was put as a file, and look what others have written.

        Where nothing can be written (the disk is full, the folder may only be read), prefixes stay
        in memory as far as they are, and no more are taken. A file that is written and not
        published serves this machine, and is published with the next one.
        """
        self._flushed = time.monotonic()
        if self._written and not self._unwritable:
            path = self.folder / f"{uuid.uuid4().hex}.safetensors"
            try:
                self._write(path)
            except (OSError, SafetensorError) as error:
                self._unwritable = True
                self._say_full(str(error))
            else:
                self._written, self._in_memory = {}, 0
                self._unpublished.append(path)
        self._publish()
        self.refresh()

    def _publish(self) -> None:
        """Hand files on to where other machines find them; what fails is tried again later."""
        while self._unpublished:
            path = self._unpublished[0]
            try:
                self._published(path)
            except Exception as error:  # drivers of object stores raise classes of their own
                logger.warning("prefixes of %s are not published yet: %s", path.name, error)
                return
            self._unpublished.pop(0)

    def refresh(self) -> None:
        """Find the files that were written meanwhile."""
        try:
            names = sorted(p.name for p in self.folder.glob("*.safetensors"))
        except OSError:
            names = []
        for name in names:
            if name not in self._segments and name not in self._ignored:
                self._open(self.folder / name)

    def _remove_abandoned(self) -> None:
        """Remove what processes that were killed while they wrote have left."""
        for partial in self.folder.glob(f"{_PARTIAL}*"):
            with suppress(OSError):
                if time.time() - partial.stat().st_mtime > ABANDONED_SECONDS:
                    partial.unlink(missing_ok=True)

    def _write(self, path: Path) -> None:
        from safetensors.torch import save_file

        prefixes = list(self._written.values())
        digests = torch.frombuffer(bytearray(b"".join(self._written)), dtype=torch.uint8)
        tensors = {
            "hidden": torch.cat([hidden for hidden, _ in prefixes]).contiguous(),
            "attention": torch.cat([attention for _, attention in prefixes]).contiguous(),
            "digests": digests.reshape(-1, DIGEST_BYTES),
            "lengths": torch.tensor([len(hidden) for hidden, _ in prefixes]),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{_PARTIAL}{path.stem}")
        try:
            save_file(tensors, partial, {"identity": self.identity, "format": FORMAT})
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _open(self, path: Path) -> None:
        """Take a file's prompts into the index."""
        try:
            found = _read(path)
        except FileNotFoundError:
            return
        except OSError as error:  # it may be whole, and others may be able to read it
            logger.warning("%s is not read: %s", path, error)
            self._ignored.add(path.name)
            return
        except (SafetensorError, KeyError, ValueError) as error:
            logger.warning(
                "%s is broken (%s) and removed; its prompts are recorded again", path, error
            )
            self._ignored.add(path.name)
            path.unlink(missing_ok=True)
            return
        identity, prefix, digests, lengths = found
        if identity != (self.identity, FORMAT):
            logger.warning(
                "%s is not read: it was made from another model, or on a machine that adds "
                "otherwise (%s, expected %s)",
                path,
                *(" format ".join(i) for i in (identity, (self.identity, FORMAT))),
            )
            self._ignored.add(path.name)
            return
        self._segments[path.name] = prefix
        self._in_files += path.stat().st_size
        start = 0
        for digest, length in zip(digests, lengths, strict=True):
            self._places.setdefault(digest, (path.name, start, length))
            start += length

    def _say_full(self, why: str) -> None:
        if not self._full:
            self._full = True
            logger.warning(
                "the prefix store %s takes no more: %s; prompts that it lacks are run through the "
                "layers below again",
                self.folder,
                why,
            )


@lru_cache(maxsize=1)
def _processor() -> str:
    """The model of the CPU, as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((ln for ln in lines if ln.startswith("model name")), platform.processor())


def machine() -> dict[str, Any]:
    """What the order in which a pass adds up depends on, beside the model: software and CPU."""
    return {
        "torch": torch.__version__,
        "cpu": _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ.get(name) for name in _KERNELS},
        "sizes": {str(size): least for size, least in WORTHWHILE.items()},
    }


def card(device: torch.device) -> dict[str, Any]:
    """What the order in which a pass on a card adds up depends on, beside the model."""
    if device.type != "cuda":
        return {"device": device.type}
    products = torch.backends.cuda.matmul
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device),
        "capability": torch.cuda.get_device_capability(device),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32": products.allow_tf32,
        "reduced": products.allow_bf16_reduced_precision_reduction,
        "attention": [
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
            torch.backends.cuda.cudnn_sdp_enabled(),
        ],
        "environment": {name: os.environ.get(name) for name in _CARD_KERNELS},
    }


def digest_of(sample: Sample) -> bytes:
    """What a prompt is found by: a hash of its input tokens."""
    return hashlib.blake2b(sample.key, digest_size=DIGEST_BYTES).digest()


def passes_of_one_length(
    samples: Sequence[Sample], sizes_of: Callable[[int], Sequence[int]]
) -> Iterator[tuple[list[Sample], int]]:
    """Samples in groups of one length, each with the rows of its pass: what is over is filler.

    Args:
        samples: The samples.
        sizes_of: Rows that a pass of prompts of a length may have beside 1, in `WORTHWHILE`.
    """
    for length, own in _by_length(samples):
        sizes = sizes_of(length)
        while own:
            rows = next((size for size in sizes if len(own) >= WORTHWHILE[size]), 1)
            yield own[:rows], rows
            own = own[rows:]


def passes_of_one_shape(
    samples: Sequence[Sample], rows_of: Callable[[int], int]
) -> Iterator[tuple[list[Sample], int]]:
    """As `passes_of_one_length`, all passes over prompts of a length with as many rows.

    Args:
        samples: The samples.
        rows_of: Rows of a pass over prompts of a length.
    """
    for length, own in _by_length(samples):
        rows = rows_of(length)
        for start in range(0, len(own), rows):
            yield own[start : start + rows], rows


def _by_length(samples: Sequence[Sample]) -> list[tuple[int, list[Sample]]]:
    by_length: dict[int, list[Sample]] = {}
    for sample in samples:
        by_length.setdefault(len(sample), []).append(sample)
    return sorted(by_length.items())


def _read(path: Path) -> tuple[tuple[str, str], Prefix, list[bytes], list[int]]:
    """Identity and format, rows, and what is whose, of a file.

    Raises:
        SafetensorError, KeyError, ValueError: It is no whole segment.
    """
    from safetensors.torch import load_file

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    tensors = load_file(path)
    hidden, attention, digests, lengths = (tensors[name] for name in _PARTS)
    whole = hidden.shape == attention.shape and len(hidden) == int(lengths.sum())
    if not whole or digests.shape != (len(lengths), DIGEST_BYTES):
        raise ValueError("its parts do not fit together")
    rows = [bytes(row) for row in digests.tolist()]
    identity = (metadata.get("identity", "none"), metadata.get("format", "none"))
    return identity, (hidden, attention), rows, lengths.tolist()

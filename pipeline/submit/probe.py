"""Storage probe: whether every node writes to, and reads from, the same places.

Every node writes an object of its own into the lake and the cache; then every node reads those of
all the others. A path that exists everywhere but lies on each node's own disk passes the first
round and fails the second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial

from pipeline.storage.object_store import Storage
from pipeline.storage.redaction import redact

logger = logging.getLogger(__name__)

EveryNode = Callable[[Callable[[str], list[str]]], Mapping[str, list[str]]]
FOLDER = ".probe"
# What the job writes to its log, and who submitted it waits for.
PASSED = "probe passed"
FAILED = "probe failed"


def probe(places: Mapping[str, str], name: str, on_every_node: EveryNode) -> Mapping[str, str]:
    """Try all places from all nodes.

    Args:
        places: URIs by what they are called, e.g. lake and cache.
        name: Of this probe; no other probe at the same time may have it.
        on_every_node: Calls a function of the node's name on every node at once.

    Returns:
        What is wrong by node; nothing for a node that can write and sees the others.
    """
    try:
        problems = dict(on_every_node(partial(_write, dict(places), name)))
        writers = tuple(node for node, found in problems.items() if not found)
        for node, found in on_every_node(partial(_read, dict(places), name, writers)).items():
            problems[node] = problems.get(node) or found
        return {node: "; ".join(found) for node, found in problems.items() if found}
    finally:
        _clean(places, name)


def _write(places: Mapping[str, str], name: str, node: str) -> list[str]:
    problems = []
    for place, uri in places.items():
        try:
            Storage(uri).write_bytes(f"{FOLDER}/{name}/{node}", node.encode())
        except Exception as error:  # drivers of object stores raise classes of their own
            problems.append(f"cannot write to the {place} {redact(uri)} ({_reason(error)})")
    return problems


def _read(places: Mapping[str, str], name: str, writers: tuple[str, ...], node: str) -> list[str]:
    problems = []
    for place, uri in places.items():
        try:
            found = {path.rsplit("/", 1)[1] for path in Storage(uri).list(f"{FOLDER}/{name}")}
        except Exception as error:  # as above
            problems.append(f"cannot read the {place} {redact(uri)} ({_reason(error)})")
            continue
        missing = sorted(set(writers) - found)
        if missing:
            problems.append(
                f"does not see in the {place} {redact(uri)} what {', '.join(missing)} wrote there: "
                "it is not the same storage"
            )
    return problems


def _clean(places: Mapping[str, str], name: str) -> None:
    for uri in places.values():
        try:
            storage = Storage(uri)
            for path in storage.list(f"{FOLDER}/{name}"):
                storage.delete(path)
        except Exception as error:  # the nodes have said already what is wrong with the place
            logger.debug("probe of %s is left behind: %s", redact(uri), _reason(error))


def _reason(error: Exception) -> str:
    return redact(f"{type(error).__name__}: {error}")

"""A prefix cache of its own for training passes that an editor makes during a stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rledit.model import EditableModel
from rledit.prefix_cache import PrefixCache


@contextmanager
def fresh_prefix_cache(model: EditableModel) -> Iterator[None]:
    """Run with an empty prefix cache, and leave the shared one as it was.

    The last bits of a prefix depend on which prompts it was recorded with. Prompts that an editor
    makes up or draws would otherwise be found, or not, depending on what ran before, and a resumed
    stream would differ from a straight one in these bits.
    """
    with prefix_cache_of(model, new_prefix_cache(model)):
        yield


def new_prefix_cache(model: EditableModel) -> PrefixCache:
    """An empty prefix cache with the budget of the model's own."""
    return PrefixCache(
        model.model,
        model.family,
        model.prefix_cache.first_layer,
        cache_bytes=model.execution.cache_bytes,
        cache_device=model.device if model.execution.cache_on_device else None,
    )


@contextmanager
def prefix_cache_of(model: EditableModel, own: PrefixCache) -> Iterator[None]:
    """Run with another prefix cache, and leave the shared one as it was."""
    shared = model.prefix_cache
    model.prefix_cache = own
    try:
        yield
    finally:
        model.prefix_cache = shared

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
    stream would differ from a straight one in these bits. With a store, no bit depends on that.
    """
    with prefix_cache_of(model, new_prefix_cache(model)):
        yield


def new_prefix_cache(model: EditableModel) -> PrefixCache:
    """An empty prefix cache with the budget, and the store, of the model's own."""
    return model.prefix_cache.another()


@contextmanager
def prefix_cache_of(model: EditableModel, own: PrefixCache) -> Iterator[None]:
    """Run with another prefix cache, and leave the shared one as it was."""
    shared = model.prefix_cache
    model.prefix_cache = own
    try:
        yield
    finally:
        model.prefix_cache = shared

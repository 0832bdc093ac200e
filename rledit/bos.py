"""Beginning-of-sequence tokens that a tokenizer puts before plain text by itself.

Whether prompts begin with BOS is the tokenizer's matter, not the architecture's. It shows in what
the tokenizer makes of plain text with its special tokens on, whoever adds them: a template
post-processor (Llama-3), `add_bos_token` (Llama-2, Mistral, Gemma), or nobody (GPT-J, Qwen2.5).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from rledit.control_tokens import TokenizationError

_PROBES = ("a", "The", "1", ".")
_TRIED = 50  # words of the vocabulary, where it knows none of the probes


Ids = tuple[int, ...]


def written_around(tokenizer: Any) -> tuple[Ids, Ids]:
    """Ids that a tokenizer writes before plain text, and behind it; empty where it writes none.

    One BOS before it nearly always; some write two tokens, or one that they do not call BOS. EOS or
    SEP behind it.
    """
    for probe in _probes(tokenizer):
        try:
            bare = list(tokenizer(probe, add_special_tokens=False)["input_ids"])
        except Exception:  # of a library of another language: a word that it cannot do without
            continue
        if not bare:
            continue
        whole = list(tokenizer(probe)["input_ids"])
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return tuple(whole[:start]), tuple(whole[start + len(bare) :])
    return (), ()  # it knows no text at all


def before_text(tokenizer: Any, bos: bool | None) -> Ids:
    """Ids that begin a text: as the tokenizer has it (None), with BOS, or without.

    Raises:
        TokenizationError: BOS is asked for, and the tokenizer has no such token.
    """
    if bos is False:
        return ()
    own, _ = written_around(tokenizer)
    if own or bos is None:
        return own
    if tokenizer.bos_token_id is None:
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise TokenizationError(
            f"bos: true, but the tokenizer of {name} has no BOS token; leave `bos` out of the "
            "model's entry, or name a `bos_token` in its tokenizer_config.json"
        )
    return (tokenizer.bos_token_id,)


def _probes(tokenizer: Any) -> Iterator[str]:
    """Texts to try: some that nearly every tokenizer knows, then words of its own."""
    yield from _PROBES
    special = set(tokenizer.all_special_tokens)
    own = (word for word in tokenizer.get_vocab() if word.isalnum() and word not in special)
    yield from islice(own, _TRIED)

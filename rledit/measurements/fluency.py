"""Fluency and consistency of longer texts a model writes (arXiv 2202.05262, appendix).

Fluency: (2/3 · H2 + 4/3 · H3) / 2, the entropies in bits of the text's word 2-grams and 3-grams;
repetition lowers it. Consistency: cosine of the TF-IDF vectors of the text and of reference texts
about subjects of which the new fact is true. Both are printed times 100. They depend on how text
is sampled and cut into words, and are known not to reproduce between laboratories: here a token is
drawn from the five likeliest, by numbers that depend on the prompt alone, and a word is a run of
letters and digits or a single other mark.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from rledit.decoding import decode
from rledit.lazy_torch import Tensor, torch
from rledit.model import EditableModel
from rledit.writing_systems import space_between

TEXT_TOKENS = 100
_TOP_K = 5
_WEIGHTS = {2: 2 / 3, 3: 4 / 3}


def write_texts(model: EditableModel, prompts: Sequence[str], seed: int = 0) -> list[str]:
    """A text of `TEXT_TOKENS` tokens behind each prompt, the prompt included.

    Shorter where the model's positions end before. The end-of-sequence token does not stop it.
    """
    draws = torch.stack([_uniform(prompt, seed) for prompt in prompts])

    def choose(logits: Tensor, places: Sequence[int], steps: Sequence[int]) -> Tensor:
        top = logits.topk(min(_TOP_K, logits.shape[-1]), dim=-1)
        shares = top.values.softmax(-1).cumsum(-1)
        drawn = draws[list(places), list(steps)].to(shares)[:, None]
        pick = (shares < drawn).sum(-1, keepdim=True).clamp_max(top.indices.shape[-1] - 1)
        return top.indices.gather(1, pick).squeeze(1)

    tokens = decode(model, prompts, TEXT_TOKENS, choose=choose)
    tokenizer = model.encoder.tokenizer
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in tokens]
    return [
        f"{prompt}{' ' if space_between(prompt, text) else ''}{text}"
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def ngram_entropy(text: str) -> float:
    """Weighted 2- and 3-gram entropy of a text in bits; 0 for one too short to have any."""
    words = _words(text)
    return sum(weight * _entropy(words, n) for n, weight in _WEIGHTS.items()) / len(_WEIGHTS)


class References:
    """Reference texts by name, and the TF-IDF vectors they define.

    The document frequencies are those of the reference texts themselves.

    Args:
        texts: Reference texts by their name (see `rledit.records.Edit.reference_key`).
    """

    def __init__(self, texts: Mapping[str, Sequence[str]]) -> None:
        self._texts = texts
        documents = [set(_words(text)) for own in texts.values() for text in own]
        frequency = Counter(word for words in documents for word in words)
        self._n_documents = len(documents)
        self._idf = {word: self._weight(count) for word, count in frequency.items()}

    def __contains__(self, name: str | None) -> bool:
        return name in self._texts

    def similarity(self, text: str, name: str) -> float:
        """Cosine, 0 to 1, of a text with the reference texts of that name joined to one."""
        one, other = self._vector(text), self._vector(" ".join(self._texts[name]))
        dot = sum(value * other.get(word, 0.0) for word, value in one.items())
        norms = math.hypot(*one.values()) * math.hypot(*other.values())
        return dot / norms if norms else 0.0

    def _weight(self, count: int) -> float:
        return 1 + math.log((1 + self._n_documents) / (1 + count))

    def _vector(self, text: str) -> dict[str, float]:
        unseen = self._weight(0)
        return {w: n * self._idf.get(w, unseen) for w, n in Counter(_words(text)).items()}


def _uniform(prompt: str, seed: int) -> Tensor:
    """(TEXT_TOKENS,) uniform numbers that depend on prompt and seed alone."""
    digest = hashlib.sha256(f"{seed}\0{prompt}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(TEXT_TOKENS, generator=generator, dtype=torch.float64)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _entropy(words: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    total = sum(counts.values())
    return sum(-c / total * math.log2(c / total) for c in counts.values())

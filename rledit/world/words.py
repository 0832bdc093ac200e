"""A word-level tokenizer for the synthetic world, in the form of a Hugging Face fast tokenizer.

A word is a token and so is a question mark; a space only separates. So ``" answer"`` gives the
tokens of the answer alone, and a prompt's tokens followed by an answer's are the tokens of the
sentence. Whether it puts the beginning-of-sequence token before a prompt follows the family that
the model stands in for, whose released tokenizers do or do not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Sequence, Split, WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from rledit.measurements.downstream.tasks import TASKS
from rledit.world.facts import World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
# What marks whose turn it is, for models that are to be asked in a chat.
ROLES = ("<user>", "<assistant>")
_CHAT = (
    "{% for message in messages %}<{{ message['role'] }}>{{ '\\n' + message['content'] + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{{ '\\n' }}{% endif %}"
)

# For these model types transformers 5 distrusts the tokenizer class written beside a model and
# puts in the family's own, whose byte-level BPE knows none of a world's words.
_CLASS_OVERRULED = frozenset({"qwen2"})


def world_words(world: World) -> list[str]:
    """All words of a world's prompts and answers, sorted."""
    texts: set[str] = set()
    for fact in world.facts:
        texts.update(fact.trained, fact.held_out)
    for answers in world.answers.values():
        texts.update(answers)
    if world.config.lessons:
        texts.update(text for example in world.lessons for text in example)
        texts.update(answer for task in TASKS.values() for answer in task.answers)
    return sorted({word for text in texts for word in text.replace("?", " ?").split()})


def special_words(chat: bool) -> tuple[str, ...]:
    """The tokens before a vocabulary's words, with the marks of the roles where there is a chat."""
    return (PAD, BOS, EOS, UNK, *(ROLES if chat else ()))


def word_tokenizer(
    words: Iterable[str], *, add_bos: bool, chat: bool = False
) -> PreTrainedTokenizerFast:
    """A tokenizer of the given words.

    Args:
        words: The vocabulary, in the order of its token ids; four special tokens go before it.
        add_bos: Whether encoding with special tokens puts BOS in front, as Llama's does.
        chat: Give it a chat template; the marks of the roles then go before the words as well.
    """
    from transformers import PreTrainedTokenizerFast

    special = special_words(chat)
    vocabulary = {word: index for index, word in enumerate((*special, *words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = Sequence([WhitespaceSplit(), Split(Regex(r"\?"), "isolated")])
    if add_bos:
        tokenizer.post_processor = TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    if chat:
        fast.chat_template = ("{{ bos_token }}" if add_bos else "") + _CHAT
    return fast


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path, family: str) -> None:
    """Save a word-level tokenizer beside its model, so that `AutoTokenizer` loads it as it is.

    Args:
        tokenizer: The tokenizer.
        folder: The model's directory.
        family: The model's ``model_type``, by which `AutoTokenizer` chooses a class.
    """
    tokenizer.save_pretrained(folder)
    if family not in _CLASS_OVERRULED:
        return
    # Without permission to run code from the folder, transformers drops this map, but it does so
    # on the path that keeps the class written in the folder.
    file = folder / "tokenizer_config.json"
    written = json.loads(file.read_text("utf-8"))
    written["auto_map"] = {"AutoTokenizer": [None, written["tokenizer_class"]]}
    file.write_text(json.dumps(written, indent=2) + "\n", "utf-8")

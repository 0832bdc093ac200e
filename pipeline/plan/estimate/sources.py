"""Lists where published data and weights can be fetched, for plans that say what is missing.

Sizes are told where the hub or a publisher states them. What is not known is said to be so. The
same stands in docs/reproduce.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.inputs.eval_data import eval_data_files
from pipeline.plan.cells import Cell

_UNSTATED = "size not known here"


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """A published file.

    Attributes:
        file: Its name where it is published.
        place: The publisher's location.
        rows: What it holds, as far as is known.
        licence: As the publisher states it.
    """

    file: str
    place: str
    rows: str
    licence: str

    def __str__(self) -> str:
        return f"{self.file} ({self.rows}, {_UNSTATED}), {self.place}; licence: {self.licence}"


_ROME = "https://rome.baulab.info/data/dsets/"
_MEMIT = "https://memit.baulab.info/data/dsets/"
_ZSRE = "MEND's code is MIT, none is stated with the questions"
_FEVER = PublishedFile(
    file="the files that MALMEN's and RLEdit's loaders read",
    place="linked from MALMEN's repository (ChenmienTan/malmen on GitHub)",
    rows="8,000 rows are edited",
    licence="claims and Wikipedia's text CC BY-SA 3.0, none is stated with these files",
)
_COUNTERFACT = PublishedFile(
    file="multi_counterfact.json, or counterfact.json of the same schema",
    place=f"{_MEMIT} and {_ROME}",
    rows="2,000 to 8,000 rows are edited",
    licence="MIT, with MEMIT's and ROME's code",
)
_ZSRE_EVALUATION = PublishedFile(
    file="zsre_mend_eval.json",
    place=f"{_ROME} (MEND's and EasyEdit's repositories link to copies)",
    rows="19,086 rows, 8,000 are edited",
    licence=_ZSRE,
)
_ZSRE_TRAINING = PublishedFile(
    file="zsre_mend_train.json",
    place="linked from MEND's and EasyEdit's repositories (eric-mitchell/mend, zjunlp/EasyEdit)",
    rows="all rows are used",
    licence=_ZSRE,
)

# (schema, pool) → the file; a pool that is not named is as the one under "".
DATA: Mapping[tuple[str, str], PublishedFile] = {
    ("zsre", "evaluation"): _ZSRE_EVALUATION,
    ("zsre", ""): _ZSRE_TRAINING,
    ("fever", ""): _FEVER,
    ("counterfact", ""): _COUNTERFACT,
    ("mquake", ""): PublishedFile(
        file="MQuAKE's files",
        place="https://github.com/princeton-nlp/MQuAKE",
        rows="number of rows not known here",
        licence="MIT",
    ),
    ("knowedit", ""): PublishedFile(
        file="KnowEdit's files",
        place="https://huggingface.co/datasets/zjunlp/KnowEdit",
        rows="number of rows not known here",
        licence="MIT",
    ),
    ("wikibigedit", ""): PublishedFile(
        file="WikiBigEdit's files",
        place="its data set on https://huggingface.co",
        rows="number of rows not known here",
        licence="as stated there",
    ),
}

WIKIPEDIA = PublishedFile(
    file="running text of Wikipedia, one text a line",
    place="https://dumps.wikimedia.org, or a copy on the hub",
    rows="the papers take 100,000 documents of a dump that they do not name",
    licence="CC BY-SA",
)

# Part of a file's name → what the measurements read of that kind.
EVALUATION: Mapping[str, PublishedFile] = {
    "snippets": PublishedFile(
        file="attribute_snippets.json",
        place=_ROME,
        rows="reference texts from Wikipedia",
        licence="MIT, with ROME's code",
    ),
    "wikipedia": WIKIPEDIA,
    "ability": PublishedFile(
        file="SST-2, MMLU, MRPC, CoLA, RTE and NLI as jsonl",
        place="GLUE (https://huggingface.co/datasets/nyu-mll/glue) and MMLU "
        "(https://huggingface.co/datasets/cais/mmlu)",
        rows="100 items of each are asked",
        licence="each task's own; MMLU is MIT",
    ),
}

# Repository of the hub → licence of its weights.
WEIGHTS: Mapping[str, str] = {
    "meta-llama/Meta-Llama-3-8B": "Meta Llama 3 Community License",
    "meta-llama/Meta-Llama-3-8B-Instruct": "Meta Llama 3 Community License",
    "google/gemma-2-9b": "Gemma Terms of Use",
    "google/gemma-2-9b-it": "Gemma Terms of Use",
    "mistralai/Mistral-7B-v0.3": "Apache-2.0",
    "mistralai/Mistral-7B-Instruct-v0.3": "Apache-2.0",
    "EleutherAI/gpt-j-6b": "Apache-2.0",
    "Qwen/Qwen2.5-7B": "Apache-2.0",
    "Qwen/Qwen2.5-7B-Instruct": "Apache-2.0",
    "Qwen/Qwen3-8B-Base": "Apache-2.0",
    "Qwen/Qwen3-8B": "Apache-2.0",
    "meta-llama/Llama-3.1-8B": "Llama 3.1 Community License",
    "meta-llama/Llama-3.1-8B-Instruct": "Llama 3.1 Community License",
    "google/gemma-3-4b-pt": "Gemma Terms of Use",
    "google/gemma-3-4b-it": "Gemma Terms of Use",
    "google/gemma-3-12b-it": "Gemma Terms of Use",
    "google/gemma-3-27b-it": "Gemma Terms of Use",
    "microsoft/phi-4": "MIT",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "Apache-2.0",
}


def sources_of(cell: Cell) -> dict[str, PublishedFile]:
    """Where the files that a cell reads are to be had, by name, as far as they are published."""
    schema, names = cell.dataset.schema or "", eval_data_files(cell.material, cell.measurements)
    found = {
        name: DATA.get((schema, pool)) or DATA.get((schema, ""))
        for pool, name in cell.dataset.locations
    }
    found |= {str(cell.statistics.corpus): WIKIPEDIA}
    found |= {name: _evaluation_source(name) for name in names}
    return {name: source for name, source in found.items() if source is not None}


def _evaluation_source(name: str) -> PublishedFile | None:
    """Told by its name: measurements take any file."""
    return next((source for part, source in EVALUATION.items() if part in name.lower()), None)


def weights_licence(checkpoint: str) -> str | None:
    """The licence of a repository's weights, where it is known."""
    return WEIGHTS.get(checkpoint.partition("@")[0])

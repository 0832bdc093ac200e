"""Commands that write a user's own facts into a model, and take them back and away."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import refuse_without_use
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.run.editing import Exported
    from rledit.editing import Ledger, Session


# Options of `rledit edit` that say how facts are edited.
_EDITING = (
    "editor", "set_", "train", "train_on", "batch_size", "passes", "floor", "skip_bad_rows",
    "schema",
)  # fmt: skip


class Form(StrEnum):
    """Forms in which an edited model is taken away."""

    checkpoint = "checkpoint"
    delta = "delta"
    lora = "lora"


LedgerFolder = Annotated[Path, typer.Argument(help="Folder of a ledger, as `rledit edit` makes.")]
ModelNow = Annotated[
    str | None,
    typer.Option("--model", help="Where the ledger's model is now, if not where it was."),
]
Rank = Annotated[
    int | None,
    typer.Option("--rank", min=1, help="Rank of the adapter (default: the one that is exact)."),
]


def edit(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|LEDGER",
            help="A model as in a grid (preset, folder, owner/name@commit, GGUF file, wheel), or "
            "the folder of a ledger to go on with.",
        ),
    ],
    facts: Annotated[
        str | None,
        typer.Argument(
            help="JSON, JSONL, CSV or Parquet with `prompt` and `target`, or a known schema.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder of the ledger; goes on with one that is there."),
    ] = None,
    editor: Annotated[
        str | None,
        typer.Option("--editor", help="Default: the one that does best on this model."),
    ] = None,
    set_: Annotated[
        list[str],
        typer.Option("--set", help="A setting of the editor, NAME=VALUE in YAML. Repeatable."),
    ] = [],  # noqa: B006
    train: Annotated[
        bool,
        typer.Option("--train", help="Edit with a network that is trained first, once per model."),
    ] = False,
    train_on: Annotated[
        str | None,
        typer.Option("--train-on", help="Facts to train it on (default: those that ship)."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Facts that are taken back together.")
    ] = 50,
    passes: Annotated[
        int | None, typer.Option("--passes", min=1, help="Passes over a batch at most.")
    ] = None,
    floor: Annotated[
        float,
        typer.Option(
            "--floor", min=0.0, max=1.0, help="Share of what the model knows that is to be kept."
        ),
    ] = 0.9,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave rows out that cannot be edited.")
    ] = False,
    schema: Annotated[
        str, typer.Option("--format", help="Schema of the facts (default: found from the rows).")
    ] = "auto",
    dtype: Annotated[
        str, typer.Option("--dtype", help="float32, bfloat16 …; default: that of the files.")
    ] = "auto",
    prompt_style: Annotated[
        str, typer.Option("--prompt-style", help="plain, or chat: as a turn of the chat template.")
    ] = "plain",
    model: ModelNow = None,
    export: Annotated[
        Form | None, typer.Option("--export", help="Take the edited model away in this form.")
    ] = None,
    rank: Rank = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="Where the export goes (default: LEDGER/FORM).")
    ] = None,
) -> None:
    """Write your own facts into a model, and say what changed and what was lost.

    Exit 1 where a fact did not take.
    """
    from pipeline.run.editing import Wishes, check_wishes, edit_facts
    from rledit.editing import Ledger

    if facts is None and export is None:
        raise ConfigError("give a file of facts, or --export FORM to take a ledger's model away")
    if facts is None:
        why = "no facts are edited; give a file of facts, or leave it out"
        refuse_without_use(context, _EDITING, why)
    if export is None:
        refuse_without_use(context, ["to", "rank"], "nothing is taken away; add --export FORM")
    elif export is not Form.lora:
        refuse_without_use(context, ["rank"], "only an adapter has a rank; take --export lora")
    wishes = Wishes(
        editor=editor,
        settings=_settings(set_),
        format=schema,
        batch_size=batch_size,
        passes=passes,
        floor=floor,
        skip_bad_rows=skip_bad_rows,
        train=train,
        train_on=train_on,
    )
    if Ledger.is_at(target):
        why = "the ledger says how its model is loaded and prompted; leave it out"
        refuse_without_use(context, ["dtype", "prompt_style"], why)
    else:
        refuse_without_use(context, ["model"], f"no ledger is opened: the model is {target}")
    # Before a model is loaded.
    files = None if facts is None else check_wishes(facts, wishes)
    begins = not any(Ledger.is_at(place) for place in (target, out) if place is not None)
    session = _opened(target, out, model, dtype, prompt_style, new=facts is not None)
    failed = False
    if files is not None:
        try:
            result = edit_facts(session, files, wishes)
        except BaseException:
            if begins and isinstance(session.ledger, Ledger):
                session.ledger.drop_if_empty()
            raise
        typer.echo(result)
        numbers = ", ".join(map(str, result.batches))
        typer.echo(f"ledger   {_folder(session)}, batch {numbers or 'none new'}")
        failed = bool(result.failed)
    if export is not None:
        _export(session, export, to, rank)
    raise typer.Exit(int(failed))


def ledger(
    folder: LedgerFolder,
    show_facts: Annotated[
        bool, typer.Option("--facts", help="Every fact with its answer before and after.")
    ] = False,
) -> None:
    """List the batches of a ledger, in their order."""
    from rledit.editing import Ledger

    found = Ledger(folder)
    for line in _listing(found, show_facts):
        typer.echo(line)


def undo(
    folder: LedgerFolder,
    batches: Annotated[list[int], typer.Argument(help="Numbers of batches, as `ledger` lists.")],
    recompute: Annotated[
        bool,
        typer.Option(
            "--recompute/--keep", help="Compute later batches anew, or keep their changes."
        ),
    ] = False,
    model: ModelNow = None,
) -> None:
    """Take batches back exactly: the model is the unedited one plus the batches that remain."""
    from pipeline.run.editing import open_ledger
    from rledit.editing import Ledger

    for number in batches:
        Ledger(folder).batch(number)  # refused before a model is loaded
    typer.echo(open_ledger(folder, model, _tell).undo(batches, recompute))


def ask(
    folder: LedgerFolder,
    prompts: Annotated[list[str], typer.Argument(help="What to ask.", metavar="PROMPT...")],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens of an answer.")] = 20,
    model: ModelNow = None,
) -> None:
    """Ask the unedited and the edited model, side by side, with log-probabilities."""
    from pipeline.run.editing import ask as answers
    from pipeline.run.editing import open_ledger

    if any(not prompt.strip() for prompt in prompts):
        raise ConfigError("a prompt is empty, and nothing stands behind it; give some words")
    for one in answers(open_ledger(folder, model, _tell), prompts, tokens):
        typer.echo(one.prompt)
        for name, text, (then, now) in (
            ("unedited", one.unedited, one.logprobs[0]),
            ("edited", one.edited, one.logprobs[1]),
        ):
            typer.echo(f"  {name:9}{text!r}")
            typer.echo(f"           log-probability {_nats(then)} unedited, {_nats(now)} edited")


def export_ledger(folder: Path, to: Path, form: Form, rank: int | None, model: str | None) -> None:
    """Take the model of a ledger away; `rledit export` comes here with a ledger's folder."""
    from pipeline.run.editing import open_ledger
    from rledit.editing.files import require_empty

    if form is not Form.delta:
        require_empty(to)  # before a model is loaded
    _export(open_ledger(folder, model, _tell), form, to, rank)


def _opened(
    target: str, out: Path | None, model: str | None, dtype: str, prompt_style: str, new: bool
) -> Session:
    from pipeline.run.editing import open_host, open_ledger
    from rledit.editing import Ledger, Session, Supplies

    if Ledger.is_at(target):
        if out is not None and out.resolve() != Path(target).resolve():
            raise ConfigError(f"{target} is a ledger, and so is -o {out}; name one of them")
        return open_ledger(Path(target), model, _tell)
    if out is None or not new:
        raise ConfigError(
            f"{target} is no ledger; `rledit edit MODEL FACTS -o OUT` makes one, in the folder OUT"
        )
    if prompt_style not in ("plain", "bare", "chat"):
        raise ConfigError(f"--prompt-style {prompt_style}: expected plain or chat")
    if dtype not in ("auto", "float32", "bfloat16", "float16", "float64"):
        raise ConfigError(f"--dtype {dtype}: expected auto, float32, bfloat16, float16 or float64")
    prompting = {"prompt_style": prompt_style} if prompt_style == "chat" else {}
    there = Ledger(out) if Ledger.is_at(out) else None
    if there is not None:
        known = there.model
        if known.prompting != prompting or dtype not in ("auto", known.dtype):
            style = known.prompting.get("prompt_style", "plain")
            raise ConfigError(
                f"{out} is a ledger of a model in {known.dtype}, prompted as {style}; go on with "
                f"it as it is (rledit edit {out} FACTS), or name another folder"
            )
    else:
        Ledger.require_free(out)
    host = open_host(target, dtype, prompting)
    kept = there or Ledger.create(out, host.record(target))
    return Session(host, kept, Supplies(host, tell=_tell), _tell)


def _settings(items: list[str]) -> dict[str, Any] | None:
    import yaml

    found: dict[str, Any] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set {item}: expected NAME=VALUE")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {item}: no YAML ({error})") from None
        found[name.strip()] = tuple(parsed) if isinstance(parsed, list) else _number(parsed)
    return found or None


def _number(value: Any) -> Any:
    """A number that YAML takes for text, as it does 1e-3."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _export(session: Session, form: Form, to: Path | None, rank: int | None) -> None:
    from pipeline.run.editing import export_ledger

    place = to or _folder(session) / form.value
    made = export_ledger(session, form.value, place, rank)
    typer.echo(f"export   {made.path} ({made.n_bytes / 1e6:,.1f} MB)")
    if made.adapter is not None:
        for line in _adapter_lines(made):
            typer.echo(line)


def _adapter_lines(made: Exported) -> list[str]:
    adapter = made.adapter
    assert adapter is not None and made.costs is not None
    if adapter.exact:
        words = f"exact (needed is rank {adapter.needed})"
    else:
        words = (
            f"the nearest there is, {100 * adapter.error:.1f} % of the change left out; exact is "
            f"rank {adapter.needed}"
        )
    whole, cut = made.costs
    return [
        f"adapter  rank {adapter.rank}, {adapter.n_bytes / 1e6:,.1f} MB: {words}",
        f"         facts {made.exact} → {made.adapted} of {made.n_facts}, known facts "
        f"{whole.kept} → {cut.kept} of {whole.known}, perplexity {whole.perplexity:.1f} → "
        f"{cut.perplexity:.1f}",
    ]


def _listing(found: Ledger, show_facts: bool) -> list[str]:
    model = found.model
    lines = [
        f"model    {model.reference or 'not named'} ({model.architecture}, {model.dtype}), "
        f"fingerprint {model.fingerprint[:16]}"
    ]
    for batch in found.batches:
        record, own = batch.record, batch.facts
        took = sum(fact["result"]["took"] for fact in own)
        after = record["choosing"]["after"]
        kind = "dense" if record["dense"] else f"rank {record['rank']}"
        state = f"taken back {batch.undone}" if batch.undone else "in force"
        if batch.recomputed and not batch.undone:
            state += f", computed anew {batch.recomputed}"
        lines.append(
            f"batch {batch.number}  {took} of {len(own)} facts, {record['method']['editor']}, "
            f"{kind}, {len(record['passes'])} passes, {record['seconds']:.0f} s, kept "
            f"{after['kept']} of {after['known']}: {state}"
        )
        if show_facts:
            lines += [
                f"  {'✓' if f['result']['took'] else '✗'} {f['prompt']} {f['target']}   "
                f"(before {f['result']['before']!r}, after {f['result']['after']!r})"
                for f in own
            ]
    lines.append(f"{len(found.in_force)} of {len(found.batches)} batches in force")
    return lines


def _folder(session: Session) -> Path:
    from rledit.editing import Ledger

    assert isinstance(session.ledger, Ledger)
    return session.ledger.folder


def _nats(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"


def _tell(line: str) -> None:
    typer.echo(line, err=True)

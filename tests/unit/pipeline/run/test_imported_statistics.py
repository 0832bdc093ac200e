"""Published statistics: verified files are used as computed ones are, all others refused."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.inputs.corpus import open_corpus
from pipeline.inputs.published_statistics import MISSING, file_hash, read_sum
from pipeline.paper.comparability import _other_covariance
from pipeline.plan.cell_keys import corpus_hash_of, identity_of, key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.results.lake.lake import Lake
from pipeline.results.query import runs
from pipeline.results.report_facts import provenance
from pipeline.results.tables import build_table
from pipeline.run.cache import Cache
from pipeline.run.cell import run_cell
from pipeline.run.import_statistics import import_statistics
from pipeline.run.imported_statistics import load_imported, require_imports
from pipeline.run.reporting import silent
from pipeline.run.shared_covariance import export_published
from pipeline.run.stages import covariance
from pipeline.run.stages.edit import edit_stream, edited_name
from pipeline.run.tasks import tasks_of
from rledit.locate.covariance import CovarianceError
from rledit.locate.nullspace import null_space
from rledit.locate.output_gradients import gradients_of
from tests.unit.helpers.prepared import prepared_model

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
LINEARS = tuple(f"model.layers.{i}.mlp.down_proj" for i in range(2))


class Published:
    """A model, the text its statistics are of, and these as files."""

    def __init__(self, place: Path) -> None:
        (plain,) = cells_of(load_grid(GRID, ["editors=[{editor: memit}]"]))
        self.cache = Cache(place / "own" / "cache")
        self.folder = prepared_model(plain, self.cache)
        self.corpus = place / "text.txt"
        self.corpus.write_text("\n".join(open_corpus(None, 400, plain.world()).documents))
        own = self.cell("memit")
        covariance.collect(own, 0, self.folder, self.cache, silent)
        self.files = dict(
            zip(LINEARS, sorted(export_published([own], self.cache, place / "files")), strict=True)
        )

    def settings(self, editor: str, *more: str) -> list[str]:
        return [
            f"editors=[{{editor: {editor}, settings: {{target_modules: ['down:all']}}}}]",
            f"models.0.checkpoint={self.folder}",
            f"covariance.corpus={self.corpus}",
            "covariance.documents=400",
            "keep_edited=true",
            *more,
        ]

    def cell(self, editor: str, *more: str) -> Cell:
        (found,) = cells_of(load_grid(GRID, self.settings(editor, *more)))
        return found

    def take(self, path: Path, module: str, cache: Cache) -> str:
        (taken,) = import_statistics(
            path, str(self.folder), [module], cache, corpus=str(self.corpus)
        )
        return taken.file_hash

    def command(self, path: Path, results: Path, *modules: str) -> list[str]:
        named = [word for module in modules for word in ("--module", module)]
        asked = ["statistics", "import", str(path), "--model", str(self.folder), *named]
        return [*asked, "--corpus", str(self.corpus), "--results", str(results)]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published(tmp_path_factory.mktemp("published"))


def changed(path: Path, to: Path, **arrays: object) -> Path:
    """A copy of a file with other arrays."""
    with np.load(path) as archive:
        found = {name: archive[name] for name in archive.files}
    with to.open("wb") as file:
        np.savez(file, **(found | {name.replace("__", "."): v for name, v in arrays.items()}))
    return to


def named(kind: str, hashes: dict[str, str]) -> str:
    return f"covariance.{kind}={json.dumps({'llama-tiny': hashes})}"


def edited(cell: Cell, folder: Path, cache: Cache) -> dict[str, torch.Tensor]:
    edit_stream(cell, folder, cache, None, silent)
    return load_file(cache.folder / edited_name(cell))


def test_own_statistics_exported_and_imported_edit_alike(
    published: Published, tmp_path: Path
) -> None:
    """By the commands, as a person would; every bit of the edited matrices is the same."""
    own = edited(published.cell("memit"), published.folder, published.cache)
    cache, blocks = Cache(tmp_path / "cache"), []
    for linear, path in published.files.items():
        assert path.name == f"{linear}_float32_mom2_400.npz"
        assert path.parent.name == "text_stats"
        told = CliRunner().invoke(app, published.command(path, tmp_path, linear))
        assert told.exit_code == 0, told.output
        assert f"{linear}: verified" in told.output
        assert re.search(
            r"cosine of the correlations of different inputs is 0\.9\d+, expected", told.output
        )
        blocks.append(yaml.safe_load(told.output.partition("there:\n\n")[2])["covariance"])
    assert [list(block) for block in blocks] == [["imported"]] * 2
    name = published.folder.name
    hashes = {k: v for block in blocks for k, v in block["imported"][name].items()}

    grid = published.cell("memit", named("imported", hashes), "covariance.corpus=null")
    assert not any(task.kind == "statistics" for task in tasks_of([grid]).values())
    found = edited(grid, published.folder, cache)
    assert own.keys() == found.keys() and all(torch.equal(own[name], found[name]) for name in own)
    rows = edit_stream(grid, published.folder, cache, None, silent)
    said = rows.facts["statistics"]["files"][LINEARS[0]]
    assert said["sha256"] == hashes[LINEARS[0]] and said["documents"] == 400
    assert said["tokens"] == read_sum(published.files[LINEARS[0]]).count


class Factors:
    """Files as CrispEdit writes them, of a model's own covariances."""

    def __init__(self, published: Published, place: Path) -> None:
        self.own = published.cell("crispedit")
        covariance.collect(self.own, 0, published.folder, published.cache, silent)
        found = covariance.load_covariance(self.own, published.cache, LINEARS)
        self.files = {}
        for linear in LINEARS:
            keys, gradients = found[linear], found[gradients_of(linear)]
            given = {"A": keys.mean(), "B": gradients.mean(), "N": gradients.count}
            self.files[linear] = self.write(place / f"{linear}_float32_kfac_400.npz", given)

    @staticmethod
    def write(path: Path, given: object) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(given, path)
        return path


def test_both_covariances_of_a_file_of_crispedit_are_verified_and_used(
    published: Published, tmp_path: Path
) -> None:
    factors, cache = Factors(published, tmp_path / "files"), Cache(tmp_path / "cache")
    hashes: dict[str, str] = {}
    for linear, path in factors.files.items():
        told = CliRunner().invoke(app, published.command(path, tmp_path, linear))
        assert told.exit_code == 0, told.output
        block = yaml.safe_load(told.stdout[told.stdout.index("covariance:") :])
        (entry,) = block["covariance"]["imported"].values()
        assert entry == {
            linear: f"{file_hash(path)}#0",
            gradients_of(linear): f"{file_hash(path)}#1",
        }
        assert "correlation of the logarithms of the gradients' diagonals is" in told.stdout
        hashes |= entry
    imported = published.cell("crispedit", named("imported", hashes))
    assert identity_of(imported)["statistics"] == {"imported": hashes}
    assert not [t for t in tasks_of([imported]).values() if t.kind == "statistics"]
    found = edited(imported, published.folder, cache)
    own = edited(factors.own, published.folder, published.cache)
    for name, value in own.items():  # but for the rounding of means to sums
        torch.testing.assert_close(found[name], value, rtol=1e-2, atol=1e-4)
    # Texts that covariance may be taken anew of are part of what the numbers depend on.
    settings = published.settings("crispedit", named("imported", hashes))
    again = "settings: {target_modules: ['down:all'], recompute_at: 0.25}"
    settings[0] = f"editors=[{{editor: crispedit, {again}}}]"
    (anew,) = cells_of(load_grid(GRID, settings))
    assert identity_of(anew)["statistics"] == {
        "imported": hashes,
        "corpus_hash": corpus_hash_of(anew),
    }
    # An editor that needs keys alone takes them from the same file.
    keys = {linear: hashes[linear] for linear in LINEARS}
    memit = published.cell("memit", named("imported", hashes))
    assert identity_of(memit)["statistics"] == {"imported": keys}
    with pytest.raises(ConfigError, match=r"has no model\.layers\.0\.mlp\.down_proj\.output_grad"):
        identity_of(published.cell("crispedit", named("imported", keys)))


def test_a_file_of_crispedit_is_refused_with_the_number_that_failed(
    published: Published, tmp_path: Path
) -> None:
    factors = Factors(published, tmp_path / "files")
    linear, other = LINEARS
    good = torch.load(factors.files[linear], weights_only=True)
    strange = torch.load(factors.files[other], weights_only=True)
    n = len(good["B"])
    noise = torch.randn(n, 4 * n, generator=torch.Generator().manual_seed(0)) / n
    shuffled = torch.diag(good["B"].diagonal().flip(0))
    cases: list[tuple[object, str]] = [
        (
            {**good, "B": good["B"][1:, 1:]},
            rf"width of the matrix .*expected {n}×{n}, as the linear has {n} outputs",
        ),
        ({**good, "B": -good["B"]}, r"of output gradients of .*smallest eigenvalue over"),
        ({**good, "B": noise @ noise.T}, r"of the gradients' diagonals is .*at least 0\.4"),
        ({**good, "B": shuffled}, r"of the gradients' diagonals is .*at least 0\.4"),
        ({**good, "A": strange["A"]}, r"as key covariance of .*is refused"),
        ({**good, "N": 3}, "number of tokens is 3"),
        ({**good, "N": 1.5}, "N is 1.5; expected a whole number"),
        ({"A": good["A"], "N": 5}, "B missing; expected A and B"),
        ({**good, "A": good["A"].half()}, "A is torch.float16"),
        (good["A"], "A, B, N missing.*found Tensor"),
    ]
    for i, (given, message) in enumerate(cases):
        path = Factors.write(tmp_path / f"{i}_kfac_1.npz", given)
        cache = Cache(tmp_path / f"cache{i}")
        with pytest.raises(CovarianceError, match=message):
            published.take(path, linear, cache)
        assert not list(cache.folder.glob("statistics/imported/**/*.safetensors"))
    with pytest.raises(ConfigError, match="is of one linear, and --module names 2"):
        published.take(factors.files[linear], "down:all", Cache(tmp_path / "cache"))
    path, trace = tmp_path / "code_kfac_1.npz", tmp_path / "trace"
    torch.save({**good, "N": Runs(trace)}, path)
    with pytest.raises(CovarianceError, match="which loading it in full would run as code"):
        published.take(path, linear, Cache(tmp_path / "cache"))
    assert not trace.exists()


def test_an_imported_statistic_never_passes_for_a_computed_one(
    published: Published, tmp_path: Path
) -> None:
    hashes = {k: published.take(v, k, Cache(tmp_path)) for k, v in published.files.items()}
    own, imported = published.cell("memit"), published.cell("memit", named("imported", hashes))
    assert key_of(own) != key_of(imported)
    assert identity_of(imported)["statistics"] == {"imported": hashes}
    assert "imported" not in identity_of(own)["statistics"]
    taken = load_imported(imported, Cache(tmp_path))
    assert {m.identity.corpus_hash for m in taken.values()} == {
        f"imported:{known}" for known in hashes.values()
    }
    # What is written for others is what was computed here.
    with pytest.raises(ConfigError, match="no editor of this grid needs key covariance"):
        export_published([imported], Cache(tmp_path), tmp_path / "again")
    # An editor of other linears does not change by it, nor does one that needs none.
    other = published.cell("ultraedit")
    assert key_of(other) == key_of(published.cell("ultraedit", named("imported", hashes)))


def test_a_grid_says_what_it_lacks_before_anything_runs(
    published: Published, tmp_path: Path
) -> None:
    cell = published.cell("memit", named("imported", dict.fromkeys(LINEARS, "ab" * 32)))
    with pytest.raises(
        ConfigError, match=f"abababababab….*not in the cache.*--module {LINEARS[1]}"
    ):
        require_imports([cell], str(tmp_path))
    for wrong, why in (
        ({LINEARS[0]: "ab" * 32}, f"has no {LINEARS[1]}, which memit edits"),
        (dict.fromkeys(LINEARS, "ab"), "expected the hash that `rledit statistics import` prints"),
        ({"model.layers.7.mlp.down_proj": "ab" * 32}, "layers.7"),
    ):
        with pytest.raises(ConfigError, match=re.escape(why)):
            key_of(published.cell("memit", named("imported", wrong)))
    with pytest.raises(ConfigError, match="gpt-j"):
        published.cell("memit", "covariance.imported={gpt-j: {}}")


def test_the_plan_shows_imported_statistics(published: Published, tmp_path: Path) -> None:
    grid, hashes = tmp_path / "grid.yaml", dict.fromkeys(LINEARS, "cd" * 32)
    grid.write_text(GRID.read_text())
    more = published.settings("memit", named("imported", hashes))
    asked = ["plan", str(grid), "--results", str(tmp_path)]
    asked += [word for setting in more for word in ("--set", setting)]
    told = CliRunner().invoke(app, asked)
    assert told.exit_code == 1
    lack = f"llama-tiny: key covariance of {LINEARS[0]}, imported file cdcdcdcdcdcd…, is not in the"
    assert lack in told.output
    for linear, path in published.files.items():
        hashes[linear] = published.take(path, linear, Cache(tmp_path / "cache"))
    more = published.settings("memit", named("imported", hashes))
    asked = asked[:4] + [word for setting in more for word in ("--set", setting)]
    told = CliRunner().invoke(app, asked)
    assert told.exit_code == 0, told.output
    assert f"imported file {hashes[LINEARS[1]][:12]}…, verified, is in the cache" in told.output


NUMBERS = {
    "the mean instead of the sum": (
        lambda total, count, _: {"mom2__mom2": total / count},
        r"mean of the diagonal over the sample's is 0\.000\d+, expected 0\.571 to 1\.75",
    ),
    "twice the sum": (
        lambda total, count, _: {"mom2__mom2": 2 * total},
        r"mean of the diagonal over the sample's is 1\.99\d*, expected 0\.571 to 1\.75",
    ),
    "documents counted for tokens": (
        lambda total, count, documents: {"mom2__count": documents},
        r"tokens per document \(400 in 400\) is 1, expected at least 2",
    ),
    "more tokens than the window holds": (
        lambda total, count, documents: {"sample_size": np.array(10)},
        r"tokens per document \(3,586 in 10\) is 358\.6, expected at most 64",
    ),
    "too few tokens": (
        lambda total, count, _: {"mom2__count": np.array(200)},
        "number of tokens is 200, expected at least 257",
    ),
    "not symmetric": (
        lambda total, count, _: {"mom2__mom2": total + np.triu(0.01 * total)},
        r"largest difference from the transpose, over the largest entry, is 0\.00\d+, expected",
    ),
    "negative throughout": (
        lambda total, count, _: {"mom2__mom2": -total},
        r"smallest eigenvalue over the largest is -1, expected at least -0\.0001",
    ),
    "not positive": (
        lambda total, count, _: {"mom2__mom2": total - 0.01 * np.trace(total) * np.eye(len(total))},
        r"smallest eigenvalue over the largest is -0\.\d+, expected at least -0\.0001",
    ),
    "not finite": (
        lambda total, count, _: {"mom2__mom2": np.where(np.eye(len(total)) > 0, np.inf, total)},
        r"number of entries that are not finite is 256, expected 0",
    ),
    "another width": (
        lambda total, count, _: {"mom2__mom2": total[:64, :64]},
        r"width of the matrix \(64×64\) is 64, expected 256×256, as the linear has 256 inputs",
    ),
    "inputs in another order": (
        lambda total, count, _: {"mom2__mom2": np.roll(total, 3, (0, 1))},
        r"correlation of the logarithms of the diagonals is -?0\.[0-3]\d*, expected at least",
    ),
    "no correlations": (
        lambda total, count, _: {"mom2__mom2": np.diag(np.diagonal(total))},
        r"cosine of the correlations of different inputs is 0, expected at least 0\.1",
    ),
}


@pytest.mark.parametrize("what", NUMBERS)
def test_a_file_is_refused_with_the_number_that_failed(
    published: Published, tmp_path: Path, what: str
) -> None:
    change, why = NUMBERS[what]
    path = published.files[LINEARS[0]]
    with np.load(path) as archive:
        arrays = change(*(archive[n] for n in ("mom2.mom2", "mom2.count", "sample_size")))
    wrong = changed(path, tmp_path / "wrong.npz", **arrays)
    with pytest.raises(CovarianceError, match=why) as refused:
        published.take(wrong, LINEARS[0], Cache(tmp_path / "cache"))
    assert str(wrong) in str(refused.value) and "--corpus" in str(refused.value)
    assert not list(tmp_path.glob("cache/statistics/**/*.safetensors")), "nothing was taken"


def test_the_linear_that_is_named_has_to_fit_best(published: Published, tmp_path: Path) -> None:
    results, path = tmp_path / "results", published.files[LINEARS[1]]
    told = CliRunner().invoke(app, published.command(path, results, LINEARS[0]))
    assert isinstance(told.exception, CovarianceError)
    fits = rf"diagonals of {LINEARS[0]} is 0\.1\d*, expected at least 0\.9\d*, that of {LINEARS[1]}"
    assert re.search(fits, str(told.exception))
    assert not list(results.glob("**/*.safetensors"))


def test_a_mixture_of_two_linears_is_refused_for_the_better_one_alone(
    published: Published, tmp_path: Path
) -> None:
    """What leans to another linear is refused though nothing else of it is far off."""
    one, other = (read_sum(published.files[name]) for name in LINEARS)
    mixed = (0.35 * one.total + 0.65 * other.total).numpy()
    path = changed(one.path, tmp_path / "mixed.npz", mom2__mom2=mixed)
    with pytest.raises(CovarianceError, match=f"at least .*, that of {LINEARS[1]}"):
        published.take(path, LINEARS[0], Cache(tmp_path / "cache"))


class Runs:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("form", ["npz of objects", "pickle called npz", "pickle called pt"])
def test_nothing_pickled_is_run(published: Published, tmp_path: Path, form: str) -> None:
    trace, path = tmp_path / "trace", tmp_path / f"file.{form.rpartition(' ')[2]}"
    if form == "npz of objects":
        path = tmp_path / "file.npz"
        with path.open("wb") as file:
            np.savez(file, **{"mom2.mom2": np.array([Runs(trace)], dtype=object)})
    else:
        path.write_bytes(pickle.dumps(Runs(trace)))
        if path.suffix == ".pt":
            torch.save(Runs(trace), path)
    with pytest.raises(CovarianceError, match="run code when|run as code") as refused:
        published.take(path, LINEARS[0], Cache(tmp_path / "cache"))
    assert path.name in str(refused.value) and not trace.exists()


def test_what_is_cut_short_or_missing_is_refused(published: Published, tmp_path: Path) -> None:
    whole = published.files[LINEARS[0]]
    nothing = np.array(MISSING, dtype=np.uint64).view(np.float64)
    short = tmp_path / "short.npz"
    short.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    cases = [
        (short, "cut short or damaged"),
        (tmp_path / "absent.npz", "No such file"),
        (changed(whole, tmp_path / "a.npz", mom2__count=nothing), "mom2.count missing"),
        (changed(whole, tmp_path / "b.npz", mom2__count=np.array(2.5)), "mom2.count is 2.5"),
        (changed(whole, tmp_path / "c.npz", mom2__mom2=np.ones((2, 3), "f4")), r"shape \[2, 3\]"),
    ]
    for path, why in cases:
        with pytest.raises(CovarianceError, match=why) as refused:
            published.take(path, LINEARS[0], Cache(tmp_path / "cache"))
        assert path.name in str(refused.value)
    # Documents that the file does not tell are no fault of it.
    untold = changed(whole, tmp_path / "untold.npz", sample_size=nothing)
    assert read_sum(untold).documents is None
    assert published.take(untold, LINEARS[0], Cache(tmp_path / "cache")) == file_hash(untold)
    with pytest.raises(ConfigError, match="--module model.layers.9.mlp.down_proj"):
        published.take(whole, "model.layers.9.mlp.down_proj", Cache(tmp_path / "cache"))


def projections(published: Published, threshold: float = 0.02) -> torch.Tensor:
    sums = {name: read_sum(path) for name, path in published.files.items()}
    return torch.stack(
        [null_space(s.total / s.count, threshold, name).projection for name, s in sums.items()]
    )


def test_alphaedit_uses_imported_projections(published: Published, tmp_path: Path) -> None:
    own = edited(published.cell("alphaedit"), published.folder, published.cache)
    path, cache = tmp_path / "null_space_project.pt", Cache(tmp_path / "cache")
    torch.save(projections(published), path)
    told = CliRunner().invoke(app, published.command(path, tmp_path, "down:all"))
    assert told.exit_code == 0, told.output
    block = yaml.safe_load(told.output.partition("there:\n\n")[2])["covariance"]
    hashes = block["projections"][published.folder.name]
    assert hashes == {name: f"{file_hash(path)}#{i}" for i, name in enumerate(LINEARS)}
    cell = published.cell("alphaedit", named("projections", hashes))
    found = edited(cell, published.folder, cache)
    assert all(torch.equal(own[name], found[name]) for name in own)
    assert identity_of(cell)["statistics"] == {"projections": hashes}
    # Other editors go on with key covariance.
    assert key_of(published.cell("memit")) == key_of(
        published.cell("memit", named("projections", hashes))
    )
    with pytest.raises(CovarianceError, match="holds a projection, of which no key covariance"):
        load_imported(published.cell("memit", named("imported", hashes)), cache)


def test_projections_are_refused_with_the_number_that_failed(
    published: Published, tmp_path: Path
) -> None:
    right = projections(published)
    tilted = right.clone()
    tilted[0, 0, 1] += 0.1
    far = torch.eye(right.shape[-1]) - right
    cases = [
        (
            right.flip(0),
            LINEARS,
            f"of {LINEARS[0]} is .*, expected at least .*, that of {LINEARS[1]}",
        ),
        (0.9 * right, LINEARS, "largest entry of P² − P is 0.0"),
        (tilted, LINEARS, "largest difference from the transpose"),
        (far, LINEARS, r"over that per direction is [1-9].*, expected at most 0\.9"),
        (torch.eye(right.shape[-1]).repeat(2, 1, 1), LINEARS, "rank is 256, expected at most 255"),
        (right[:, :64, :64], LINEARS, "width of the matrix"),
        (right * float("nan"), LINEARS, "entries that are not finite"),
    ]
    path = tmp_path / "p.pt"
    for tensor, modules, why in cases:
        torch.save(tensor.contiguous(), path)
        with pytest.raises(CovarianceError, match=why):
            import_statistics(
                path,
                str(published.folder),
                modules,
                Cache(tmp_path / "cache"),
                corpus=str(published.corpus),
            )
    with pytest.raises(ConfigError, match="projections of 2 linears, and --module names 1"):
        published.take(path, LINEARS[0], Cache(tmp_path / "cache"))
    torch.save({"P": right}, path)
    with pytest.raises(CovarianceError, match="expected one tensor"):
        published.take(path, LINEARS[0], Cache(tmp_path / "cache"))
    assert not list(tmp_path.glob("cache/statistics/**/*.safetensors"))


def test_a_model_of_other_weights_is_refused(published: Published, tmp_path: Path) -> None:
    """The same shapes, names and tokenizer; every number of the file itself is sound."""
    other = shutil.copytree(published.folder, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    torch.manual_seed(0)
    mixed = {k: v[:, torch.randperm(v.shape[1])] if v.ndim == 2 else v for k, v in weights.items()}
    save_file({k: v.contiguous() for k, v in mixed.items()}, other / "model.safetensors")
    path, cache = published.files[LINEARS[0]], Cache(tmp_path / "cache")
    with pytest.raises(
        CovarianceError, match="cosine of the correlations of different inputs is 0.0"
    ):
        import_statistics(path, str(other), [LINEARS[0]], cache, corpus=str(published.corpus))


def test_tables_reports_and_comparisons_say_what_was_imported(
    published: Published, tmp_path: Path
) -> None:
    cache, lake = Cache(tmp_path / "cache"), Lake(str(tmp_path / "lake"))
    hashes = {k: published.take(v, k, cache) for k, v in published.files.items()}
    cell = published.cell("memit", named("imported", hashes))
    run_cell(cell, published.folder, None, cache, lake, silent)
    used = f"key covariance imported: {LINEARS[0]} {hashes[LINEARS[0]][:12]}, {LINEARS[1]} "
    (note,) = [n for n in build_table(runs(lake)).notes if "imported" in n]
    assert note.startswith(f"Not computed here: memit on llama-tiny used {used}")
    (record,) = lake.manifest()
    assert dict(provenance([record]))["imported statistics"].startswith(used)
    reasons = list(_other_covariance(record.values["identity"]["statistics"], cell))
    assert len(reasons) == 1 and hashes[LINEARS[0]][:12] in reasons[0]

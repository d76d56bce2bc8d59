"""Layout of EAT's code (arXiv:2401.03497), which trains data2vec 2.0 on spectrograms as a model of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from d2v.interop.fairseq.config import Node, node_of_2, refuse
from d2v.interop.fairseq.data2vec import is_version_2, prefix_of_2
from d2v.interop.fairseq.layout import Layout, Settings, State
from d2v.interop.fairseq.names import rules_of_2
from d2v.interop.fairseq.recipe import recipe_of
from d2v.interop.renaming import Renaming

NUM_MELS = 128  # like the next, a constant of that code
PATCH_SIZE = 16
MEAN, STD = -4.268, 4.569  # AudioSet's
MODALITIES = {"IMAGE": "spectrogram"}

_POSITIONS = "modality_encoders.IMAGE.fixed_positional_encoder.positions"


def inputs_of_eat(num_frames: int) -> Node:
    """Return the form of inputs, under the keys of conf/inputs/spectrogram.yaml."""
    sizes = {"sample_rate": 16_000, "num_frames": num_frames, "num_mels": NUM_MELS, "patch_size": PATCH_SIZE}
    return {**sizes, "mean": MEAN, "std": STD}


def frontend_of_eat(embed_dim: int, num_frames: int, positions: Tensor, num_prefix_tokens: int) -> Node:
    """Return the node of the frontend with such a table of positions.

    Args:
        embed_dim: features.
        num_frames: of a spectrogram in training.
        positions: (1, rows, features); files hold different numbers of rows.
        num_prefix_tokens: of the model.
    """
    max_frames = positions.shape[1] // (NUM_MELS // PATCH_SIZE) * PATCH_SIZE
    return {
        "_target_": "d2v.nn.frontends.spectrogram.SpectrogramFrontend",
        "embed_dim": embed_dim,
        "num_frames": min(num_frames, max_frames),
        "num_mels": NUM_MELS,
        "patch_size": PATCH_SIZE,
        "max_frames": max_frames,
        "num_prefix_tokens": num_prefix_tokens,
    }


def _is_eat(state: State, cfg: Settings, task: Settings) -> bool:
    """Return whether a model of images has the settings that EAT added."""
    own = (cfg.get("modalities") or {}).get("image") or {}
    marked = "target_length" in own or "max_length" in own or bool(task.get("audio_mae"))
    return marked and is_version_2(state) and _POSITIONS in state


def _frontend(cfg: Settings, own: Settings, state: State) -> Node:
    refuse(own, {"in_chans": 1, "patch_size": PATCH_SIZE, "num_extra_tokens": 1})
    return frontend_of_eat(cfg["embed_dim"], own.get("target_length", 1024), state[_POSITIONS], own["num_extra_tokens"])


def _recipe(frontend: Mapping[str, Any]) -> dict[str, Any]:
    """Return their configuration of our frontend. Raises ValueError for sizes that their code does not have."""
    for key, only in (("num_mels", NUM_MELS), ("patch_size", PATCH_SIZE)):
        if frontend.get(key, only) != only:
            raise ValueError(f"format=fairseq: EAT's code has {key}={only} only, this model {frontend[key]}")
    return {
        "input_size": 224,  # not read
        "patch_size": PATCH_SIZE,
        "in_chans": 1,
        "embed_dim": frontend["embed_dim"],
        "fixed_positions": True,
        "target_length": frontend.get("num_frames", 1024),
        "max_length": frontend.get("max_frames", 12288) // PATCH_SIZE,
    }


EAT = Layout(
    name="eat",
    modality=lambda _: "spectrogram",
    matches=_is_eat,
    renaming=Renaming(rules_of_2(MODALITIES)),
    node=lambda cfg, state, batch_size: node_of_2(cfg, state, batch_size, MODALITIES, {"IMAGE": _frontend}),
    inputs=lambda frontend, _: inputs_of_eat(frontend["num_frames"]),
    teacher_prefix=prefix_of_2,
    head_names={"fc_norm": "norm", "head": "proj"},
    head_class=lambda _: "d2v.models.cls_head.ClsHead",
    modalities=("spectrogram",),
    recipe=lambda node: recipe_of(node, MODALITIES, {"spectrogram": _recipe}),
    task=lambda inputs: {"audio_mae": True, "target_length": inputs.get("num_frames", 1024)},
)

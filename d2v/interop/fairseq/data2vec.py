"""Layouts of data2vec's own code (fairseq, examples/data2vec): 2.0 of any modality, and 1.0 of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from d2v.interop.build import check_node
from d2v.interop.fairseq.config import NODES_OF_1, Node, node_of_2
from d2v.interop.fairseq.layout import Layout, Settings, State
from d2v.interop.fairseq.names import MODALITIES, RENAMINGS_OF_1, rules_of_2
from d2v.interop.fairseq.recipe import recipe_of
from d2v.interop.renaming import Renaming
from d2v.nn.positions import sincos_2d

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

_MAX_SIDE = 1024  # patches: positions that no file holds are computed for so many
_IMAGE = "student.frontends.image"

# Names of a head's modules, theirs and ours.
_HEADS: dict[str, dict[str, str]] = {
    "image": {"fc_norm": "norm", "head": "proj"},
    "speech": {"w2v_encoder.proj": "proj"},
    "text": {
        "classification_heads.sentence_classification_head.dense": "dense",
        "classification_heads.sentence_classification_head.out_proj": "proj",
    },
}
_HEAD_CLASSES = {
    "image": "d2v.models.heads.MeanPoolHead",
    "speech": "d2v.models.heads.FrameHead",
    "text": "d2v.models.heads.FirstTokenHead",
}
# A parameter of every model of 1.0, and what the names of its teacher's parameters lack.
_MARKS_OF_1 = {
    "text": ("encoder.sentence_encoder.embed_tokens.weight", "encoder.sentence_encoder."),
    "speech": ("feature_extractor.conv_layers.0.0.weight", "encoder."),
    "image": ("patch_embed.conv.weight", "encoder."),
}


def _modality_of_2(names: Mapping[str, object]) -> str:
    return next(
        ours
        for theirs, ours in MODALITIES.items()
        if any(name.startswith(f"modality_encoders.{theirs}.") for name in names)
    )


def is_version_2(state: Mapping[str, object]) -> bool:
    """Return whether parameters have the names of 2.0."""
    return any(name.startswith("modality_encoders.") for name in state)


def prefix_of_2(names: Mapping[str, object]) -> str:
    """Return what the names of a teacher of 2.0 lack: "blocks." if it is a stack of blocks."""
    return "blocks." if all(name[0].isdigit() for name in names) else ""


def _positions(state: State, frontend: Node) -> dict[str, Tensor]:
    """Return the positions of images. Raises ValueError for more patches than any image has."""
    if f"{_IMAGE}.proj.weight" not in state:
        return {}
    check_node(frontend, key="model.encoder.frontends.image")
    side: int = frontend["img_size"] // frontend["patch_size"]
    if side > _MAX_SIDE:
        raise ValueError(f"images of {side} x {side} patches; at most {_MAX_SIDE} are read")
    return {f"{_IMAGE}.positions": sincos_2d((side, side), len(state[f"{_IMAGE}.proj.weight"]))}


def _inputs(frontend: Node, task: Settings) -> Node:
    if "img_size" in frontend:
        sizes = {key: frontend[key] for key in ("img_size", "patch_size", "in_chans")}
        return {**sizes, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    if "conv_layers" in frontend:
        return {"sample_rate": int(task.get("sample_rate") or 16_000), "conv_layers": frontend["conv_layers"]}
    keys = {"pad_id": "pad_id", "vocab_size": "vocab_size", "max_positions": "block_size"}
    return {ours: frontend[key] for key, ours in keys.items()} | {"tokenizer": None}


def _task(inputs: Settings) -> dict[str, Any]:
    return {"sample_rate": inputs["sample_rate"]} if "sample_rate" in inputs else {}


VERSION_2 = Layout(
    name="2.0",
    modality=_modality_of_2,
    matches=lambda state, _cfg, _task: is_version_2(state),
    renaming=Renaming(rules_of_2()),
    node=node_of_2,
    inputs=_inputs,
    teacher_prefix=prefix_of_2,
    constants=_positions,
    head_names={theirs: ours for names in _HEADS.values() for theirs, ours in names.items()},
    head_class=_HEAD_CLASSES.__getitem__,
    modalities=tuple(MODALITIES.values()),
    recipe=recipe_of,
    task=_task,
)


def _version_1(modality: str) -> Layout:
    mark, prefix = _MARKS_OF_1[modality]
    return Layout(
        name=modality,
        modality=lambda _: modality,
        matches=lambda state, _cfg, _task: mark in state,
        renaming=RENAMINGS_OF_1[modality],
        node=lambda cfg, state, _: NODES_OF_1[modality](cfg, state),
        inputs=_inputs,
        teacher_prefix=lambda _: prefix,
        head_names=_HEADS[modality],
        head_class=_HEAD_CLASSES.__getitem__,
    )


VERSION_1 = tuple(map(_version_1, _MARKS_OF_1))

"""Reading of EAT's models on Hugging Face (model_type "eat"), pretrained and fine-tuned, without their code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2v.interop.fairseq.eat import NUM_MELS, PATCH_SIZE, frontend_of_eat, inputs_of_eat
from d2v.interop.huggingface.config import class_names, is_like
from d2v.interop.huggingface.inputs import read_json
from d2v.interop.huggingface.names import HEAD
from d2v.interop.huggingface.reading import load_state
from d2v.interop.imported import Imported, Node
from d2v.interop.renaming import Renaming, Rule

MODEL_TYPE = "eat"

_FRONTEND, _POSITIONS = "frontends.spectrogram", "fixed_positional_encoder.positions"
_RENAMING = Renaming(
    [
        Rule("local_encoder.proj.{p}", f"{_FRONTEND}.proj.{{p}}"),
        Rule("extra_tokens", f"{_FRONTEND}.prefix_tokens", (0,)),
        Rule(_POSITIONS, f"{_FRONTEND}.positions", (0,)),
        Rule("pre_norm.{p}", "input_norms.spectrogram.{p}"),
        *[
            Rule(f"blocks.{{n}}.{name}.{{p}}", f"trunk.blocks.{{n}}.{name}.{{p}}")
            for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        ],
        Rule("fc_norm.{p}", f"{HEAD}norm.{{p}}"),
        Rule("head.{p}", f"{HEAD}proj.{{p}}"),
    ]
)
# Our arguments of the encoder by their keys in config.json, with the defaults of their class.
_ARGUMENTS: dict[str, tuple[str, Any]] = {
    "embed_dim": ("embed_dim", 768),
    "depth": ("depth", 12),
    "num_heads": ("num_heads", 12),
    "mlp_ratio": ("mlp_ratio", 4.0),
    "layer_norm_first": ("norm_first", False),
    "norm_eps": ("norm_eps", 1e-6),
    "drop_rate": ("drop_rate", 0.0),
    "attn_drop_rate": ("attn_drop_rate", 0.0),
    "activation_dropout": ("mlp_drop_rate", 0.0),
    "post_mlp_drop": ("post_mlp_drop_rate", 0.0),
    "end_drop_path_rate": ("drop_path_rate", 0.0),
}
# Keys with a single supported value, which is also their default.
_ONLY: dict[str, Any] = {
    "in_chans": 1, "patch_size": PATCH_SIZE, "stride": PATCH_SIZE, "mel_bins": NUM_MELS, "qkv_bias": True,
    "norm_affine": True, "fixed_positions": True,
}  # fmt: skip
_HEAD_EPS = 1e-5  # of that class; the authors' code for fine-tuning has 1e-6


def load_eat(folder: Path) -> Imported:
    """Read a folder with config.json and weights.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file cannot be read, a setting is unsupported, or parameters are missing, unexpected or of another
            shape; the message names them.
    """
    path = folder / "config.json"
    config = read_json(path)
    state = {name.removeprefix("model."): value for name, value in load_state(folder).items()}
    if _POSITIONS not in state or state[_POSITIONS].ndim != 3:
        raise ValueError(f"{folder}: has no {_POSITIONS} of shape (1, patches, features)")
    arguments = _arguments(config, path)
    positions = state[_POSITIONS]
    frontend = frontend_of_eat(arguments["embed_dim"], _num_frames(config, path), positions, 1)
    node = {
        "_target_": "d2v.nn.encoder.transformer_encoder", "frontends": {"spectrogram": frontend}, **arguments,
    }  # fmt: skip
    try:
        renamed = _RENAMING.read(state)
    except KeyError as error:
        raise ValueError(f"{folder}: {error.args[0]}") from error
    encoder = {name: value for name, value in renamed.items() if not name.startswith(HEAD)}
    head = {name.removeprefix(HEAD): value for name, value in renamed.items() if name.startswith(HEAD)}
    inputs = inputs_of_eat(frontend["num_frames"])
    if not head:
        return Imported(node, encoder, inputs)
    num_outputs = len(head["proj.bias"]) if "proj.bias" in head else 1  # a missing one is named when it is loaded
    names = class_names(config, num_outputs) if "id2label" in config else None
    head_node = {
        "_target_": "d2v.models.cls_head.ClsHead", "embed_dim": arguments["embed_dim"], "num_outputs": num_outputs,
        "norm_eps": _HEAD_EPS,
    }  # fmt: skip
    return Imported(node, encoder, inputs, head_node, head, names)


def _arguments(config: Mapping[str, Any], path: Path) -> Node:
    for key, only in _ONLY.items():
        if config.get(key, only) != only:
            raise ValueError(f"{path}: {key}={config[key]!r}: d2v has {key}={only!r} only")
    node = {}
    for key, (ours, default) in _ARGUMENTS.items():
        node[ours] = config.get(key, default)
        if not is_like(node[ours], default):
            raise ValueError(f"{path}: {key}={node[ours]!r}: must be of the form of {default!r}")
    return node


def _num_frames(config: Mapping[str, Any], path: Path) -> int:
    size = config.get("img_size", [1024, NUM_MELS])
    if not is_like(size, [0]) or len(size) != 2:
        raise ValueError(f"{path}: img_size={size!r}: must be of the form of [1024, {NUM_MELS}]")
    return int(size[0])

"""Export of data2vec 1.0 encoders for Hugging Face's own classes (transformers, models/data2vec), without transformers.

Deviation: dropout rates without a key in those classes, and in vision the bias of attention keys, are left out; neither
changes the results in evaluation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from d2v.interop.huggingface.inputs import (
    write_feature_extractor,
    write_image_processor,
    write_json,
    write_letters,
    write_spectrogram_extractor,
    write_tokenizer,
)
from d2v.interop.huggingface.names import FAMILIES, HEAD, TOKEN_TYPES
from d2v.interop.imported import Node
from d2v.models.cls_head import ClsHead
from d2v.models.heads import FirstTokenHead, FrameHead, MeanPoolHead
from d2v.nn.encoder import Encoder, transformer_encoder
from d2v.nn.frontends.image import BeitFrontend, ImageFrontend
from d2v.nn.frontends.spectrogram import SpectrogramFrontend
from d2v.nn.frontends.speech import SpeechFrontend
from d2v.nn.frontends.text import TextFrontend
from d2v.runs.exports import CARD, export_folder
from d2v.runs.files import replace_text

WEIGHTS, CONFIG = "model.safetensors", "config.json"

_CLASSES: dict[str, Callable[..., Any]] = {
    f"{part.__module__}.{part.__name__}": part
    for part in (
        *(transformer_encoder, ImageFrontend, BeitFrontend, SpeechFrontend, TextFrontend, SpectrogramFrontend),
        *(MeanPoolHead, FirstTokenHead, FrameHead, ClsHead),
    )
}
_MODALITIES: dict[str, type] = {
    "image": ImageFrontend,
    "speech": SpeechFrontend,
    "text": TextFrontend,
    "spectrogram": SpectrogramFrontend,
}
HEADS: dict[str, type] = {"image": MeanPoolHead, "speech": FrameHead, "text": FirstTokenHead, "spectrogram": ClsHead}


def arguments(node: Mapping[str, Any]) -> Node:
    """Return the arguments of a node, including defaults.

    Raises:
        ValueError: its class cannot be exported.
    """
    target = str(node.get("_target_"))
    if target not in _CLASSES:
        raise ValueError(f"_target_={target}: cannot be exported to Hugging Face; that takes one of {sorted(_CLASSES)}")
    parameters = inspect.signature(_CLASSES[target]).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return {**defaults, **{key: value for key, value in node.items() if key != "_target_"}}


def only_frontend(encoder_node: Node) -> tuple[str, Node]:
    """Return the modality of an encoder and the arguments of its frontend.

    Raises:
        ValueError: the encoder has several modalities, or one without a counterpart in Hugging Face's files.
    """
    frontends = encoder_node["frontends"]
    if len(frontends) != 1:
        raise ValueError(
            f"model.encoder.frontends has {sorted(frontends)}: a Hugging Face model has one modality; "
            "build an encoder with one of them, and load the weights that it has"
        )
    ((modality, node),) = frontends.items()
    frontend = arguments(node)
    part = _CLASSES[node["_target_"]]
    if not (isinstance(part, type) and issubclass(part, _MODALITIES.get(modality, ()))):
        raise ValueError(
            f"model.encoder.frontends.{modality} is a {node['_target_']}: the frontends that can be exported are "
            f"{', '.join(f'{name} ({part.__name__})' for name, part in _MODALITIES.items())}"
        )
    return modality, frontend


def save_huggingface(
    encoder: Encoder,
    encoder_node: Node,
    folder: str | Path,
    inputs: Mapping[str, Any],
    head: nn.Module | None = None,
    head_node: Node | None = None,
    labels: Sequence[str] | str | None = None,
    card: str = "",
) -> Path:
    """Write an encoder of data2vec 1.0 as a ``Data2Vec{Text,Audio,Vision}Model``.

    Args:
        encoder: encoder of one modality.
        encoder_node: node that builds it.
        folder: created if missing.
        inputs: form of its inputs (:class:`d2v.interop.imported.Imported`).
        head: head of a fine-tuned model: a FrameHead is exported as ForCTC (speech), a FirstTokenHead as
            ForSequenceClassification (text), a MeanPoolHead as ForImageClassification (image).
        head_node: node that builds it.
        labels: names of the head's outputs: the classes, or the letters after CTC's blank.
        card: model card in Markdown. For text it should say to ignore ``pooler_output``: no pooler is trained, so
            transformers initialises one at random.

    Raises:
        ValueError: ``folder`` is a file or holds something else, or those classes cannot represent the model; the
            message lists the settings.
    """
    modality, frontend = only_frontend(encoder_node)
    own = arguments(encoder_node)
    head_arguments = check_head(modality, head, head_node, labels)
    model_type, family = next((key, value) for key, value in FAMILIES.items() if value.modality == modality)
    config = {"architectures": [f"{family.name}{family.head if head_arguments else 'Model'}"], "model_type": model_type}
    not_fitting = problems(modality, own, frontend, head_arguments)
    if not_fitting:
        raise ValueError(
            f"{config['architectures'][0]} of transformers has no place for this model:\n  "
            + "\n  ".join(not_fitting)
            + "\nsave_custom_huggingface writes any encoder of d2v"
        )
    config |= _CONFIGS[modality](own, frontend)
    if head_arguments:
        config |= _HEAD_CONFIGS[modality](head_arguments) | label_config(modality, head_arguments, labels)
    ours = dict(encoder.state_dict())
    if head is not None:
        ours |= {f"{HEAD}{name}": value for name, value in head.state_dict().items()}
    state = family.renaming.write(ours)
    if modality == "text":
        state[TOKEN_TYPES] = state["embeddings.word_embeddings.weight"].new_zeros(1, own["embed_dim"])
    prefix = family.prefix if head_arguments else ""
    inside = {name: name if name.startswith(family.outputs.partition(".")[0]) else f"{prefix}{name}" for name in state}
    with export_folder(folder, "huggingface") as part:
        config |= write_inputs(part, modality, frontend, inputs, labels)
        write_weights(part, {inside[name]: value for name, value in state.items()})
        write_json(part / CONFIG, config)
        replace_text(part / CARD, card)
    return Path(folder)


def check_head(
    modality: str, head: nn.Module | None, head_node: Node | None, labels: Sequence[str] | str | None
) -> Node | None:
    """Return the arguments of a head, or None without a head.

    Raises:
        ValueError: the head is of another modality, or the number of labels differs from that of outputs.
    """
    if head is None:
        return None
    expected = HEADS[modality]
    if head_node is None or not isinstance(head, expected):
        raise ValueError(f"head={type(head).__name__}: a model of {modality} takes a {expected.__name__} and its node")
    own = arguments(head_node)
    outputs = len(labels) + (modality == "speech") if labels is not None else own["num_outputs"]
    if outputs != own["num_outputs"]:
        raise ValueError(f"{len(labels or ())} labels for a head of {own['num_outputs']} outputs")
    return own


def write_weights(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write weights, with every tensor in its own memory, because safetensors refuses shared memory."""
    own = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
    save_file(own, folder / WEIGHTS, metadata={"format": "pt"})


def write_inputs(
    folder: Path, modality: str, frontend: Node, data: Mapping[str, Any], labels: Sequence[str] | str | None
) -> dict[str, Any]:
    """Write the files that describe inputs; return the special tokens for config.json."""
    if modality == "image":
        write_image_processor(folder, data, frontend["img_size"], frontend["in_chans"])
        return {}
    if modality == "spectrogram":
        write_spectrogram_extractor(folder, data, frontend["num_frames"], frontend["num_mels"])
        return {}
    if modality == "speech":
        write_feature_extractor(folder, data)
        if labels is not None:
            write_letters(folder, "".join(labels))
        return {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}  # the pad token is CTC's blank
    numbers = write_tokenizer(folder, {**data, "pad_id": frontend["pad_id"]}, frontend["max_positions"])
    return {
        "pad_token_id": frontend["pad_id"],
        **{f"{role}_id": numbers[role] for role in ("bos_token", "eos_token") if role in numbers},
    }


def label_config(modality: str, head: Node, labels: Sequence[str] | str | None) -> dict[str, Any]:
    """Return the number and names of a head's outputs for config.json."""
    num_outputs = head["num_outputs"]
    if modality == "speech":
        return {"vocab_size": num_outputs, "ctc_zero_infinity": True}
    names = list(labels) if labels is not None else [f"LABEL_{i}" for i in range(num_outputs)]
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": "regression" if num_outputs == 1 else "single_label_classification",
    }


def problems(modality: str, own: Node, frontend: Node, head: Node | None) -> list[str]:
    """List settings that Hugging Face's classes cannot represent, each with the only value that they support."""
    e, f = "model.encoder", f"model.encoder.frontends.{modality}"
    if not any(family.modality == modality for family in FAMILIES.values()):
        return [f"{f}: data2vec's classes in transformers read other inputs"]
    not_fitting = []

    def check(key: str, value: Any, only: Any, why: str = "") -> None:
        if value != only:
            not_fitting.append(f"{key}={value}: only {only}{f'; {why}' if why else ''}")

    check(f"{e}.prenet_depth", own["prenet_depth"], 0, "those blocks are data2vec 2.0's")
    check(f"{f}.num_prefix_tokens", frontend.get("num_prefix_tokens", 1), int(modality == "image"))
    check(f"{e}.norm_first", own["norm_first"], modality == "image")
    if modality == "image":
        side = frontend["img_size"] // frontend["patch_size"]
        if "shared_bias" not in frontend:
            check(f"{f}.fixed_positions", frontend["fixed_positions"], False, "those positions are data2vec 2.0's")
        if own["rel_pos_grid"] is not None:
            check(f"{e}.rel_pos_grid", list(own["rel_pos_grid"]), [side, side])
        if head:
            check(f"{e}.final_norm", has_final_norm(own), False, "ForImageClassification norms after the mean only")
            check("head.norm_eps", head["norm_eps"], own["norm_eps"], "there is one epsilon for all norms")
        return not_fitting
    check(f"{f}.norm_eps", frontend["norm_eps"], own["norm_eps"], "there is one epsilon for all norms")
    check(f"{e}.final_norm", has_final_norm(own), False)
    check(f"{e}.layer_scale_init", own["layer_scale_init"], None)
    check(f"{e}.rel_pos_grid", own["rel_pos_grid"], None)
    if modality == "speech":
        check(f"{f}.alibi", frontend["alibi"], False, "ALiBi is data2vec 2.0's")
        why = {
            "every": "there padding would leak into the frames before it, which this encoder prevents",
            "never": "there padded frames are zeroed before the first convolution, which this encoder does not",
        }
        check(f"{f}.zero_padding", frontend["zero_padding"], "first", why.get(frontend["zero_padding"], ""))
        if head:
            check("head.layers", head["layers"], "last", "ForCTC reads no others")
    return not_fitting


def has_final_norm(own: Node) -> bool:
    """Return whether an encoder ends with a LayerNorm."""
    return bool(own["norm_first"] if own["final_norm"] is None else own["final_norm"])


def _sizes(own: Node) -> dict[str, Any]:
    return {
        "hidden_size": own["embed_dim"],
        "num_hidden_layers": own["depth"],
        "num_attention_heads": own["num_heads"],
        "intermediate_size": int(own["embed_dim"] * own["mlp_ratio"]),
        "hidden_act": "gelu",
        "layer_norm_eps": own["norm_eps"],
    }


def _text_config(own: Node, frontend: Node) -> dict[str, Any]:
    return {
        **_sizes(own),
        "vocab_size": frontend["vocab_size"],
        "max_position_embeddings": frontend["max_positions"] + frontend["pad_id"] + 1,
        "type_vocab_size": 1,
        "hidden_dropout_prob": own["drop_rate"],
        "attention_probs_dropout_prob": own["attn_drop_rate"],
        "tie_word_embeddings": True,
    }


def _speech_config(own: Node, frontend: Node) -> dict[str, Any]:
    channels, kernels, strides = (list(sizes) for sizes in zip(*frontend["conv_layers"], strict=True))
    return {
        **_sizes(own),
        "conv_dim": channels,
        "conv_kernel": kernels,
        "conv_stride": strides,
        "conv_bias": False,
        "feat_extract_activation": "gelu",
        "feat_extract_norm": "layer",
        "num_conv_pos_embeddings": frontend["pos_depth"],
        "conv_pos_kernel_size": frontend["pos_kernel_size"],
        "num_conv_pos_embedding_groups": frontend["pos_groups"],
        "hidden_dropout": own["drop_rate"],
        "activation_dropout": own["mlp_drop_rate"],
        "attention_dropout": own["attn_drop_rate"],
        "layerdrop": own["layer_drop_rate"],
        "feat_proj_dropout": 0.0,
        # Without a mask token masked frames cannot be replaced.
        "mask_time_prob": 0.05 if frontend["mask_token"] else 0.0,
        "mask_feature_prob": 0.0,
        "add_adapter": False,
    }


def _image_config(own: Node, frontend: Node) -> dict[str, Any]:
    scale = own["layer_scale_init"]
    return {
        **_sizes(own),
        "image_size": frontend["img_size"],
        "patch_size": frontend["patch_size"],
        "num_channels": frontend["in_chans"],
        "use_mask_token": frontend["mask_token"],
        "use_absolute_position_embeddings": False,
        "use_relative_position_bias": own["rel_pos_grid"] is not None,
        "use_shared_relative_position_bias": frontend.get("shared_bias", False),
        # 0 means no layer scale, whatever the weights are.
        "layer_scale_init_value": 0.0 if scale is None else scale if scale > 0 else 1.0,
        "drop_path_rate": own["drop_path_rate"],
        "hidden_dropout_prob": own["drop_rate"],
        "attention_probs_dropout_prob": own["attn_drop_rate"],
        "use_mean_pooling": not has_final_norm(own),
        "use_auxiliary_head": False,
    }


_CONFIGS = {"text": _text_config, "speech": _speech_config, "image": _image_config}
_HEAD_CONFIGS = {
    "text": lambda head: {"classifier_dropout": head["drop_rate"]},
    "speech": lambda head: {"final_dropout": head["drop_rate"]},
    "image": lambda head: {},
}

"""Export of any d2v encoder for Hugging Face's Auto classes, with d2v's model code in the folder.

``AutoModel.from_pretrained(folder, trust_remote_code=True)`` does not need d2v; with d2v installed,
``import d2v.interop.auto`` replaces ``trust_remote_code``.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from d2v.interop.huggingface.inputs import write_json
from d2v.interop.huggingface.names import HEAD
from d2v.interop.huggingface.writing import (
    CONFIG,
    arguments,
    check_head,
    has_final_norm,
    label_config,
    only_frontend,
    write_inputs,
    write_weights,
)
from d2v.interop.imported import Node
from d2v.nn.encoder import Encoder
from d2v.runs.exports import CARD, export_folder
from d2v.runs.files import replace_text

REMOTE = Path(__file__).parents[1] / "remote"
MODELING, CONFIGURATION = "modeling_d2v.py", "configuration_d2v.py"

_TASKS = {
    "image": "ForImageClassification",
    "speech": "ForCTC",
    "text": "ForSequenceClassification",
    "spectrogram": "ForAudioClassification",
}
# BEiT's frontend is that for images, with other positions.
_BEIT = {"num_prefix_tokens": 1, "fixed_positions": False}
_NOT_REBUILT = {"embed_dim", "num_heads", "token_init_std", "pos_init_std", "mask_id", "num_frames"}


def save_custom_huggingface(
    encoder: Encoder,
    encoder_node: Node,
    folder: str | Path,
    inputs: Mapping[str, Any],
    head: nn.Module | None = None,
    head_node: Node | None = None,
    labels: Sequence[str] | str | None = None,
    card: str = "",
) -> Path:
    """Write an encoder of data2vec 2.0, or any other of d2v, as a ``D2VModel``, with a head as a ``D2VFor...``.

    Args:
        encoder: encoder of one modality.
        encoder_node: node that builds it.
        folder: created if missing.
        inputs: form of its inputs (:class:`d2v.interop.imported.Imported`).
        head: head of a fine-tuned model: a FrameHead (speech), a FirstTokenHead (text), a MeanPoolHead (image) or
            a ClsHead (spectrogram).
        head_node: node that builds it.
        labels: names of the head's outputs: the classes, or the letters after CTC's blank.
        card: model card in Markdown.

    Raises:
        ValueError: ``folder`` is a file or holds something else, the encoder has several modalities or a frontend from
            outside of d2v, or the head is another.
    """
    modality, frontend = only_frontend(encoder_node)
    own = arguments(encoder_node)
    head_arguments = check_head(modality, head, head_node, labels)
    if "shared_bias" in frontend:
        frontend = {**frontend, **_BEIT}
    own_frontend = encoder.frontend(modality)
    task = _TASKS[modality]
    config: dict[str, Any] = {
        "architectures": [f"D2V{task if head_arguments else 'Model'}"],
        "model_type": "d2v",
        "auto_map": {
            "AutoConfig": f"{CONFIGURATION.removesuffix('.py')}.D2VConfig",
            "AutoModel": f"{MODELING.removesuffix('.py')}.D2VModel",
            f"AutoModel{task}": f"{MODELING.removesuffix('.py')}.D2V{task}",
        },
        "modality": modality,
        "frontend": {key: value for key, value in frontend.items() if key not in _NOT_REBUILT},
        **{key: value for key, value in own.items() if key != "frontends"},
        "input_norm": bool(own_frontend.input_norm or own["prenet_depth"]) and not own["norm_first"],
        "final_norm": has_final_norm(own),
    }
    state = dict(encoder.state_dict())
    if head is not None:
        state = {f"encoder.{name}": value for name, value in state.items()}
        state |= {f"{HEAD}{name}": value for name, value in head.state_dict().items()}
    with export_folder(folder, "huggingface") as part:
        config |= write_inputs(part, modality, frontend, inputs, labels)
        if modality == "text":
            config["vocab_size"] = frontend["vocab_size"]
        if head_arguments:
            config |= label_config(modality, head_arguments, labels)
            config["head_drop_rate"] = head_arguments["drop_rate"]
            if "layers" in head_arguments:
                config["head_layers"] = head_arguments["layers"]
            if "norm_eps" in head_arguments:
                config["head_norm_eps"] = head_arguments["norm_eps"]
        write_weights(part, state)
        write_json(part / CONFIG, config)
        for name in (CONFIGURATION, MODELING):
            shutil.copyfile(REMOTE / name, part / name)
        replace_text(part / CARD, card)
    return Path(folder)

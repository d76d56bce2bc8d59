"""Reading of Hugging Face's data2vec 1.0 models (transformers, models/data2vec), without transformers.

Deviation: parts without a counterpart in our encoders (poolers, language model heads), and CTC outputs that are not
letters, are left out and named in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from d2v.interop.build import check_fit
from d2v.interop.exports import refuse_damaged
from d2v.interop.fitting import sketch
from d2v.interop.huggingface.config import class_names, encoder_node, has_head, head_node, read_config
from d2v.interop.huggingface.inputs import inputs_of, read_json, spelling
from d2v.interop.huggingface.names import HEAD, TOKEN_TYPES, Family
from d2v.interop.imported import Imported
from d2v.interop.native import read_safely
from d2v.lfs import refuse_lfs_pointer

log = logging.getLogger(__name__)

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")


def load_huggingface(folder: str | Path) -> Imported:
    """Read the folder of a ``Data2Vec{Text,Audio,Vision}Model``, with or without a head.

    Args:
        folder: folder with config.json and the weights: model.safetensors or pytorch_model.bin, or several of either
            with their index. Heads of ForSequenceClassification (text), ForCTC (audio) and ForImageClassification
            (vision) are read; that of ForMaskedLM is left out.

    Returns:
        Encoder and head in float32. The letters of ForCTC are in the order of its vocab.json, after the blank.

    Raises:
        FileNotFoundError: the folder or a file in it does not exist.
        ValueError: a file cannot be read, the model is unknown or has an unsupported setting, or parameters are
            missing, unexpected or of another shape; the message names them.
    """
    folder = Path(folder)
    refuse_damaged(folder)
    config, family = read_config(folder)
    with_head = has_head(config, family, folder)
    state = _own_names(load_state(folder), family, with_head)

    try:
        node = encoder_node(config, family, state, folder)
        node_of_head = head_node(config, family, state, folder) if with_head else None
        encoder = sketch(node, state)
    except (TypeError, ArithmeticError, AttributeError) as error:
        raise ValueError(f"checkpoint={folder}: config.json describes no model that can be built ({error})") from error
    head = None if node_of_head is None else sketch(node_of_head, state)
    ours = dict(encoder.state_dict())
    if head is not None:
        ours |= {f"{HEAD}{name}": value for name, value in head.state_dict().items()}
    expected = {name: value.shape for name, value in family.renaming.write(ours).items()}
    if family.modality == "text":
        expected[TOKEN_TYPES] = torch.Size([config["type_vocab_size"], config["hidden_size"]])
    _check_names(state, expected, folder)

    if family.modality == "text":
        # In the same order of additions, so that the sums are equal bit for bit.
        state["embeddings.word_embeddings.weight"] = (
            state["embeddings.word_embeddings.weight"] + state.pop(TOKEN_TYPES)[0]
        )
    renamed = family.renaming.read(state)
    encoder_state = {name: value for name, value in renamed.items() if not name.startswith(HEAD)}
    check_fit(encoder, encoder_state)
    inputs = inputs_of(folder, family.modality, node)
    if head is None:
        return Imported(node, encoder_state, inputs)
    head_state = {name.removeprefix(HEAD): value for name, value in renamed.items() if name.startswith(HEAD)}
    check_fit(head, head_state)
    assert node_of_head is not None
    labels: list[str] | str | None
    if family.modality == "speech":
        rows, labels = spelling(folder, len(head_state["proj.bias"]), config["pad_token_id"])
        head_state = {name: value[rows] for name, value in head_state.items()}
        node_of_head = {**node_of_head, "num_outputs": len(rows)}
    else:
        labels = class_names(config, len(head_state["proj.bias"]))
    return Imported(node, encoder_state, inputs, node_of_head, head_state, labels)


def load_state(folder: Path) -> dict[str, Tensor]:
    """Load all parameters, in float32."""
    for name in SINGLE_FILES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            files = [name]
        elif index.is_file():
            files = _files_of(index)
        else:
            continue
        state: dict[str, Tensor] = {}
        for file in files:
            state |= _load_file(folder / file)
        _check_dtypes(state, folder)
        return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    raise FileNotFoundError(f"{folder}: has neither {' nor '.join(SINGLE_FILES)}, nor the index of several")


def _files_of(index: Path) -> list[str]:
    """Return the files that an index lists, which must be in its folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ValueError(f"{index}: its weight_map names no files")
    files = sorted(set(weight_map.values()))
    if any(Path(file).name != file for file in files):
        raise ValueError(f"{index}: names files that are not beside it")
    return files


def _check_dtypes(state: Mapping[str, Tensor], folder: Path) -> None:
    """Raise ValueError if weights are quantized; indices and counters may be whole numbers."""
    for name, value in state.items():
        if name.endswith((".weight", ".bias")) and not value.is_floating_point():
            raise ValueError(
                f"{folder}: {name} is {value.dtype}: quantized weights are not read; save the model in float32, "
                "float16 or bfloat16"
            )


def _load_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, but the index of the weights names it")
    refuse_lfs_pointer(path, f"checkpoint={path.parent}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: not readable ({error})") from error
    content = read_safely(path)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: not a file of weights")
    return content


def _own_names(state: Mapping[str, Tensor], family: Family, with_head: bool) -> dict[str, Tensor]:
    """Return parameters without the prefix of a model with a head, and without parts that d2v lacks."""
    kept, left_out = {}, []
    for key, value in state.items():
        name = key.removeprefix(family.prefix)
        if any(pattern.fullmatch(name) for pattern in family.renaming.ignored):
            continue
        # The pooler of vision is the norm of our head. That of text is used by no head and not trained.
        pooler = name.startswith("pooler.") and not (with_head and family.modality == "image")
        if pooler or (family.modality == "text" and name.startswith("lm_head.")):
            left_out.append(name)
        else:
            kept[name] = value
    if left_out:
        log.info("left out %s: not part of an encoder", ", ".join(sorted(left_out)))
    return kept


def _check_names(state: Mapping[str, Tensor], expected: Mapping[str, torch.Size], folder: Path) -> None:
    """Raise ValueError if names or shapes differ from those of the model in config.json."""
    problems = [f"missing {name}" for name in expected if name not in state]
    problems += [f"left over {name}" for name in state if name not in expected]
    problems += [
        f"{name} has shape {tuple(value.shape)}, not {tuple(expected[name])}"
        for name, value in state.items()
        if name in expected and value.shape != expected[name]
    ]
    if problems:
        shown = "\n  ".join(problems[:10]) + (f"\n  and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise ValueError(
            f"{folder}: the weights are not those of the model that config.json describes ({len(problems)} "
            f"differences):\n  {shown}"
        )

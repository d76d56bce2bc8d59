"""Hugging Face's files that describe inputs: feature extractors, image processors and tokenizers."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2v import bounds
from d2v.interop.imported import Node
from d2v.runs.files import replace_json
from d2v.special_tokens import NAMES, find_roles, token_ids

log = logging.getLogger(__name__)

PREPROCESSOR, TOKENIZER, TOKENIZER_CONFIG, VOCAB = (
    *("preprocessor_config.json", "tokenizer.json"),
    *("tokenizer_config.json", "vocab.json"),
)
# Arguments for the inputs of a model of transformers, by modality.
ARGUMENTS = {
    "image": "pixel_values",
    "speech": "input_values",
    "text": "input_ids",
    "spectrogram": "input_values",
}
BLANK, WORD_BOUNDARY = "<pad>", "|"  # CTC's, as Hugging Face's tokenizers write them
_IMAGE_MEAN = _IMAGE_STD = 0.5  # BeitImageProcessor's defaults


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is damaged, or holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        content = bounds.read_json(path)
    except ValueError as error:
        raise ValueError(f"{path}: not readable ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds no object")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as a JSON file."""
    replace_json(path, content)


def inputs_of(folder: Path, modality: str, encoder_node: Node) -> Node:
    """Return the inputs that the files of a folder describe, under the keys of conf/inputs."""
    frontend = encoder_node["frontends"][modality]
    processor = read_json(folder / PREPROCESSOR) if (folder / PREPROCESSOR).is_file() else None
    if modality != "text" and processor is None:
        log.warning("%s has no %s: inputs have transformers' defaults", folder, PREPROCESSOR)
    processor = processor or {}
    if modality == "speech":
        if not processor.get("do_normalize", True):
            log.warning("%s: do_normalize=false, but d2v gives every clip zero mean and unit variance", PREPROCESSOR)
        rate = int(processor.get("sampling_rate", 16000))
        return {"sample_rate": rate, "conv_layers": frontend["conv_layers"]}
    if modality == "image":
        return _images(processor, frontend)
    node = {
        "pad_id": frontend["pad_id"],
        "vocab_size": frontend["vocab_size"],
        "block_size": frontend["max_positions"],
        "tokenizer": None,
    }
    if (folder / TOKENIZER).is_file():
        content = json.dumps(read_json(folder / TOKENIZER), ensure_ascii=False)
        # "${" would be an interpolation to whoever puts the text into a configuration.
        node["tokenizer"] = content.replace("$", "\\u0024")
    else:
        log.warning("%s has no %s: a tokenizer has to be found elsewhere", folder, TOKENIZER)
    return node


def _images(processor: Mapping[str, Any], frontend: Node) -> Node:
    node: Node = {key: frontend[key] for key in ("img_size", "patch_size", "in_chans")}
    img_size, in_chans = node["img_size"], node["in_chans"]
    plain = not processor.get("do_normalize", True)
    for key, theirs, default, none in (("mean", "image_mean", _IMAGE_MEAN, 0.0), ("std", "image_std", _IMAGE_STD, 1.0)):
        value = none if plain else processor.get(theirs, default)
        values = list(value) if isinstance(value, list) else [value] * in_chans
        if len(values) != in_chans:
            raise ValueError(f"{PREPROCESSOR}: {theirs}={values}, but images have {in_chans} channels")
        node[key] = [float(v) for v in values]
    size = processor.get("size")
    if isinstance(size, dict) and "shortest_edge" in size and processor.get("do_center_crop"):
        node["crop_pct"] = img_size / size["shortest_edge"]
    return node


def spelling(folder: Path, num_outputs: int, pad_id: int | None) -> tuple[list[int], str | None]:
    """Return the indices of a model's CTC outputs in our order: the blank first, then the letters.

    Args:
        folder: folder with vocab.json and, optionally, tokenizer_config.json.
        num_outputs: outputs of the head.
        pad_id: index of the blank in the model.

    Returns:
        The indices in our order, and the letters; all indices and None without a vocab.json.

    Raises:
        ValueError: an output is not a letter.
    """
    blank = pad_id or 0
    if not (folder / VOCAB).is_file():
        log.warning("%s has no %s: what letters the outputs stand for is not known", folder, VOCAB)
        return [blank, *(i for i in range(num_outputs) if i != blank)], None
    config = read_json(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
    boundary = _content(config.get("word_delimiter_token")) or WORD_BOUNDARY
    named = {_content(value) for key, value in config.items() if key.endswith("_token")}
    specials = {name for names in NAMES.values() for name in names} | named - {boundary}
    rows, letters, dropped = [blank], "", []
    for token, number in sorted(read_json(folder / VOCAB).items(), key=lambda item: str(item[1]).zfill(9)):
        if not isinstance(number, int) or not 0 <= number < num_outputs:
            raise ValueError(f"{folder / VOCAB}: {token!r} is number {number!r}, but there are {num_outputs} outputs")
        if number == blank:
            continue
        if token in specials:
            dropped.append(token)
            continue
        letter = " " if token == boundary else token
        if len(letter) != 1:
            raise ValueError(f"{folder / VOCAB}: {token!r} is no letter, and d2v transcribes by letters only")
        rows.append(number)
        letters += letter
    if dropped:
        log.info("left out the outputs of %s: no transcript has them", ", ".join(dropped))
    return rows, letters


def _content(token: Any) -> str | None:
    """Return the text of a special token, which may be written with its properties."""
    return token.get("content") if isinstance(token, dict) else token if isinstance(token, str) else None


def write_feature_extractor(folder: Path, data: Mapping[str, Any]) -> None:
    """Write the processor of clips: zero mean and unit variance, and a mask of what is padding."""
    content = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "processor_class": "Wav2Vec2Processor",
        "feature_size": 1,
        "sampling_rate": int(data.get("sample_rate", 16000)),
        "padding_side": "right",
        "padding_value": 0.0,
        "do_normalize": True,
        "return_attention_mask": True,
    }
    write_json(folder / PREPROCESSOR, content)


def write_spectrogram_extractor(folder: Path, data: Mapping[str, Any], num_frames: int, num_mels: int) -> None:
    """Write the processor of sounds: the same filter bank, padding and normalisation, of waveforms at one rate.

    It does not subtract a waveform's mean, which the filter bank subtracts from every window.
    """
    content = {
        "feature_extractor_type": "ASTFeatureExtractor",
        "feature_size": 1,
        "sampling_rate": int(data.get("sample_rate", 16000)),
        "num_mel_bins": num_mels,
        "max_length": num_frames,
        "padding_value": 0.0,
        "do_normalize": True,
        "mean": float(data["mean"]),
        "std": float(data["std"]),
        "return_attention_mask": False,
    }
    write_json(folder / PREPROCESSOR, content)


def write_image_processor(folder: Path, data: Mapping[str, Any], img_size: int, in_chans: int) -> None:
    """Write the processor of images, as in our evaluation: resize the shorter side, center crop, normalise."""
    shorter = max(img_size, round(img_size / float(data.get("crop_pct") or 1.0)))
    content = {
        "image_processor_type": "BeitImageProcessorFast",  # transformers 4 has another, which cannot resize one side
        "do_resize": True,
        "size": {"shortest_edge": shorter},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": img_size, "width": img_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(data.get("mean") or [_IMAGE_MEAN] * in_chans),
        "image_std": list(data.get("std") or [_IMAGE_STD] * in_chans),
    }
    write_json(folder / PREPROCESSOR, content)


def write_letters(folder: Path, letters: str) -> None:
    """Write the tokenizer of CTC: id 0 is the blank, letter i has id i + 1.

    Raises:
        ValueError: a letter is the symbol of word boundaries.
    """
    if WORD_BOUNDARY in letters:
        raise ValueError(f"labels={letters!r}: {WORD_BOUNDARY!r} stands for the boundary of words in {VOCAB}")
    tokens = [BLANK, *(WORD_BOUNDARY if letter == " " else letter for letter in letters)]
    write_json(folder / VOCAB, {token: number for number, token in enumerate(tokens)})
    content = {
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "processor_class": "Wav2Vec2Processor",
        "pad_token": BLANK,
        "word_delimiter_token": WORD_BOUNDARY,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token")),  # letters have none
        "do_lower_case": False,
    }
    write_json(folder / TOKENIZER_CONFIG, content)


def write_tokenizer(folder: Path, data: Mapping[str, Any], max_positions: int) -> dict[str, int]:
    """Write the files of AutoTokenizer; texts become ``<s> a </s>``, pairs ``<s> a </s></s> b </s>``.

    Args:
        folder: output folder.
        data: ``pad_id``, and ``tokenizer``: the content of a tokenizer.json or of one of ours
            (:mod:`d2v.data.texts.tokenizer`).
        max_positions: longest input, tokens.

    Returns:
        The ids of special tokens by their role in transformers, "bos_token" and so on; {} if ``data`` has no tokenizer.
    """
    text = data.get("tokenizer")
    if not isinstance(text, str) or not text.lstrip().startswith("{"):
        log.warning("inputs.tokenizer is no tokenizer's content: none is written to %s", folder)
        return {}
    try:
        return _write_tokenizer(folder, text, data, max_positions)
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # a file may hold anything there
        raise ValueError(f"inputs.tokenizer: not the content of a tokenizer.json ({error!r})") from error


def _write_tokenizer(folder: Path, text: str, data: Mapping[str, Any], max_positions: int) -> dict[str, int]:
    content = bounds.parse_json(text)
    if "ids" in content and "tokenizer" in content:
        content = _renumbered(content["tokenizer"], content["ids"], content["vocab_size"])
    ids, roles = token_ids(content), find_roles(content)
    if data.get("pad_id") is not None:
        roles["pad"] = int(data["pad_id"])
    names = {number: name for name, number in ids.items()}
    if "pad" in roles and roles["pad"] not in names:
        name = next(name for name in (*NAMES["pad"], "<padding>") if name not in ids)
        names[roles["pad"]] = name
        if isinstance(content["model"].get("vocab"), dict):
            content["model"]["vocab"][name] = roles["pad"]  # otherwise ids would be assigned without gaps
    named = {f"{role}_token": names[number] for role, number in roles.items()}
    added: list[dict[str, Any]] = content.setdefault("added_tokens", [])
    known = {token["content"] for token in added}
    added += [_added(names[i], i) for i in dict.fromkeys(roles.values()) if names[i] not in known]
    added.sort(key=lambda token: token["id"])
    content["truncation"] = content["padding"] = None
    if "bos" in roles and "eos" in roles:
        content["post_processor"] = _template(names, roles["bos"], roles["eos"])
    write_json(folder / TOKENIZER, content)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "model_max_length": max_positions,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    config |= {
        theirs: named[ours]
        for theirs, ours in (("cls_token", "bos_token"), ("sep_token", "eos_token"))
        if ours in named
    }
    write_json(folder / TOKENIZER_CONFIG, config)
    return {f"{role}_token": number for role, number in roles.items()}


def _added(name: str, number: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": name, **flags, "special": True}


def _template(names: Mapping[int, str], bos: int, eos: int) -> dict[str, Any]:
    """Return the template of our packing."""

    def special(number: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": names[number], "type_id": 0}}

    def sequence(name: str) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": 0}}

    single = [special(bos), sequence("A"), special(eos)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, special(eos), sequence("B"), special(eos)],
        "special_tokens": {names[i]: {"id": names[i], "ids": [i], "tokens": [names[i]]} for i in (bos, eos)},
    }


def _renumbered(content: dict[str, Any], ids: list[int], vocab_size: int) -> dict[str, Any]:
    """Return the released models' tokenizer: GPT-2's, with the ids of their dictionary."""
    vocab = {token: ids[number] for token, number in content["model"]["vocab"].items()}
    specials = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": vocab_size - 1}
    model = {**content["model"], "vocab": {**vocab, **specials}}
    added = [_added(name, number) for name, number in specials.items()]
    return {**content, "model": model, "added_tokens": added}

"""Special tokens of a tokenizer.json: known names, and the tokens that open, close and pad a text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Known names by role, used if nothing else names the token of a role.
NAMES: dict[str, tuple[str, ...]] = {
    "bos": (
        *("<s>", "[CLS]", "<|startoftext|>", "<|begin_of_text|>", "<bos>", "<BOS_TOKEN>"),
        *("<|begin▁of▁sentence|>", "<\uff5cbegin▁of▁sentence\uff5c>"),  # DeepSeek's bars are full-width
    ),
    "eos": (
        *("</s>", "[SEP]", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<EOS_TOKEN>"),
        *("<|end▁of▁sentence|>", "<\uff5cend▁of▁sentence\uff5c>"),
    ),
    "pad": ("<pad>", "[PAD]", "<PAD>"),
    "unk": ("<unk>", "[UNK]"),
    "mask": ("<mask>", "[MASK]"),
}
# Keys of Hugging Face's tokenizer_config.json that name the token of a role.
CONFIG_KEYS = {"bos": ("bos_token", "cls_token"), "eos": ("eos_token", "sep_token"), "pad": ("pad_token",)}


def token_ids(content: Mapping[str, Any]) -> dict[str, int]:
    """Return the id of every token of a tokenizer.json, added ones included."""
    vocab = content["model"].get("vocab", {})
    ids = dict(vocab) if isinstance(vocab, Mapping) else {piece: i for i, (piece, _) in enumerate(vocab)}
    return ids | {token["content"]: token["id"] for token in content.get("added_tokens") or ()}


def find_roles(content: Mapping[str, Any], config: Mapping[str, str] | None = None) -> dict[str, int]:
    """Return token ids by role: "bos" opens a text, "eos" closes it, "pad", "unk", "mask"; missing roles are left out.

    Order of precedence: the tokens of the post-processor and of padding; ``tokenizer_config.json``; known names. Many
    tokenizers have a single token between texts: it then opens and closes them. If it also pads, it is not used as
    "pad", because that would hide where texts end.

    Args:
        content: parsed tokenizer.json.
        config: names of tokens by their keys in ``tokenizer_config.json``.
    """
    ids = token_ids(content)
    roles = _around(content.get("post_processor"))
    own_pad = _own_pad(content.get("padding"), ids)
    for role, names in NAMES.items():
        named = [config[key] for key in CONFIG_KEYS.get(role, ()) if key in config] if config else []
        candidates = [ids[name] for name in (*named, *names) if name in ids]
        if role == "unk" and content["model"].get("unk_token") in ids:
            candidates.insert(0, ids[content["model"]["unk_token"]])
        if role == "pad":
            between = roles.get("eos", roles.get("bos"))
            roles = roles if between is None else {"bos": between, "eos": between} | roles
            candidates = [i for i in (*own_pad, *candidates) if i not in roles.values()]
        if candidates:
            roles.setdefault(role, candidates[0])
    return roles


def _own_pad(padding: Mapping[str, Any] | None, ids: Mapping[str, int]) -> Sequence[int]:
    """Return the padding id of the tokenizer, if it is the id of its padding token."""
    if padding is None or ids.get(padding["pad_token"]) != padding["pad_id"]:
        return ()
    return (padding["pad_id"],)


def _around(post_processor: Mapping[str, Any] | None) -> dict[str, int]:
    """Return the ids that the post-processor adds next to a text: "bos" on its left, "eos" on its right."""
    roles: dict[str, int] = {}
    for step in _steps(post_processor):
        before, after = _of_step(step)
        roles |= ({"bos": before[-1]} if before else {}) | ({"eos": after[0]} if after else {})
    return roles


def _steps(processor: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if processor is None:
        return
    if processor["type"] != "Sequence":
        yield processor
    else:
        for part in processor["processors"]:
            yield from _steps(part)


def _of_step(step: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Return the ids that a step adds before and after a text."""
    if step["type"] in ("BertProcessing", "RobertaProcessing"):
        return [step["cls"][1]], [step["sep"][1]]
    before: list[int] = []
    after: list[int] = []
    if step["type"] == "TemplateProcessing":
        side = before
        for piece in step["single"]:
            if "Sequence" in piece:
                side = after
            else:
                side.extend(step["special_tokens"][piece["SpecialToken"]["id"]]["ids"])
    return before, after

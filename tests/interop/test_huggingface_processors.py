"""Tokenizers and processors of exports give our inputs, and read our outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from their_models import (
    DATA,
    HEADS,
    SAMPLES,
    node_of,
    perturb,
)

from d2v.interop.build import build
from d2v.interop.huggingface import load_huggingface, save_huggingface

transformers = pytest.importorskip("transformers")


def tokenizer_json() -> str:
    from d2v.data.texts.tokenizer import train_tokenizer

    return train_tokenizer(["a cat and a $dog", "two dogs"], 280).to_json()


def test_their_tokenizer_gives_our_ids(tmp_path: Path) -> None:
    from d2v.data.texts.tokenizer import load_tokenizer

    text, node = tokenizer_json(), node_of("text")
    save_huggingface(build(node), node, tmp_path, {**DATA["text"], "tokenizer": text})
    ours, theirs = load_tokenizer(text), transformers.AutoTokenizer.from_pretrained(tmp_path)
    cat, dogs = (ids.tolist() for ids in ours.encode(["a cat", "two $dogs"]))
    assert theirs("a cat")["input_ids"] == [ours.bos_id, *cat, ours.eos_id]
    assert theirs("a cat", "two $dogs")["input_ids"] == [0, *cat, 2, 2, *dogs, 2]
    batch = theirs(["a cat", "two $dogs"], padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert torch.equal(batch["input_ids"] != ours.pad_id, batch["attention_mask"].bool())
    assert theirs.decode(theirs("two $dogs")["input_ids"], skip_special_tokens=True) == "two $dogs"
    assert (theirs.mask_token_id, theirs.pad_token_id, theirs.model_max_length) == (4, 1, 16)
    back = load_huggingface(tmp_path)
    again = load_tokenizer(back.inputs["tokenizer"])
    assert [ids.tolist() for ids in again.encode(["a cat", "two $dogs"])] == [cat, dogs]
    assert back.encoder_node["frontends"]["text"]["mask_id"] == 4


def test_a_tokenizer_whose_numbers_are_the_released_dictionarys(tmp_path: Path) -> None:
    from d2v.data.texts.tokenizer import load_tokenizer

    plain = json.loads(tokenizer_json())
    plain["added_tokens"] = []
    vocab = plain["model"]["vocab"]
    for name in ("<s>", "<pad>", "</s>", "<unk>", "<mask>"):
        del vocab[name]
    plain["model"]["vocab"] = {token: i for i, token in enumerate(vocab)}
    ids = [4 + (7 * i) % len(vocab) for i in range(len(vocab))]
    assert len(set(ids)) == len(ids)
    text = json.dumps({"tokenizer": plain, "ids": ids, "vocab_size": len(vocab) + 5})
    node = node_of("text")
    save_huggingface(build(node), node, tmp_path, {**DATA["text"], "tokenizer": text})
    ours, theirs = load_tokenizer(text), transformers.AutoTokenizer.from_pretrained(tmp_path)
    (expected,) = ours.encode(["two dogs and a cat"])
    assert theirs("two dogs and a cat")["input_ids"] == [0, *expected.tolist(), 2]
    assert theirs.mask_token_id == len(vocab) + 4


def test_a_tokenizer_without_a_pad_token_gets_one(tmp_path: Path) -> None:
    from d2v.data.texts.tokenizer import load_tokenizer

    plain = json.loads(tokenizer_json().replace("<s>", "<|endoftext|>"))
    for name in ("<pad>", "</s>"):
        plain["added_tokens"] = [t for t in plain["added_tokens"] if t["content"] != name]
        del plain["model"]["vocab"][name]
    ours = load_tokenizer(json.dumps(plain))
    node = node_of("text", pad_id=ours.pad_id)
    save_huggingface(build(node), node, tmp_path, {"tokenizer": json.dumps(plain)})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    (cat,) = ours.encode(["a cat"])
    assert theirs("a cat")["input_ids"] == [ours.bos_id, *cat.tolist(), ours.eos_id]
    assert theirs.pad_token_id == ours.pad_id == transformers.AutoConfig.from_pretrained(tmp_path).pad_token_id


def word_level(*names: str, around: tuple[str, str] | None = None, pad: str | None = None) -> str:
    """A tokenizer.json of the library: ids in the order of ``names``, then three words."""
    import tokenizers

    vocab = {name: i for i, name in enumerate([*names, "a", "cat", "dog"])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token=names[-1]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens([name for name in names if name != "<s>"])  # that one is only in the vocabulary
    if around is not None:
        opener, closer = ((name, vocab[name]) for name in around)
        backend.post_processor = tokenizers.processors.BertProcessing(closer, opener)
    if pad is not None:
        backend.enable_padding(pad_id=vocab[pad], pad_token=pad)
    return backend.to_str()


ROLES = {  # tokenizer.json -> the tokens that open, close, pad, stand for unknown words and mask
    "used-ones-before-known-names": (
        word_level("<s>", "</s>", "<pad>", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]", around=("[CLS]", "[SEP]"),
                   pad="[PAD]"),
        ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"),
    ),
    "known-names": (word_level("<bos>", "<eos>", "<pad>", "<unk>"), ("<bos>", "<eos>", "<pad>", "<unk>", None)),
    "wide-bars": (
        word_level("<\uff5cbegin▁of▁sentence\uff5c>", "<\uff5cend▁of▁sentence\uff5c>", "<unk>"),
        ("<\uff5cbegin▁of▁sentence\uff5c>", "<\uff5cend▁of▁sentence\uff5c>", "<pad>", "<unk>", None),
    ),
    "names-of-nobody": (
        word_level("<o>", "<c>", "<x>", around=("<o>", "<c>")), ("<o>", "<c>", "<pad>", "<x>", None)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROLES)
def test_special_tokens_are_those_of_training(tmp_path: Path, name: str) -> None:
    from d2v.data.texts.tokenizer import load_tokenizer

    text, roles = ROLES[name]
    ours = load_tokenizer(text)
    node = node_of("text", pad_id=ours.pad_id)
    save_huggingface(build(node), node, tmp_path, {"tokenizer": ours.to_json()})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    found = (theirs.bos_token, theirs.eos_token, theirs.pad_token, theirs.unk_token, theirs.mask_token)
    assert found == roles
    assert (theirs.cls_token, theirs.sep_token) == roles[:2]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (ours.bos_id, ours.eos_id, ours.pad_id)
    (cat,) = ours.encode(["a cat"])
    batch = theirs(["a cat", "dog"], padding=True)
    assert batch["input_ids"][0] == [ours.bos_id, *cat.tolist(), ours.eos_id]
    assert batch["input_ids"][1][-1] == ours.pad_id
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (ours.bos_id, ours.eos_id, ours.pad_id)
    again = load_tokenizer(load_huggingface(tmp_path).inputs["tokenizer"])
    assert (again.bos_id, again.eos_id, again.mask_id) == (ours.bos_id, ours.eos_id, ours.mask_id)


def test_their_processor_of_speech_gives_our_inputs_and_reads_our_letters(tmp_path: Path) -> None:
    node = node_of("speech")
    encoder, head = perturb(build(node)), build(HEADS["speech"])
    save_huggingface(encoder, node, tmp_path, DATA["speech"], head, HEADS["speech"], " AB")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    waves = [3 + 2 * torch.randn(n).numpy() for n in SAMPLES]
    batch = processor(waves, sampling_rate=8000, padding=True, return_tensors="pt")
    for i, n in enumerate(SAMPLES):
        real = torch.from_numpy(waves[i])
        expected = (real - real.mean()) / real.std(correction=0)
        torch.testing.assert_close(batch["input_values"][i, :n], expected, atol=1e-4, rtol=1e-4)
        assert batch["attention_mask"][i].sum() == n
    assert processor.decode([0, 2, 2, 0, 2, 1, 1, 3, 0]) == "AA B"
    assert processor.tokenizer("AB A")["input_ids"] == [2, 3, 1, 2]
    assert processor.tokenizer.pad_token_id == 0
    with pytest.raises(ValueError, match="stands for the boundary of words"):
        save_huggingface(encoder, node, tmp_path, {}, head, HEADS["speech"], " A|")


def test_their_processor_of_images_gives_our_inputs(tmp_path: Path) -> None:
    from PIL import Image

    from d2v.data.images.views import EvalTransform, Normalize

    data = {"mean": [0.1, 0.2, 0.3], "std": [0.3, 0.4, 0.5], "crop_pct": 0.75}
    node = node_of("image", in_chans=3)
    save_huggingface(build(node), node, tmp_path, data)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    pixels = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 5), (32, 48), mode="bicubic")[0].clamp(0, 1)
    image = Image.fromarray((pixels * 255).byte().permute(1, 2, 0).numpy())
    theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    ours = EvalTransform(12, 0.75, Normalize((0.1, 0.2, 0.3), (0.3, 0.4, 0.5)))(image)
    assert theirs.shape == ours.shape == (3, 12, 12)
    assert (theirs - ours).abs().max() < 0.05  # bytes are rounded at other places

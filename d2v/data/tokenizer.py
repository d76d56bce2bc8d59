"""Byte-level BPE: our own, any Hugging Face ``tokenizer.json``, or the one of the released models (GPT-2's and a dict).

The work is that of the ``tokenizers`` library (extra ``d2v[text]``), imported when a tokenizer is made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

# In the order of the released models' dictionaries: <s> 0, <pad> 1, </s> 2, <unk> 3.
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_MASKS = ("<mask>", "[MASK]")
_ROLES = {
    "bos": ("<s>", "[CLS]", "<|startoftext|>", "<|begin_of_text|>"),
    "pad": ("<pad>", "[PAD]"),
    "eos": ("</s>", "[SEP]", "<|endoftext|>", "<|end_of_text|>"),
}


class Tokenizer:
    """Text to token ids.

    Attributes:
        vocab_size: ids are 0 to ``vocab_size`` - 1.
        bos_id: opens every block of text.
        pad_id: padding.
        eos_id: closes every document.
        mask_id: stands for masked tokens; None if there is none.
        fingerprint: of all that decides the ids.
    """

    def __init__(self, backend: Any, key: str = "data.tokenizer", ids: np.ndarray | None = None) -> None:
        backend.encode_special_tokens = True  # "<s>" in a text is three characters, not the token
        self._backend = backend
        self._ids = ids  # of the backend's ids, where ours are others
        self._roles = {}
        self.mask_id: int | None = None
        if ids is None:
            self.mask_id = next((i for i in map(backend.token_to_id, _MASKS) if i is not None), None)
            self.vocab_size = max(backend.get_vocab().values(), default=-1) + 1  # there may be gaps
            for role, names in _ROLES.items():
                found = [backend.token_to_id(name) for name in names if backend.token_to_id(name) is not None]
                if found:
                    self._roles[role] = int(found[0])
            self._fill_roles(key)
        else:
            self._roles = {"bos": 0, "pad": 1, "eos": 2}
            self.vocab_size = int(ids.max()) + 1
        self.bos_id, self.pad_id, self.eos_id = (self._roles[role] for role in ("bos", "pad", "eos"))
        content = backend.to_str() + ("" if ids is None else hashlib.sha256(ids.tobytes()).hexdigest())
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]

    def _fill_roles(self, key: str) -> None:
        """Many tokenizers have one token between texts, which then opens and closes, and none for padding."""
        between = self._roles.get("eos", self._roles.get("bos"))
        if between is None:
            names = ", ".join(_ROLES["bos"] + _ROLES["eos"])
            raise ValueError(f"{key}: the tokenizer has no token that opens or closes a text; it needs one of {names}")
        self._roles.setdefault("bos", between)
        self._roles.setdefault("eos", between)
        if "pad" not in self._roles:
            self._roles["pad"] = self.vocab_size
            self.vocab_size += 1

    def __reduce__(self) -> Any:
        return _rebuild, (self._backend.to_str(), self._ids, self.vocab_size)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of every text, without any that open or close it, as int32."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        found = [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]
        return found if self._ids is None else [self._ids[ids] for ids in found]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; those that open, close and pad are left out."""
        special = {self.bos_id, self.pad_id, self.eos_id}
        plain = [int(i) for i in ids if int(i) not in special]
        if self._ids is not None:
            unknown = SPECIALS.index("<unk>")
            back = {int(ours): theirs for theirs, ours in enumerate(self._ids.tolist()) if ours != unknown}
            plain = [back[i] for i in plain if i in back]
        text: str = self._backend.decode(plain, skip_special_tokens=False)
        return text

    def to_json(self) -> str:
        """All of it as text that :func:`load_tokenizer` reads: JSON, our ids beside the backend's if they differ."""
        content = json.loads(self._backend.to_str())
        if self._ids is not None:
            content = {"tokenizer": content, "ids": self._ids.tolist(), "vocab_size": self.vocab_size}
        # "${" would be an interpolation to whoever puts the text into a configuration.
        return json.dumps(content, ensure_ascii=False).replace("$", "\\u0024")


def _rebuild(backend: str, ids: np.ndarray | None, vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(_library().Tokenizer.from_str(backend), ids=ids)
    tokenizer.vocab_size = vocab_size
    if ids is not None:
        tokenizer.mask_id = vocab_size - 1
    return tokenizer


def load_tokenizer(path: str | Path, key: str = "data.tokenizer") -> Tokenizer:
    """A tokenizer from a file or folder.

    Args:
        path: ``tokenizer.json`` (ours or any of Hugging Face's), or what it contains; or a folder, one with
            ``tokenizer.json`` or one with the released models' ``encoder.json``, ``vocab.bpe`` and ``dict.txt``.
        key: the config key that ``path`` was read from, for messages.

    Raises:
        FileNotFoundError: there is no such file or folder, or nothing to read in it.
        ValueError: the file is no tokenizer, or ``tokenizers`` is not installed.
    """
    if str(path).lstrip().startswith("{"):
        return _from_json(str(path), key)
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"{key}={path}: no such file; train one with d2v tokenizer train, or give a tokenizer.json"
        )
    if path.is_dir():
        if (path / "dict.txt").is_file():
            return _load_released(path, key)
        if not (path / "tokenizer.json").is_file():
            raise FileNotFoundError(
                f"{key}={path}: holds neither tokenizer.json nor encoder.json, vocab.bpe and dict.txt; give one of them"
            )
        path = path / "tokenizer.json"
    return _from_json(_read(path, key), f"{key}={path}")


def _read(path: Path, key: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{key}={path}: not a text file ({error.reason} at byte {error.start})") from error


def _from_json(text: str, key: str) -> Tokenizer:
    library = _library()
    try:
        content = json.loads(text)
        if "ids" in content and "tokenizer" in content:
            return _rebuild(
                json.dumps(content["tokenizer"]), np.asarray(content["ids"], np.int32), content["vocab_size"]
            )
        backend = library.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"{key}: not a tokenizer.json ({error})") from error
    backend.no_padding()
    backend.no_truncation()
    return Tokenizer(backend, key)


def _load_released(folder: Path, key: str) -> Tokenizer:
    """GPT-2's BPE, whose ids ``dict.txt`` lists as text: line n is id n + 4, after <s>, <pad>, </s> and <unk>."""
    missing = [name for name in ("encoder.json", "vocab.bpe") if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{key}={folder}: has dict.txt but no {' and no '.join(missing)}; put it beside it")
    library = _library()
    try:
        vocab = json.loads(_read(folder / "encoder.json", key))
    except ValueError as error:
        raise ValueError(f"{key}={folder}: encoder.json is damaged ({error})") from error
    merges = [
        tuple(line.split())
        for line in _read(folder / "vocab.bpe", key).splitlines()
        if line and not line.startswith("#version")
    ]
    for merge in merges:
        if len(merge) != 2 or not {*merge, "".join(merge)} <= vocab.keys():
            raise ValueError(f"{key}={folder}: vocab.bpe merges {' '.join(merge)}, which encoder.json lacks: no pair")
    backend = library.Tokenizer(library.models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = library.decoders.ByteLevel()
    unknown = SPECIALS.index("<unk>")
    ids = np.full(max(vocab.values()) + 1, unknown, np.int32)
    lines = _read(folder / "dict.txt", key).split("\n")
    symbols = [line.rpartition(" ")[0] for line in lines if line.strip()]
    for place, symbol in enumerate(symbols):
        if symbol.isdigit() and int(symbol) < len(ids):
            ids[int(symbol)] = place + unknown + 1
    tokenizer = Tokenizer(backend, key, ids)
    tokenizer.vocab_size = len(symbols) + len(SPECIALS)  # <mask> is added after the dictionary's last symbol
    tokenizer.mask_id = tokenizer.vocab_size - 1
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE, trained on texts; every text can be encoded, whatever its characters.

    Args:
        texts: documents.
        vocab_size: ids, the 5 special ones and the 256 bytes included.

    Raises:
        ValueError: the vocabulary is too small, there is no text, or ``tokenizers`` is not installed.
    """
    smallest = len(SPECIALS) + 256
    if vocab_size < smallest:
        raise ValueError(f"data.vocab_size={vocab_size}: {len(SPECIALS)} special tokens and 256 bytes need {smallest}")
    library = _library()
    backend = library.Tokenizer(library.models.BPE())
    backend.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = iter(texts)
    first = next(texts, None)
    if first is None:
        raise ValueError("there is no text to train a tokenizer on: every document is empty or cannot be read")
    backend.train_from_iterator(chain([first], texts), trainer)
    return Tokenizer(backend)


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise ValueError("text needs the package tokenizers: pip install 'd2v[text]'") from error
    return tokenizers

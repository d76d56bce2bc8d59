"""Byte-level BPE: our own, any Hugging Face ``tokenizer.json``, or the one of the released models (GPT-2's and a dict).

The work is that of the ``tokenizers`` library (extra ``d2v[text]``), imported when a tokenizer is made.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from d2v.bounds import parse_json, read_text
from d2v.data.files import home_path
from d2v.data.texts.tokenizer_files import MAX_IDS, own_ids, parse_tokenizer
from d2v.errors import how_to_install
from d2v.special_tokens import CONFIG_KEYS, NAMES, find_roles

log = logging.getLogger(__name__)

# In the order of the released models' dictionaries: <s> 0, <pad> 1, </s> 2, <unk> 3.
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
LONGEST_WORD = 768  # bytes; whole characters of one, two, three or four bytes fill it


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

    def __init__(
        self,
        backend: Any,
        key: str = "tokenizer",
        ids: np.ndarray | None = None,
        config: Mapping[str, str] | None = None,
    ) -> None:
        backend.encode_special_tokens = True  # "<s>" in a text is three characters, not the token
        self._backend = backend
        self._ids = ids  # of the backend's ids, where ours are others
        self._pad_token: str | None = None  # where to_json has to say which it is
        self.mask_id: int | None = None
        if ids is None:
            self.vocab_size = max(backend.get_vocab().values(), default=-1) + 1  # there may be gaps
            self._set_roles(key, config or {})
        else:
            self.bos_id, self.pad_id, self.eos_id = 0, 1, 2
            self.vocab_size = int(ids.max()) + 1
        content = backend.to_str() + ("" if ids is None else hashlib.sha256(ids.tobytes()).hexdigest())
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]

    def _set_roles(self, key: str, config: Mapping[str, str]) -> None:
        """Find the roles of special tokens, and check that the backend alone implies them, as checkpoints need."""
        content = json.loads(self._backend.to_str())
        roles = find_roles(content, config)
        bos, pad, eos = roles.get("bos"), roles.get("pad"), roles.get("eos")
        if bos is None or eos is None:
            names = ", ".join(NAMES["bos"] + NAMES["eos"])
            raise ValueError(
                f"{key}: the tokenizer has no token that opens or closes a text; it needs one of {names}, or a "
                "tokenizer_config.json beside it with bos_token and eos_token"
            )
        self._backend.no_padding()
        content["padding"] = None
        told = find_roles(content)
        if (bos, eos) != (told.get("bos"), told.get("eos")):
            opener, closer = self._backend.id_to_token(bos), self._backend.id_to_token(eos)
            self._backend.post_processor = _library().processors.TemplateProcessing(
                single=[opener, "$A", closer],
                pair=[opener, "$A", closer, closer, "$B", closer],
                special_tokens=[(opener, bos), (closer, eos)],
            )
            told = find_roles(json.loads(self._backend.to_str()))
        if pad is None:  # none is needed to make texts
            pad = self.vocab_size
            self.vocab_size += 1
        elif pad != told.get("pad"):
            self._pad_token = self._backend.id_to_token(pad)
        self.bos_id, self.pad_id, self.eos_id, self.mask_id = bos, pad, eos, roles.get("mask")

    def __reduce__(self) -> Any:
        return load_tokenizer, (self.to_json(),)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of every text, without any that open or close it, as int32."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        ids_of = [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]
        return ids_of if self._ids is None else [self._ids[ids] for ids in ids_of]

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids into text, without tokens that open, close and pad."""
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
        if self._pad_token is not None:
            content["padding"] = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None}
            content["padding"] |= {"pad_id": self.pad_id, "pad_type_id": 0, "pad_token": self._pad_token}
        if self._ids is not None:
            content = {"tokenizer": content, "ids": self._ids.tolist(), "vocab_size": self.vocab_size}
        # "${" would be an interpolation to whoever puts the text into a configuration.
        return json.dumps(content, ensure_ascii=False).replace("$", "\\u0024")


def _rebuild(backend: str, ids: np.ndarray, vocab_size: int) -> Tokenizer:
    library = _library().Tokenizer.from_str(backend)
    library.no_truncation()
    library.no_padding()
    tokenizer = Tokenizer(library, ids=ids)
    tokenizer.vocab_size = vocab_size
    tokenizer.mask_id = vocab_size - 1
    return tokenizer


def load_tokenizer(path: str | Path, key: str = "tokenizer") -> Tokenizer:
    """A tokenizer from a file or folder.

    Args:
        path: ``tokenizer.json`` (ours or any of Hugging Face's; a ``tokenizer_config.json`` beside it may name the
            tokens that open, close and pad), or what it contains; or a folder, one with ``tokenizer.json`` or one with
            the released models' ``encoder.json``, ``vocab.bpe`` and ``dict.txt``.
        key: the argument that ``path`` was read from, for messages.

    Raises:
        FileNotFoundError: there is no such file or folder, or nothing to read in it.
        ValueError: the file is no tokenizer, or ``tokenizers`` is not installed.
    """
    if str(path).lstrip().startswith("{"):
        return _from_json(str(path), key)
    path = home_path(path, key)
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
    return _from_json(_read(path, key), f"{key}={path}", _named_tokens(path.parent / "tokenizer_config.json", key))


def _read(path: Path, key: str) -> str:
    try:
        return read_text(path)
    except ValueError as error:
        raise ValueError(f"{key}={path}: {error}") from error


def _named_tokens(path: Path, key: str) -> dict[str, str]:
    """The tokens that a ``tokenizer_config.json`` names, by its keys; none if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = parse_json(_read(path, key))
        tokens = {name: content.get(name) for names in CONFIG_KEYS.values() for name in names}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{key}={path}: damaged ({error}); repair it, or remove it if it is not needed") from error
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _from_json(text: str, key: str, config: Mapping[str, str] | None = None) -> Tokenizer:
    library = _library()
    try:
        content = parse_tokenizer(text)
        if "ids" in content and "tokenizer" in content:
            return _rebuild(json.dumps(content["tokenizer"]), *own_ids(content))
        backend = library.Tokenizer.from_str(text)
    except BaseException as error:  # the library raises bare Exceptions, and panics that are none
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{key}: not a tokenizer.json that can be used ({error})") from error
    backend.no_truncation()
    return Tokenizer(backend, key, config=config)


def _load_released(folder: Path, key: str) -> Tokenizer:
    """Load GPT-2's BPE, with its ids listed in ``dict.txt``: line n is id n + 4, after <s>, <pad>, </s> and <unk>."""
    missing = [name for name in ("encoder.json", "vocab.bpe") if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{key}={folder}: has dict.txt but no {' and no '.join(missing)}; put it beside it")
    library = _library()
    try:
        vocab = parse_json(_read(folder / "encoder.json", key))
    except ValueError as error:
        raise ValueError(f"{key}={folder}: encoder.json is damaged ({error})") from error
    if (
        not isinstance(vocab, dict)
        or not vocab
        or not all(isinstance(i, int) and 0 <= i < MAX_IDS for i in vocab.values())
    ):
        raise ValueError(f"{key}={folder}: encoder.json is no object of tokens and their ids; take the released one")
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
    ids, num_symbols = _released_ids(folder / "dict.txt", set(vocab.values()), key)
    tokenizer = Tokenizer(backend, key, ids)
    tokenizer.vocab_size = num_symbols + len(SPECIALS)  # <mask> is added after the dictionary's last symbol
    tokenizer.mask_id = tokenizer.vocab_size - 1
    return tokenizer


def _released_ids(path: Path, known: set[int], key: str) -> tuple[np.ndarray, int]:
    """Our id of every id of ``encoder.json``, and the number of ``dict.txt``'s symbols.

    A line is an id of ``encoder.json`` or a placeholder, "madeupword0000", then a space and a count. What no line lists
    becomes <unk>. The released dictionary lists all of GPT-2's 50,257 ids; one that was counted on a corpus lacks those
    that never came, mostly rare ones. Where more than a quarter are missing, the two files are not of one tokenizer, or
    ``dict.txt`` is only a part, and much of any text would be lost without a word: that is an error.
    """
    unknown = SPECIALS.index("<unk>")
    ids = np.full(max(known) + 1, unknown, np.int32)
    num_symbols = 0
    for number, line in enumerate(_read(path, key).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{key}={path.parent}: dict.txt:{number}"
        symbol, _, count = line.rpartition(" ")
        is_id = symbol.isascii() and symbol.isdecimal()
        if not (count.isascii() and count.isdecimal() and (is_id or symbol.startswith("madeupword"))):
            raise ValueError(f'{where}: {line!r} is not "ID COUNT", nor "madeupword0000 0" in its place')
        if is_id and int(symbol) not in known:
            raise ValueError(f"{where}: encoder.json has no id {symbol}; give the dict.txt that belongs to it")
        if is_id:
            ids[int(symbol)] = num_symbols + unknown + 1
        num_symbols += 1
    lost = int((ids[sorted(known)] == unknown).sum())
    if lost > len(known) / 4:
        raise ValueError(
            f"{key}={path.parent}: dict.txt lists {len(known) - lost} of the {len(known)} ids of encoder.json, and the "
            "others would be read as <unk>; give the dict.txt that belongs to it, whole"
        )
    if lost:
        log.warning("%s lacks %d of the %d ids of encoder.json: they are read as <unk>", path, lost, len(known))
    return ids, num_symbols


def train_tokenizer(texts: Iterable[str], vocab_size: int, key: str = "vocab_size") -> Tokenizer:
    """Byte-level BPE, trained on texts; every text can be encoded, whatever its characters.

    Words longer than ``LONGEST_WORD`` bytes (base64, DNA, a script without blanks) are learned and encoded in parts of
    this length: the time that merging takes grows with the square of a word's.

    Args:
        texts: documents.
        vocab_size: ids, the 5 special ones and the 256 bytes included.
        key: the argument that ``vocab_size`` was read from, for messages.

    Raises:
        ValueError: the vocabulary is too small, there is no text, or ``tokenizers`` is not installed.
    """
    smallest = len(SPECIALS) + 256
    if vocab_size < smallest:
        raise ValueError(
            f"{key}={vocab_size}: {len(SPECIALS)} special tokens and 256 bytes need {smallest}; give that or more"
        )
    library = _library()
    backend = library.Tokenizer(library.models.BPE())
    backend.pre_tokenizer = library.pre_tokenizers.Sequence(
        [
            library.pre_tokenizers.ByteLevel(add_prefix_space=False),
            library.pre_tokenizers.Split(library.Regex(f".{{{LONGEST_WORD}}}"), "isolated"),
        ]
    )
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
        import tokenizers.processors
        import tokenizers.trainers
    except ImportError as error:
        raise ValueError(f"text needs the package tokenizers: {how_to_install('text')}") from error
    return tokenizers

"""Fingerprint of data, by which a resumed run checks that the samples are still the same.

It covers names, labels and lengths of the samples, and the content of some, evenly spaced, but not their location, so
that a folder may move. An optional method ``mark(index) -> bytes`` of a source returns the relevant content of a
sample. Streams have no fingerprint, because their samples are unknown before they are read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from d2v.data.bad_samples import BadSample

_MARKS = 1000  # samples that are looked into
_HEAD = 4096  # bytes of a file


def fingerprint(data: Any) -> dict[str, Any]:
    """Return the fingerprint of training data, as plain containers for checkpoints.

    Args:
        data: a data set of any modality to pretrain on, or :class:`d2v.data.labelled.FinetuneSet`; it may have its own
            ``fingerprint()``.

    Returns:
        "sets": of every set, by name, the number of "samples" and their "digest"; "classes": names or what else labels
        mean, or None; "tokenizer": of text, its digest. Sets that are streamed are left out.
    """
    own = getattr(data, "fingerprint", None)
    if own is not None:
        stated: dict[str, Any] = own()
        return stated
    evals = getattr(data, "evals", None)
    sets = {"train": data.train} | ({} if evals is None else {"val": evals["val"]})
    classes = data.class_names if evals is None else data.labels
    tokenizer = getattr(data, "tokenizer", None)
    return {
        "sets": {name: _of_source(source) for name, source in sets.items() if hasattr(source, "__len__")},
        "classes": list(classes) if isinstance(classes, tuple | list) else classes,
        "tokenizer": None if tokenizer is None else tokenizer_digest(tokenizer),
    }


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the fingerprint of a tokenizer, independent of its file format."""
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()[:16]


def file_mark(file: str | os.PathLike[str] | bytes) -> bytes:
    """Return the size and first bytes of a file.

    Args:
        file: a path, or the content.
    """
    if isinstance(file, bytes):
        return len(file).to_bytes(8, "big") + file[:_HEAD]
    try:
        with Path(file).open("rb") as opened:
            return os.fstat(opened.fileno()).st_size.to_bytes(8, "big") + opened.read(_HEAD)
    except OSError:
        return b"unreadable"


def differences(before: dict[str, Any], now: dict[str, Any]) -> tuple[list[str], bool]:
    """Describe the differences between the data of a run and new data.

    Returns:
        One phrase for each difference, and whether only samples differ, not classes or tokenizer.
    """
    phrases = []
    for name, there in before.get("sets", {}).items():
        here = now["sets"].get(name)
        what = "the data" if name == "train" else f"the {name} set"
        if here is None:
            phrases.append(f"{what} had {there['samples']:,} samples, and are streamed now")
        elif here["samples"] != there["samples"]:
            phrases.append(f"{what} had {there['samples']:,} samples, now {here['samples']:,}")
        elif here["digest"] != there["digest"]:
            phrases.append(f"{what} have {here['samples']:,} samples as before, but others (names, labels or content)")
    phrases += [f"the {name} set is new" for name in now["sets"] if name not in before.get("sets", {})]
    alone = True
    if before.get("classes") != now["classes"]:
        alone = False
        phrases.append(f"the classes were {_listed(before.get('classes'))}, now {_listed(now['classes'])}")
    if before.get("tokenizer") != now["tokenizer"]:
        alone = False
        phrases.append("the tokenizer is another one, in which the token embeddings mean nothing")
    return phrases, alone


def _of_source(source: Any) -> dict[str, Any]:
    digest = hashlib.sha256()
    for part in _parts(source):
        digest.update(len(part).to_bytes(8, "big") + part)
    return {"samples": len(source), "digest": digest.hexdigest()[:16]}


def _parts(source: Any) -> Iterator[bytes]:
    count = len(source)
    yield count.to_bytes(8, "big")
    if count == 0:
        return
    if not source.name(0).endswith("]"):  # a number in brackets says nothing that the count does not
        for i in range(count):
            yield os.fsencode(source.name(i))
    if source.label(0) is not None:
        for i in range(count):
            yield repr(source.label(i)).encode()
    lengths = getattr(source, "lengths", None)
    if lengths is not None:
        yield np.asarray(lengths, dtype=np.int64).tobytes()
    mark = getattr(source, "mark", None)
    if mark is None:
        return
    marked = min(count, _MARKS)
    for i in range(marked):
        try:
            yield mark(i * count // marked)
        except BadSample as error:
            yield str(error).encode()


def _listed(classes: Any) -> str:
    if not isinstance(classes, list):
        return str(classes)
    shown = ", ".join(map(str, classes[:10]))
    return f"{shown}, ... ({len(classes)})" if len(classes) > 10 else shown

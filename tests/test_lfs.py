"""Git LFS pointers are told from data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from d2v.bounds import read_text
from d2v.data.bad_samples import BadSample
from d2v.data.images.decoding import decode_image
from d2v.data.speech.clips import decode_audio
from d2v.data.texts.documents import TextFiles, read_table
from d2v.data.texts.tokenizer import load_tokenizer
from d2v.interop import exports, native
from d2v.interop.huggingface import reading as huggingface_import
from d2v.lfs import is_lfs_pointer, refuse_lfs_pointer

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"6" * 64 + b"\nsize 146946961\n"


def test_pointers(tmp_path):
    (tmp_path / "model.pt").write_bytes(POINTER)
    (tmp_path / "long.txt").write_bytes(POINTER * 8)  # a text about pointers
    assert is_lfs_pointer(POINTER)
    assert is_lfs_pointer(tmp_path / "model.pt")
    assert not is_lfs_pointer(b"")
    assert not is_lfs_pointer(b"x" + POINTER)
    assert not is_lfs_pointer(tmp_path / "long.txt")
    assert not is_lfs_pointer(tmp_path / "gone")
    assert not is_lfs_pointer(tmp_path)


def test_the_error_names_key_file_and_fix(tmp_path):
    (tmp_path / "model.pt").write_bytes(POINTER)
    with pytest.raises(ValueError, match=r"checkpoint=x: .*model\.pt is a Git LFS pointer.*git lfs pull"):
        refuse_lfs_pointer(tmp_path / "model.pt", "checkpoint=x")
    refuse_lfs_pointer(tmp_path / "gone", "checkpoint=x")


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a checkpoint": ("model.ckpt", native.read_safely),
    "weights of an export": ("encoder.safetensors", exports._load_weights),
    "weights of Hugging Face's": ("model.safetensors", huggingface_import._load_file),
    "older weights of Hugging Face's": ("pytorch_model.bin", huggingface_import._load_file),
    "configurations": ("config.json", read_text),
    "a tokenizer": ("tokenizer.json", lambda path: load_tokenizer(str(path))),
    "a folder with a tokenizer": ("tokenizer.json", lambda path: load_tokenizer(str(path.parent))),
    "text": ("corpus.txt", lambda path: TextFiles(str(path)).check()),
    "a folder of text": ("corpus.txt", lambda path: TextFiles(str(path.parent)).check()),
    "a table": ("train.tsv", lambda path: read_table(str(path), "data.probe_train")),
    "audio": ("a.flac", lambda path: decode_audio(path, 16000)),
    "an image": ("a.jpg", decode_image),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_says_so(tmp_path, reader):
    name, read = READERS[reader]
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises((ValueError, BadSample), match=r"a Git LFS pointer.*`git lfs pull`"):
        read(tmp_path / name)

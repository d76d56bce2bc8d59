"""Files recognised before they are read: encodings, and what is no plain text."""

from __future__ import annotations

import codecs
import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from d2v.data.plain_text import encoding_of, not_plain_text, utf8_of
from d2v.data.texts.documents import HFTexts, TextFiles

LINES = [f"Zeile {i}: größer, 猫 und 𝄞" for i in range(40)]
TEXT = "\n".join(LINES)


def texts(path: Path, document: str = "line") -> list[str | None]:
    return [found.text for found in TextFiles(str(path), document).read()]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_corpora_are_utf8_and_small_files_any_unicode(tmp_path, encoding, suffix, ending):
    """With a byte order mark, and without one."""
    content = ending.join(LINES).encode(encoding)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content) if suffix == ".txt.gz" else content)
    if suffix == ".txt":
        assert utf8_of(path).decode() == ending.join(LINES)
    if encoding == "utf-8-sig":
        assert texts(path) == LINES
        assert texts(path, "file") == [ending.join(LINES)]
        return
    name = {"utf-16": "utf-16-le", "utf-32": "utf-32-le"}.get(encoding, encoding).upper()
    iconv = name[:6] + name[-2:]
    fix = rf"root=.*: text in {iconv}, not in UTF-8: convert it, for example with iconv -f {iconv} -t UTF-8"
    with pytest.raises(ValueError, match=fix):
        texts(path)


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        (b"", "utf-8"),
        (b"a\0", "utf-8"),  # too little to tell
        (b"plain", "utf-8"),
        (codecs.BOM_UTF16_BE + b"\0a", "utf-16-be"),
        (codecs.BOM_UTF32_LE + b"a\0\0\0", "utf-32-le"),
        ("hello there".encode("utf-16-le"), "utf-16-le"),
        ("hello there".encode("utf-32-le"), "utf-32-le"),
        (b"a\0b\0c\0" + b"\0" * 60, "utf-8"),  # mostly zeros: binary
        (bytes(4000), "utf-8"),
    ],
)
def test_encodings_are_told_by_marks_and_zeros(head, encoding):
    assert encoding_of(head) == encoding


def test_a_table_in_utf16_that_breaks_off_is_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("good\nbad\n".encode("utf-16") + b"\x00\xd8" * 3)
    with pytest.raises(ValueError, match=r"not UTF-16-LE \(illegal UTF-16 surrogate"):
        utf8_of(path)


def json_lines(count: int = 20) -> str:
    return "".join(json.dumps({"id": i, "text": f"row {i}"}) + "\n" for i in range(count))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "a.jsonl",
            json_lines(),
            r"JSON lines.*, not plain text: use data=hf_text path=.*a\.jsonl column=text",
        ),
        ("a.jsonl", json_lines(1), r"^JSON.*, not plain text: use data=hf_text path=.*a\.jsonl"),
        ("a.txt", json_lines(), r"rename it to a\.jsonl, and use data=hf_text path=.*a\.jsonl column=text"),
        ("a.txt", json_lines(5000), r"^JSON lines.*, not plain text"),
        ("a.txt", json.dumps({"body": "x"}), r"^JSON.*, not plain text: rename it to a\.json, .* column=body"),
        ("a.txt", json.dumps([{"a": i} for i in range(9)], indent=2), r"^JSON.*, not plain text"),
        ("a.txt", json.dumps([{"a": i, "b": "x y"} for i in range(9999)], indent=2), r"^JSON.*, not plain text"),
        (
            "a.csv",
            "one, two\nthree\n",
            r"^a comma-separated table, not plain text: use data=hf_text path=.*a\.csv column=",
        ),
        ("a.txt", "id\ttext\n" + "1\ta cat\n" * 9, r"^a tab-separated table \(text, id\), .* rename it to a\.tsv"),
        ("a.txt", "text,label\n" + '"a, cat",1\n' * 9, r"^a comma-separated table"),
        ("a.txt", json_lines(2).replace("text", "text" * 9000), r"^JSON lines"),
        ("a.txt", json.dumps({"text": "a cat " * 20000}) + "\n" + json.dumps({"text": "b"}), r"^JSON lines"),
        ("a.txt", json.dumps([{"text": "a cat", "id": i} for i in range(9999)]), r"^JSON, not plain text"),
        ("a.txt", json.dumps(['a "cat"'] * 9999), r"^JSON, not plain text"),
        ("a.txt.gz", gzip.compress(json_lines().encode()), r"rename it to a\.jsonl\.gz, .* path=.*a\.jsonl\.gz "),
        ("a.txt", "review,mood\n" + '"A cat, and a dog",good\n' * 9, r"^a comma-separated table \(review, mood\)"),
        ("a.txt", "no,review\n" + '1,"A ""cat"", and a dog"\n' * 9, r"^a comma-separated table"),
        ("a.txt", "a cat\ra dog\r" * 9, r"lines end in carriage returns alone, .* tr '.r' '.n'$"),
        ("a.txt", ("猫が座った\n" * 9).encode("iso-2022-jp"), r"^text in ISO-2022, .*iconv"),
        ("a.txt", "\n<!DOCTYPE html>\n<p>a</p>", r"^HTML or XML, not plain text: write its text into a file"),
        ("a.txt", '<?xml version="1.0"?><a/>', r"^HTML or XML"),
        ("a.txt", b"%PDF-1.7 and more", r"^PDF, not plain text: write its text"),
        ("a.txt", b"PAR1" + bytes(200), r"^parquet, not plain text: rename it to a\.parquet, and use data=hf_text"),
        ("a.parquet", b"PAR1" + bytes(200), r"^parquet, not plain text: use data=hf_text path=.*a\.parquet"),
        ("a.txt", gzip.compress(b"a cat\n" * 99), r"^gzip, not plain text: let its name end in \.gz, or unpack it"),
        ("a.txt.gz", gzip.compress(gzip.compress(b"a cat\n" * 99)), r"^gzip, not plain text: unpack it once"),
        ("a.txt.gz", gzip.compress(json_lines().encode()), r"^JSON lines.*, not plain text"),
        ("a.txt", json_lines().encode("utf-16"), r"^text in UTF-16LE, not in UTF-8: .*iconv"),
        ("a.txt", ("größer\n" * 9).encode("latin-1"), r"9 of the first 9 lines are not UTF-8: .*iconv"),
        ("a.txt", ("猫が座った\n" * 9).encode("shift-jis"), r"9 of the first 9 lines are not UTF-8"),
        ("a.txt", ("猫が座った\n" * 9).encode("utf-16-le"), r"not UTF-8|a binary file"),  # no zeros to tell it by
        ("a.txt", ("größer " * 20000).encode("latin-1"), r"1 of the first 1 lines are not UTF-8"),
        ("a.txt", np.random.default_rng(0).bytes(5000), r"a binary file|not UTF-8"),
        ("a.txt", np.arange(500, dtype=np.int64).tobytes(), r"a binary file, not text: move it away"),
        (
            "a.txt",
            "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
            r"^a Git LFS pointer, .*git lfs pull",
        ),
    ],
)
def test_what_is_no_plain_text_is_refused_with_the_fix(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=reason.removeprefix("^")) as error:
        next(TextFiles(str(path)).read())
    assert str(error.value).startswith(f"root={path}: ")


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(['{"a": 1}', "is what JSON looks like,", "[1, 2]", "is a list"] * 9),
        "{curly} braces\n[and brackets]\n" * 9,
        "RIFFs are played\nOggS\n",
        "PAR1 and BZh are words, too",
        "one\ttab\nand more\ttext\n" * 9,
        "He said, she said, they said\nand, so, on\n" * 9,
        "He said, she said\n" + '"Stop," he said, and "go," she said\n' * 9,
        '"No," he said\n"Yes," she said\n' * 9,
        "{" + "words " * 20000,
        "one\ra cat\n" * 9,
        "<doc id=1>\nwords\n</doc>\n" * 9,
        "größer\n" * 9999 + "\ufeff猫\n",
        "a\n",
        "",
        "x" * 2**17,
        ("é" * 2**17)[1:],  # the head ends within a letter
    ],
)
def test_honest_text_is_not_refused(tmp_path, content):
    path = tmp_path / "a.txt"
    path.write_text(content)
    assert not_plain_text(path, "root") is None


def test_plain_text_under_the_name_of_packed_text_is_a_bad_document(tmp_path):
    (tmp_path / "a.txt.gz").write_text("a cat")
    (document,) = TextFiles(str(tmp_path)).read()
    assert "Not a gzipped file" in document.reason


@pytest.mark.parametrize("name", ["a.txt.GZ", "a.TXT.gz "])
def test_packed_files_are_unpacked_whatever_the_case_of_their_names(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(TEXT.encode()))
    assert texts(tmp_path) == LINES


def test_a_few_lines_of_latin_1_are_bad_lines_not_a_bad_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\n" * 9 + "größer\n".encode("latin-1"))
    assert texts(path) == ["fine"] * 9 + [None]


def test_a_nul_makes_a_line_bad(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\n" * 99 + b"a\0b\n")
    *_, last = TextFiles(str(path)).read()
    assert (last.text, last.reason) == (None, "a NUL character (at byte 1): not text")


def test_all_files_of_a_folder_that_are_no_plain_text_are_named_at_once(tmp_path):
    (tmp_path / "good.txt").write_text("a cat\n")
    (tmp_path / "bad.txt").write_text(json_lines())
    with zipfile.ZipFile(tmp_path / "zip.txt", "w") as archive:
        archive.writestr("a", "a cat")
    with pytest.raises(
        ValueError, match=r"files=.*: 2 of 3 files are no plain text; (?s:.*)bad\.txt: JSON lines"
    ) as error:
        next(TextFiles(str(tmp_path), key="files").read())
    assert f"{tmp_path / 'zip.txt'}: a zip archive, not plain text: write its text into a file in UTF-8" in str(
        error.value
    )
    assert "hf_text" not in str(error.value)  # what trains a tokenizer reads plain text alone


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", json_lines(3)),
        ("a.tsv", "id\ttext\n" + "".join(f"{i}\trow {i}\n" for i in range(3))),
        ("a.jsonl.gz", gzip.compress(json_lines(3).encode())),
    ],
)
def test_hf_text_reads_one_file(tmp_path, name, content, streaming):
    """What a refused file's message says to do."""
    pytest.importorskip("datasets")
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    documents = HFTexts(str(path), "train", "text", streaming)
    assert [document.text for document in documents.read()] == ["row 0", "row 1", "row 2"]
    with pytest.raises(ValueError, match=r"split=test: no such split of path=.*: one file has the split train"):
        HFTexts(str(path), "test", "text")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.tsv", 'text\tno\n"Stop, he said\t1\n"go\t2\n', ['"Stop, he said', '"go']),
        ("a.tsv", 'text\tno\n"a\tb"\t1\n"a ""cat"""\t2\n', ["a\tb", 'a "cat"']),
        ("a.csv", "text,no\nNA,1\nnull,2\nNone,3\n", ["NA", "null", "None"]),
    ],
)
def test_hf_text_loses_no_row_of_a_table(tmp_path, name, content, expected):
    pytest.importorskip("datasets")
    (tmp_path / name).write_text(content)
    assert [document.text for document in HFTexts(str(tmp_path / name), "train", "text").read()] == expected


def test_files_that_hf_text_cannot_read_are_named(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"path=.*a\.jsonl: an empty file"):
        HFTexts(str(tmp_path / "a.jsonl"))
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"path=.*a\.xlsx: give a file that ends in \.jsonl"):
        HFTexts(str(tmp_path / "a.xlsx"))
    (tmp_path / "a.parquet").write_bytes(b"PAR1, torn")
    with pytest.raises(ValueError, match=r"path=.*a\.parquet: cannot be read as parquet"):
        HFTexts(str(tmp_path / "a.parquet"))

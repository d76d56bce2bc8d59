"""Tables of labelled text: TSV and CSV, columns, quotes, errors by line."""

from __future__ import annotations

import csv
import gzip

import pytest
from small_texts import files, table

from d2v.data.texts.documents import read_table

pytest.importorskip("tokenizers")


def test_a_tsv_has_quotes_as_they_are(tmp_path):
    path = table(
        tmp_path / "a.tsv", 'idx\tsentence\tlabel\n0\the said "no\tgood\n1\t"a" cat, größer \tbad\n2\t"\tgood\n'
    )
    rows = read_table(path, "probe_train")
    assert rows.texts == ['he said "no', '"a" cat, größer', '"']
    assert (rows.labels, rows.class_names, len(rows)) == ([1, 0, 1], ("bad", "good"), 3)
    assert [rows.label(i) for i in range(3)] == [1, 0, 1]
    assert rows.name(1) == f"{path}[1]"


def test_a_csv_has_quoted_fields(tmp_path):
    path = table(tmp_path / "a.csv", '\ufefflabel,text\n"a","one, two ""x"""\nb,"two\nlines"\n')
    rows = read_table(path, "probe_train")
    assert rows.texts == ['one, two "x"', "two\nlines"]
    assert rows.labels == [0, 1]


def test_lines_may_end_as_on_windows(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"text\tlabel\r\na cat\tx\r\na dog\ty\r\n")
    rows = read_table(str(tmp_path / "a.tsv"), "probe_train")
    assert (rows.texts, rows.class_names) == (["a cat", "a dog"], ("x", "y"))


def test_columns_are_found_or_asked_for(tmp_path):
    path = table(tmp_path / "a.tsv", "text\ttitle\tlabel\tstars\nt\th\ta\t5\n")
    assert read_table(path, "k").texts == ["t"]
    chosen = read_table(path, "k", "title", "stars")
    assert (chosen.texts, chosen.class_names) == (["h"], ("5",))
    with pytest.raises(ValueError, match=r"text_column=body: .*a\.tsv has the columns text, title, label, stars;"):
        read_table(path, "k", "body")
    with pytest.raises(ValueError, match=r"label_column=class: .*; set label_column to one of them"):
        read_table(path, "k", None, "class")
    with pytest.raises(ValueError, match=r"text_column=null: .*b\.tsv has the columns a, label"):
        read_table(table(tmp_path / "b.tsv", "a\tlabel\nx\ty\n"), "k")


def test_short_rows_and_unknown_labels_are_named_by_file_and_line(tmp_path):
    short = table(tmp_path / "short.tsv", "text\tlabel\nfine\tx\nno label\n")
    with pytest.raises(ValueError, match=r"short\.tsv:3: 1 columns, but the header has 2"):
        read_table(short, "probe_train")
    multiline = table(tmp_path / "lines.csv", 'text,label\n"two\nlines",x\nno label\n')
    with pytest.raises(ValueError, match=r"lines\.csv:4: 1 columns"):
        read_table(multiline, "probe_train")
    train = table(tmp_path / "train.tsv", "text\tlabel\na\tx\nb\ty\n")
    val = table(tmp_path / "val.tsv", "text\tlabel\nc\ty\nd\tz\n")
    with pytest.raises(ValueError, match=r"val\.tsv:3: label 'z' is not in the training set \(x, y\)"):
        files(None, probe_train=train, probe_val=val)


def test_a_table_without_rows_or_utf8(tmp_path):
    for content in ("text\tlabel\n", ""):
        with pytest.raises(ValueError, match=r"has no rows|an empty table"):
            read_table(table(tmp_path / "a.tsv", content), "probe_train")
    (tmp_path / "a.tsv").write_bytes(b"text\tlabel\n\xe9\tx\n")
    with pytest.raises(ValueError, match=r"probe_val=.*a\.tsv: not UTF-8 \(invalid continuation byte at byte 11"):
        read_table(str(tmp_path / "a.tsv"), "probe_val")


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".CSV"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_cells_that_csv_quotes_are_understood(tmp_path, suffix, quoting):
    texts = ["plain", "with\ta tab", "with, a comma", "on two\nlines", 'he said "no"', '"quoted"', "größer"]
    delimiter = "\t" if suffix == ".tsv" else ","
    path = tmp_path / f"a{suffix}"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=quoting)
        writer.writerows([["text", "label"], *([text, i % 2] for i, text in enumerate(texts))])
    rows = read_table(str(path), "k")
    assert (rows.texts, rows.labels) == (texts, [0, 1, 0, 1, 0, 1, 0])
    path.write_bytes(path.read_text().encode("utf-16"))
    assert read_table(str(path), "k").texts == [text.replace("\r", "") for text in texts]


def test_bare_quotes_in_a_tsv_are_letters(tmp_path):
    """As in GLUE's files: a quote need not be closed."""
    path = table(tmp_path / "a.tsv", 'text\tlabel\n"open\tx\na 5" nail\ty\n"all of it"\tx\n')
    assert read_table(path, "k").texts == ['"open', 'a 5" nail', '"all of it"']


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", 'text\tlabel\na "b" c\tand so on\tx\n', r"a\.tsv:2: 3 columns, but the header has 2; put cells"),
        ("a.csv", "text,label\n\na,b,x\n", r"a\.csv:3: 3 columns, but the header has 2; put cells that hold"),
        ("a.csv", 'text,label\nfine,x\n"open,x\nmore,y\n', r"a\.csv:3: .*; close the quotes"),
        ("a.csv", 'text,label\n"a" b,x\n', r"a\.csv:2: .* expected after .*; close the quotes"),
        ("a.csv", "text;label\na;x\n", r"=null: .*a\.csv has one column alone, 'text;label'; separate .* by commas"),
        ("a.tsv", "text,label\na,x\n", r"=null: .*a\.tsv has one column alone, 'text,label'; separate .* by tabs"),
        ("a.tsv", "", r"^k=.*a\.tsv: an empty table; give a \.tsv or \.csv file with a header"),
        ("a.csv", "\n\n", r"^k=.*a\.csv: an empty table"),
        ("a.tsv", "text\ttext\tlabel\na\tb\tx\n", r"a\.tsv:1: the header has 2 columns 'text'; rename all but one"),
        ("a.tsv", "text\tlabel\na\t \n", r"a\.tsv:2: no label in column 'label'; add one, or remove the row"),
        ("a.tsv", "text\tlabel\na\0b\tx\n", r"a\.tsv:2: a NUL character"),
        ("a.tsv", b"PK\x03\x04" + bytes(90), r"k=.*a\.tsv: a zip archive, not plain text"),
        ("a.tsv", b"version https://git-lfs.github.com/spec/v1\noid\n", r"k=.*a\.tsv: a Git LFS pointer"),
        ("a.tsv", gzip.compress(b"text\tlabel\n", mtime=0), r"k=.*a\.tsv: gzip, not plain text"),
    ],
)
def test_tables_that_cannot_be_read_right_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_table(str(tmp_path / name), "k")


def test_classes_that_differ_only_in_blanks_or_case_are_named(tmp_path, caplog):
    path = table(tmp_path / "a.tsv", "text\tlabel\na\tgood\nb\tGood \nc\t bad\nd\tgo od\n")
    assert read_table(path, "k").class_names == ("Good", "bad", "go od", "good")
    assert caplog.messages == [f"{path}: the classes 'Good', 'go od', 'good' differ only in blanks or case"]


def test_the_limit_takes_rows_evenly_and_for_training_only(tmp_path):
    content = "text\tlabel\n" + "".join(f"row {i}\t{'c' if i == 3 else i % 2}\n" for i in range(10))
    path = table(tmp_path / "a.tsv", content)
    assert read_table(path, "k", limit=4).texts == ["row 0", "row 2", "row 5", "row 7"]
    assert read_table(path, "k", limit=10).texts == read_table(path, "k", limit=99).texts == read_table(path, "k").texts
    data = files(None, probe_train=path, probe_val=path, probe_limit=4)
    assert (len(data.probe_train), len(data.val)) == (4, 10)
    assert data.class_names == data.val.class_names == ("0", "1", "c")  # those of rows left out, too


def test_blanks_before_quotes_are_no_part_of_a_cell(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text, label\n"a, b", "1"\nc, 0\n')
    rows = read_table(str(path), "k")
    assert (rows.texts, rows.class_names, rows.labels) == (["a, b", "c"], ("0", "1"), [1, 0])

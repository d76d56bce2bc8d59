"""``d2v tokenizer train``: from text files to a tokenizer.json that data use."""

from __future__ import annotations

import gzip
from pathlib import Path
from types import ModuleType

import pytest

from d2v.data.texts.tokenizer import load_tokenizer, train_tokenizer

pytest.importorskip("tokenizers")

LINES = ["the cat sat on the mat", "the dog and the other cat", "größe 猫"] * 10


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A folder of text."""
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.txt").write_text("\n\n".join(LINES) + "\n")
    (folder / "b.txt.gz").write_bytes(gzip.compress("\n".join(LINES).encode()))
    return folder


def test_it_writes_what_training_on_the_documents_gives(runs: ModuleType, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "bpe.json"
    result = runs.d2v_command("tokenizer", "train", f"files={text}", "vocab_size=285", f"output={output}")
    assert result.status in (0, None), result.err
    tokenizer = load_tokenizer(output)
    assert tokenizer.fingerprint == train_tokenizer(LINES * 2, 285).fingerprint
    sample = LINES * 2
    compression = sum(len(line.encode()) for line in sample) / sum(len(ids) for ids in tokenizer.encode(sample))
    assert f"tokenizer: {output}, 285 tokens, {compression:.2f} bytes a token" in result.out
    assert f"use it with data.tokenizer={output} data.vocab_size=285" in result.out
    assert "skipped" not in result.out


def test_its_documents_may_be_files(runs: ModuleType, text: Path, tmp_path: Path) -> None:
    """Which differ where merges reach over a line's end."""
    (text / "c.txt").write_text("x\n\n\n\n\ny" * 50)
    arguments = ("tokenizer", "train", f"files={text}", "vocab_size=300")
    assert runs.d2v_command(*arguments, f"output={tmp_path / 'lines.json'}").status in (0, None)
    assert runs.d2v_command(*arguments, f"output={tmp_path / 'files.json'}", "document=file").status in (0, None)
    lengths = [len(load_tokenizer(tmp_path / name).encode(["\n\n\n\n"])[0]) for name in ("lines.json", "files.json")]
    assert lengths[0] == 4 > lengths[1]


def test_by_default_it_writes_tokenizer_json_beside_the_user_and_nothing_else(
    runs: ModuleType, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(text.parent)
    result = runs.d2v_command("tokenizer", "train", "files=text", "vocab_size=280")
    assert result.status in (0, None), result.err
    assert sorted(path.name for path in text.parent.iterdir()) == ["text", "tokenizer.json"]
    assert load_tokenizer("tokenizer.json").vocab_size == 280
    again = runs.d2v_command("tokenizer", "train", "files=text", "vocab_size=270")  # replaces it
    assert again.status in (0, None), again.err
    assert load_tokenizer("tokenizer.json").vocab_size == 270


def test_it_names_what_it_skips(runs: ModuleType, text: Path, tmp_path: Path) -> None:
    (text / "c.txt").write_bytes(b"fine\n\xff\xfe\nfine\n")
    output = tmp_path / "bpe.json"
    result = runs.d2v_command("tokenizer", "train", f"files={text}", "vocab_size=280", f"output={output}")
    assert result.status in (0, None), result.err
    skipped = [line for line in result.out.splitlines() if line.startswith("skipped")]
    assert skipped == [f"skipped {text}/c.txt:2: not UTF-8 (invalid start byte at byte 0)"]


def test_text_in_another_encoding_is_named(runs: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9\n" * 10)
    result = runs.d2v_command("tokenizer", "train", f"files={tmp_path}", f"output={tmp_path / 'bpe.json'}")
    assert result.status == 1
    for words in (f"files={tmp_path}", "10 of the first 10 lines are not UTF-8", "iconv -f LATIN1 -t UTF-8"):
        assert words in result.err
    assert "Traceback" not in result.err + result.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], ["files=VALUE"]),
        (["train", "files=/gone"], ["files=/gone", "no such file or folder"]),
        (["train", "files=EMPTY"], ["files=EMPTY", "no text file there"]),
        (["train", "files=TEXT", "vocab_size=260"], ["error: vocab_size=260", "261"]),
        (["train", "files=TEXT", "vocab_size=many"], ["vocab_size=many", "whole number"]),
        (["train", "files=null"], ["files=null", "give a path"]),
        (["train", "files=TEXT", "document=page"], ["document=page", "choose one of line, file"]),
        (["train", "files=TEXT", "output=EMPTY"], ["output=EMPTY", "is a folder", "EMPTY/tokenizer.json"]),
        (["train", "files=TEXT", "output=TEXT/a.txt/x.json"], ["a.txt"]),
        (["train", "files=TEXT", "vocabsize=300"], ["'vocabsize'", "Did you mean vocab_size"]),
        (["trian", "files=TEXT"], ["unknown action 'trian'", "d2v tokenizer train"]),
        (["files=TEXT"], ["unknown action", "d2v tokenizer train"]),
        ([], ["unknown action", "d2v tokenizer train"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_errors(
    runs: ModuleType,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: list[str],
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    names = {"TEXT": str(text), "EMPTY": str(tmp_path / "empty")}
    for name, path in names.items():
        arguments, words = ([word.replace(name, path) for word in given] for given in (arguments, words))
    result = runs.d2v_command("tokenizer", *arguments)
    assert result.status == 1
    for word in words:
        assert word in result.err
    assert "Traceback" not in result.err + result.out
    assert not list(tmp_path.rglob("*.json"))


def test_it_replaces_nothing_but_a_tokenizer(runs: ModuleType, text: Path, tmp_path: Path) -> None:
    arguments = ("tokenizer", "train", f"files={text}", "vocab_size=280")
    corpus = (text / "a.txt").read_bytes()
    result = runs.d2v_command(*arguments, f"output={text / 'a.txt'}")
    assert f"output={text / 'a.txt'}: the name must end in .json" in result.err
    assert (text / "a.txt").read_bytes() == corpus
    thesis = tmp_path / "thesis.json"
    thesis.write_text('{"chapters": 7}')
    assert (
        f"output={thesis}: is there already and is no tokenizer" in runs.d2v_command(*arguments, f"output={thesis}").err
    )
    assert thesis.read_text() == '{"chapters": 7}'
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("[]")
    result = runs.d2v_command(*arguments, f"output={run / 'tokenizer.json'}")
    assert f"{run} is a run or an export; choose another folder" in result.err

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from d2v.data.texts.glue import GlueData, PairView, glue
from d2v.data.texts.glue_files import write_submission
from d2v.data.texts.glue_tasks import TASKS, Sentences
from d2v.data.texts.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the cat sat on the mat", "a dog ran after the cat", "it did not rain today"] * 20, 300)


@pytest.fixture(scope="module")
def tokenizer_file(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(tokenizer.to_json())
    return str(path)


FILES = {
    "CoLA": {
        "train": "gj04\t1\t\tThe cat sat.\ngj04\t0\t*\tSat cat the.\n",
        "dev": "gj04\t1\t\tA dog ran.\n",
        "test": "index\tsentence\n0\tIt did rain.\n1\tRain it did not the.\n",
    },
    "MRPC": {
        "train": '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\tThe "cat" sat .\tA cat sat .\n',
        "dev": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n0\t3\t4\tIt rains .\tA dog ran .\r\n",
        "test": "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t5\t6\ta\tb\n",
    },
    "STS-B": {
        "train": "index\tgenre\tsentence1\tsentence2\tscore\n0\tx\tThe cat sat.\tA cat sat.\t4.250\n",
        "dev": "index\tgenre\tsentence1\tsentence2\tscore\n0\tx\tThe cat sat.\tIt rains.\t0.000\n",
        "test": "index\tgenre\tsentence1\tsentence2\n0\tx\ta\tb\n",
    },
    "RTE": {
        "train": "index\tsentence1\tsentence2\tlabel\n0\tThe cat sat.\tA cat sat.\tentailment\n",
        "dev": "index\tsentence1\tsentence2\tlabel\n0\tThe cat sat.\tIt rains.\tnot_entailment\n",
        "test": "index\tsentence1\tsentence2\n0\ta\tb\n",
    },
    "MNLI": {
        "train": "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tThe cat sat.\tA cat sat.\tneutral\tentailment\n",
        "dev_matched": "index\tsentence1\tsentence2\tgold_label\n0\ta\tb\tneutral\n",
        "dev_mismatched": "index\tsentence1\tsentence2\tgold_label\n0\tc\td\tcontradiction\n",
        "test_matched": "index\tsentence1\tsentence2\n0\ta\tb\n",
        "test_mismatched": "index\tsentence1\tsentence2\n0\ta\tb\n",
    },
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder, files in FILES.items():
        (tmp_path / folder).mkdir()
        for name, content in files.items():
            (tmp_path / folder / f"{name}.tsv").write_text(content, encoding="utf-8", newline="")
    return tmp_path


@pytest.fixture
def read(root: Path, tokenizer: Tokenizer, tokenizer_file: str):  # type: ignore[no-untyped-def]
    def read(task: str, **options: object) -> GlueData:
        chosen = {"tokenizer": tokenizer_file, "vocab_size": tokenizer.vocab_size, "block_size": 32, **options}
        return glue(task, str(root), **chosen)  # type: ignore[arg-type]

    return read


def test_files_without_a_header_and_labels_by_name(read) -> None:  # type: ignore[no-untyped-def]
    cola = read("cola")
    assert [cola.train.load(i) for i in range(2)] == [("The cat sat.",), ("Sat cat the.",)]
    assert [cola.train.label(i) for i in range(2)] == [1, 0]
    assert [cola.evals["test"].load(i) for i in range(2)] == [("It did rain.",), ("Rain it did not the.",)]
    assert cola.evals["test"].label(0) is None
    rte = read("rte")
    assert (rte.train.label(0), rte.evals["val"].label(0)) == (0, 1)
    assert rte.finetune().labels == ("entailment", "not_entailment")


def test_byte_order_marks_quotes_and_windows_line_ends(read) -> None:  # type: ignore[no-untyped-def]
    mrpc = read("mrpc")
    assert mrpc.train.load(0) == ('The "cat" sat .', "A cat sat .")
    assert mrpc.evals["val"].load(0) == ("It rains .", "A dog ran .")


def test_scores_are_numbers(read) -> None:  # type: ignore[no-untyped-def]
    data = read("stsb").finetune()
    assert data.labels == (0.0, 5.0)
    batch = next(iter(data.eval_loader("val")))
    assert batch.labels.dtype == torch.float32
    assert batch.labels.tolist() == [0.0]
    assert data.train.label(0) == 4.25


def test_mnli_has_two_development_sets(read) -> None:  # type: ignore[no-untyped-def]
    data = read("mnli")
    assert list(data.evals) == ["val", "val_mismatched", "test_matched", "test_mismatched"]
    assert data.train.label(0) == TASKS["mnli"].classes.index("entailment")


def test_pairs_are_packed_as_the_released_models_expect(tokenizer: Tokenizer) -> None:
    first, second = (ids.tolist() for ids in tokenizer.encode(["the cat", "a dog ran"]))
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    view = PairView(tokenizer, 64)
    assert view(("the cat", "a dog ran")).tolist() == [bos, *first, eos, eos, *second, eos]
    assert view(("the cat",)).tolist() == [bos, *first, eos]


def test_the_longer_sentence_is_cut_first(tokenizer: Tokenizer) -> None:
    long, short = "the cat sat on the mat " * 10, "a dog"
    (second,) = (ids.tolist() for ids in tokenizer.encode([short]))
    ids = PairView(tokenizer, 24)((long, short)).tolist()
    assert len(ids) == 24
    assert ids[-len(second) - 2 :] == [tokenizer.eos_id, *second, tokenizer.eos_id]
    both = PairView(tokenizer, 24)((long, long)).tolist()
    assert len(both) == 24
    assert both.count(tokenizer.eos_id) == 3
    assert len(PairView(tokenizer, 24)((long,))) == 24


@pytest.mark.parametrize(
    ("task", "file", "content", "message"),
    [
        ("rte", "RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n", r"dev\.tsv:2: label 'maybe'"),
        ("rte", "RTE/dev.tsv", "index\tsentence1\tlabel\n0\ta\tentailment\n", r"dev\.tsv:1: no column 'sentence2'"),
        ("rte", "RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\n", r"dev\.tsv:2: 2 columns"),
        ("rte", "RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\t\n", r"dev\.tsv:2: 5 columns"),
        ("rte", "RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t\n", r"dev\.tsv:2: no label"),
        ("rte", "RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel\n", r"dev\.tsv: no rows"),
        ("cola", "CoLA/test.tsv", "index\tsentence\n0\ta\tb\n", r"test\.tsv:2: 3 columns"),
        ("cola", "CoLA/train.tsv", "gj04\t2\t\tThe cat.\n", r"train\.tsv:1: label '2'"),
        ("stsb", "STS-B/dev.tsv", "index\tsentence1\tsentence2\tscore\n0\ta\tb\t6.0\n", r"dev\.tsv:2: score '6.0'"),
    ],
)  # fmt: skip
def test_bad_rows_are_named_by_file_and_line(
    read, root: Path, task: str, file: str, content: str, message: str
) -> None:  # type: ignore[no-untyped-def]
    (root / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        read(task)


def test_a_byte_that_is_not_utf8_is_named_by_file_and_line(read, root: Path) -> None:  # type: ignore[no-untyped-def]
    header = b"index\tsentence1\tsentence2\tlabel\n"
    (root / "RTE" / "train.tsv").write_bytes(header + b"0\ta\tb\tentailment\n1\tcaf\xe9\tb\tentailment\n")
    with pytest.raises(ValueError, match=r"train\.tsv:3: byte 0xe9 is not UTF-8; .*on_bad_row=skip"):
        read("rte")
    assert read("rte", on_bad_row="skip").train.left_out == ("train.tsv:3: byte 0xe9 is not UTF-8",)
    (root / "RTE" / "train.tsv").write_bytes(b"\xff\xfe" + b"\x00\xd8" * 9)
    with pytest.raises(ValueError, match=r"root=.*train\.tsv is not UTF-16-LE"):
        read("rte")
    (root / "RTE" / "train.tsv").write_text(header.decode() + "0\tcafé\tb\tentailment\n", encoding="utf-16")
    assert read("rte").train.texts == [("café", "b")]


def test_rows_left_out_are_known_to_whoever_scores(read, root: Path) -> None:  # type: ignore[no-untyped-def]
    assert read("rte").evals["val"].left_out == ()
    (root / "RTE" / "dev.tsv").write_text(
        "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t\n1\tc\td\tentailment\n2\te\tf\tentailment\tg\n3\th\ti\tmaybe\n"
    )
    val = read("rte", on_bad_row="skip").evals["val"]
    assert [val.load(i) for i in range(len(val))] == [("c", "d")]
    assert val.left_out == (
        "dev.tsv:2: no label",
        "dev.tsv:4: 5 columns, but there must be 4",
        "dev.tsv:5: label 'maybe' of RTE; known are entailment, not_entailment",
    )
    (root / "RTE" / "dev.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\t\n")
    with pytest.raises(ValueError, match=r"dev\.tsv: no rows that can be read; dev\.tsv:2: no label"):
        read("rte", on_bad_row="skip")


def test_a_blank_text_is_answered_in_a_test_set_only(read, root: Path) -> None:  # type: ignore[no-untyped-def]
    (root / "CoLA" / "test.tsv").write_text("index\tsentence\n0\t \n1\tIt did rain.\n")
    (root / "CoLA" / "dev.tsv").write_text("gj04\t1\t\t \ngj04\t1\t\tA dog ran.\n")
    data = read("cola").finetune()
    test, val = (next(iter(data.eval_loader(name))) for name in ("test", "val"))
    assert (sorted(test.sample_ids.tolist()), test.skipped) == ([0, 1], ())
    assert (val.sample_ids.tolist(), val.skipped) == ([1], ("0: empty text",))


@pytest.mark.parametrize("order", [(1, 0), (0, 2), (1, 2), (0, 0)])
@pytest.mark.parametrize("skip", ["error", "skip"])
def test_answers_never_go_to_other_rows_of_a_test_set(read, root: Path, order: tuple[int, int], skip: str) -> None:  # type: ignore[no-untyped-def]
    (root / "CoLA" / "test.tsv").write_text("index\tsentence\n" + "".join(f"{i}\ta\n" for i in order))
    line = 2 if order[0] else 3
    with pytest.raises(ValueError, match=rf"CoLA/test\.tsv:{line}: index '\d' must be {line - 2}; restore"):
        read("cola", on_bad_row=skip)


def test_a_test_set_without_numbers_is_refused(read, root: Path) -> None:  # type: ignore[no-untyped-def]
    (root / "CoLA" / "test.tsv").write_text("sentence\nIt did rain.\n")
    with pytest.raises(ValueError, match=r"test\.tsv:1: no column 'index'"):
        read("cola")


def test_questions_are_numbered_by_their_id(read, root: Path) -> None:  # type: ignore[no-untyped-def]
    (root / "QQP").mkdir()
    labelled = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n7\t1\t2\tWho?\tWhat?\t0\n"
    for split in ("train", "dev"):
        (root / "QQP" / f"{split}.tsv").write_text(labelled)
    test = root / "QQP" / "test.tsv"
    test.write_text("id\tquestion1\tquestion2\n0\tWho?\tWhy?\n1\tHow?\tWhen?\n")
    assert read("qqp").evals["test"].load(1) == ("How?", "When?")
    test.write_text("id\tquestion1\tquestion2\n1\tWho?\tWhy?\n0\tHow?\tWhen?\n")
    with pytest.raises(ValueError, match=r"QQP/test\.tsv:2: id '1' must be 0"):
        read("qqp")


@pytest.mark.parametrize(
    ("task", "rows"),
    [("cola", (8551, 1043, 1063)), ("mrpc", (3667, 408, 1725)), ("rte", (2490, 277, 3000)),
     ("sst2", (67349, 872, 1821)), ("stsb", (5749, 1500, 1379)), ("wnli", (635, 71, 146))],
)  # fmt: skip
def test_every_row_of_the_real_files_is_kept(repo: Path, tokenizer_file: str, task: str, rows: tuple[int, ...]) -> None:
    real = repo.parent / "shared" / "data" / "glue"
    if not real.is_dir():
        pytest.skip(f"{real} is not there")
    data = glue(task, str(real), tokenizer=tokenizer_file, vocab_size=300)
    assert (len(data.train), len(data.evals["val"]), len(data.evals["test"])) == rows


def test_missing_files_and_tasks(read, root: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FileNotFoundError, match=r"root=.*SST-2.train\.tsv is missing"):
        read("sst2")


def test_submissions_are_in_the_order_of_the_test_file(tmp_path: Path) -> None:
    path = write_submission(TASKS["rte"], tmp_path / "s", "test", [1, 0, 1])
    assert path.name == "RTE.tsv"
    assert path.read_text() == "index\tprediction\n0\tnot_entailment\n1\tentailment\n2\tnot_entailment\n"
    assert write_submission(TASKS["mnli"], tmp_path / "s", "test_mismatched", [0]).name == "MNLI-mm.tsv"
    scores = write_submission(TASKS["stsb"], tmp_path / "s", "test", [5.3, -0.2, 2.5])
    assert scores.read_text().splitlines()[1:] == ["0\t5.000", "1\t0.000", "2\t2.500"]


HUB_CLASSES = {
    "cola": ["unacceptable", "acceptable"],
    "mnli": ["entailment", "neutral", "contradiction"],
    "rte": ["entailment", "not_entailment"],
    "stsb": None,
    "wnli": ["not_entailment", "entailment"],
}
HUB_TEXTS = {"cola": ["sentence"], "mnli": ["premise", "hypothesis"]}


@pytest.fixture
def read_hub(tmp_path: Path, tokenizer: Tokenizer, tokenizer_file: str) -> Callable[..., GlueData]:
    datasets = pytest.importorskip("datasets")

    def read_hub(
        saved: str,
        task: str | None = None,
        train: tuple[Any, ...] = (1,),
        dev: tuple[Any, ...] = (1,),
        numbers: tuple[int, ...] = (0,),
        text: str | None = "a",
        test_text: str | None = "a",
        classes: list[str] | None = None,
        **options: Any,
    ) -> GlueData:
        """Save a copy of one task of the Hub with these labels, and read it as another."""
        names = classes or HUB_CLASSES[saved]
        label = datasets.Value("int64" if names else "float32")
        texts = {column: datasets.Value("string") for column in HUB_TEXTS.get(saved, ["sentence1", "sentence2"])}
        features = datasets.Features({**texts, "label": label, "idx": datasets.Value("int32")})

        def rows(labels: tuple[Any, ...], numbers: tuple[int, ...], text: str | None) -> Any:
            columns = {column: [text] * len(labels) for column in texts} | {"label": labels, "idx": numbers}
            data = datasets.Dataset.from_dict(columns, features=features)
            if names:  # in the metadata alone: encoding a class refuses what a damaged file may hold
                data.info.features["label"] = datasets.ClassLabel(names=names)
            return data

        copy = {"train": rows(train, (0,) * len(train), text)}
        for kind, split in [("validation", name) for name in TASKS[task or saved].dev]:
            copy[split.replace("dev", kind)] = rows(dev, (0,) * len(dev), text)
        for split in TASKS[task or saved].test:
            copy[split] = rows((-1,) * len(numbers), numbers, test_text)
        datasets.DatasetDict(copy).save_to_disk(str(tmp_path / "copy"))
        options |= {"tokenizer": tokenizer_file, "vocab_size": tokenizer.vocab_size}
        return glue(task or saved, path=str(tmp_path / "copy"), **options)

    return read_hub


def test_a_copy_of_the_hub_reads_as_the_files_do(read_hub: Callable[..., GlueData]) -> None:
    data = read_hub("rte", train=(0,))
    assert (data.train.label(0), data.evals["val"].label(0), data.evals["test"].label(0)) == (0, 1, None)
    assert data.train.load(0) == ("a", "a")
    assert data.evals["val"].left_out == ()


def test_classes_of_the_hub_become_those_of_the_files(read_hub: Callable[..., GlueData]) -> None:
    mnli = read_hub("mnli", train=(0, 1, 2)).train
    assert [TASKS["mnli"].classes[int(mnli.labels[i])] for i in range(3)] == ["entailment", "neutral", "contradiction"]  # type: ignore[index]
    assert read_hub("cola", train=(0, 1)).train.labels == [0, 1]
    assert read_hub("wnli", train=(0, 1)).train.labels == [0, 1]
    assert read_hub("stsb", train=(4.25, 0.0)).train.labels == [4.25, 0.0]


@pytest.mark.parametrize(
    ("saved", "labels", "reason"),
    [
        ("rte", (0, -1), "no label"),
        ("rte", (0, None), "no label"),
        ("rte", (0, 2), "label '2' of RTE; known are entailment, not_entailment"),
        ("rte", (0, -2), "label '-2' of RTE; known are entailment, not_entailment"),
        ("cola", (0, 2), "label '2' of CoLA; known are 0, 1"),
        ("stsb", (0.0, 9.0), "score '9.0' of STS-B must be from 0 to 5"),
        ("stsb", (0.0, -1.0), "no label"),
        ("stsb", (0.0, float("nan")), "score 'nan' of STS-B must be from 0 to 5"),
    ],
)
def test_bad_labels_of_the_hub_are_named_by_split_and_row(
    read_hub: Callable[..., GlueData], saved: str, labels: tuple[Any, ...], reason: str
) -> None:
    with pytest.raises(ValueError, match=f"copy: train row 1: {reason}; .*on_bad_row=skip"):
        read_hub(saved, train=labels)
    with pytest.raises(ValueError, match=f"copy: validation row 1: {reason}; .*on_bad_row=skip"):
        read_hub(saved, dev=labels)
    data = read_hub(saved, train=labels, dev=labels, on_bad_row="skip")
    assert (len(data.train), len(data.evals["val"])) == (1, 1)
    assert data.evals["val"].left_out == (f"validation row 1: {reason}",)


@pytest.mark.parametrize(
    ("saved", "task", "classes"),
    [
        ("rte", "mrpc", None),
        ("rte", "wnli", None),
        ("wnli", "rte", None),
        ("rte", "rte", ["not_entailment", "entailment"]),
        ("cola", "sst2", None),
        ("rte", "stsb", None),
        ("stsb", "rte", None),
        ("cola", "rte", None),
    ],
)
def test_another_tasks_copy_of_the_hub_is_refused(
    read_hub: Callable[..., GlueData], saved: str, task: str, classes: list[str] | None
) -> None:
    with pytest.raises(ValueError, match=rf"^task={task}"):
        read_hub(saved, task, classes=classes)


def test_texts_that_the_hub_lacks(read_hub: Callable[..., GlueData]) -> None:
    with pytest.raises(ValueError, match=r"copy: train row 0: no text in column 'sentence1'; .*on_bad_row=skip"):
        read_hub("rte", text=None)
    with pytest.raises(ValueError, match=r"train: no rows that can be read; train row 0: no text"):
        read_hub("rte", text=None, on_bad_row="skip")
    assert read_hub("rte", test_text=None).evals["test"].load(0) == ("", "")


def test_answers_never_go_to_other_rows_of_the_hub(read_hub: Callable[..., GlueData]) -> None:
    assert len(read_hub("rte", numbers=(0, 1)).evals["test"]) == 2
    with pytest.raises(ValueError, match=r"copy: test row 0: idx 1 must be 0; restore"):
        read_hub("rte", numbers=(1, 0))


def test_batches_are_padded_and_sorted_by_length(read) -> None:  # type: ignore[no-untyped-def]
    data = read("cola").finetune()
    batch = next(iter(data.eval_loader("test")))
    assert batch.sample_ids.tolist() == [0, 1]
    assert batch.labels is None
    assert batch.padding_mask is not None
    assert isinstance(data.train, Sentences)
    view = data.train_view(("the cat",), np.random.default_rng(0))
    assert view.dtype == torch.int64

from pathlib import Path

import numpy as np
import pytest
import torch

from d2v.data.glue import TASKS, GlueData, PairView, Sentences, glue, write_submission
from d2v.data.tokenizer import Tokenizer, train_tokenizer


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


def test_missing_files_and_tasks(read, root: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FileNotFoundError, match=r"data\.root=.*SST-2.train\.tsv is missing"):
        read("sst2")
    with pytest.raises(ValueError, match=r"data\.task=colour: choose one of cola"):
        read("colour")


def test_submissions_are_in_the_order_of_the_test_file(tmp_path: Path) -> None:
    path = write_submission(TASKS["rte"], tmp_path / "s", "test", [1, 0, 1])
    assert path.name == "RTE.tsv"
    assert path.read_text() == "index\tprediction\n0\tnot_entailment\n1\tentailment\n2\tnot_entailment\n"
    assert write_submission(TASKS["mnli"], tmp_path / "s", "test_mismatched", [0]).name == "MNLI-mm.tsv"
    scores = write_submission(TASKS["stsb"], tmp_path / "s", "test", [5.3, -0.2, 2.5])
    assert scores.read_text().splitlines()[1:] == ["0\t5.000", "1\t0.000", "2\t2.500"]


def test_a_copy_of_the_hub_reads_as_the_files_do(tmp_path: Path, tokenizer: Tokenizer, tokenizer_file: str) -> None:
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["entailment", "not_entailment"])
    features = datasets.Features(
        {"sentence1": datasets.Value("string"), "sentence2": datasets.Value("string"), "label": names}
    )

    def rows(label: int) -> object:
        return datasets.Dataset.from_dict({"sentence1": ["a"], "sentence2": ["b"], "label": [label]}, features=features)

    datasets.DatasetDict({"train": rows(0), "validation": rows(1), "test": rows(-1)}).save_to_disk(
        str(tmp_path / "rte")
    )
    options = {"tokenizer": tokenizer_file, "vocab_size": tokenizer.vocab_size}
    data = glue("rte", path=str(tmp_path / "rte"), **options)  # type: ignore[arg-type]
    assert (data.train.label(0), data.evals["val"].label(0), data.evals["test"].label(0)) == (0, 1, None)
    assert data.train.load(0) == ("a", "b")


def test_batches_are_padded_and_sorted_by_length(read) -> None:  # type: ignore[no-untyped-def]
    data = read("cola").finetune()
    batch = next(iter(data.eval_loader("test")))
    assert batch.sample_ids.tolist() == [0, 1]
    assert batch.labels is None
    assert batch.padding_mask is not None
    assert isinstance(data.train, Sentences)
    view = data.train_view(("the cat",), np.random.default_rng(0))
    assert view.dtype == torch.int64

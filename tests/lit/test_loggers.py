"""metrics.csv: complete, readable, and kept when a run goes on. TensorBoard and wandb files are read back."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from types import ModuleType

import pytest

from d2v.lit import loggers
from d2v.lit.loggers import CSVLogger, check_login


def _rows(folder: Path) -> list[dict[str | None, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_of_a_step_share_a_row(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "new" / "folder")
    logger.log_metrics({"train/loss": 2.0}, step=1)
    logger.log_metrics({"probe/knn": 0.5}, step=1)
    logger.log_metrics({"train/loss": 1.0}, step=2)
    logger.finalize("success")
    assert _rows(tmp_path / "new" / "folder") == [
        {"step": "1", "probe/knn": "0.5", "train/loss": "2.0"},
        {"step": "2", "probe/knn": "", "train/loss": "1.0"},
    ]


def test_new_columns_keep_old_rows(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    for step in (1, 2):
        logger.log_metrics({"b": float(step)}, step=step)
    logger.log_metrics({"a": 7.0, "b": 3.0}, step=3)
    logger.log_metrics({"c": 8.0}, step=4)
    logger.save()
    rows = _rows(tmp_path)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["b"] for row in rows] == ["1.0", "2.0", "3.0", ""]
    assert [row["a"] for row in rows] == ["", "", "7.0", ""]
    assert [row["c"] for row in rows] == ["", "", "", "8.0"]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_rows_are_on_disk_when_the_next_step_begins(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 1.0}, step=1)
    logger.log_metrics({"a": 2.0}, step=2)
    assert [row["step"] for row in _rows(tmp_path)] == ["1"]


def test_a_resumed_run_appends(tmp_path: Path) -> None:
    for first in (1, 3):
        logger = CSVLogger(tmp_path)
        for step in (first, first + 1):
            logger.log_metrics({"a": float(step)}, step=step)
        logger.finalize("success")
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 5.0, "new": 1.0}, step=5)
    logger.finalize("success")
    rows = _rows(tmp_path)
    assert [row["a"] for row in rows] == ["1.0", "2.0", "3.0", "4.0", "5.0"]
    assert [row["new"] for row in rows] == ["", "", "", "", "1.0"]


@pytest.mark.parametrize("torn", ["2,0.2", "2", "2,", "2,0.25\r"])
@pytest.mark.parametrize("new_column", [False, True])
def test_a_line_torn_by_a_kill_costs_no_other(tmp_path: Path, torn: str, new_column: bool) -> None:
    (tmp_path / "metrics.csv").write_text(f"step,a\r\n1,0.5\r\n{torn}", newline="")
    logger = CSVLogger(tmp_path)
    extra = {"b": 1.0} if new_column else {}
    for step in (2, 3):
        logger.log_metrics({"a": step / 8, **extra}, step=step)
    logger.finalize("success")
    rows = _rows(tmp_path)
    assert None not in {key for row in rows for key in row}  # no row has more fields than columns
    assert rows[0]["a"] == "0.5"
    assert [(row["step"], row["a"]) for row in rows[-2:]] == [("2", "0.25"), ("3", "0.375")]


def test_an_empty_file_left_by_a_kill_gets_a_header(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("")
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 1.0}, step=1)
    logger.finalize("success")
    assert _rows(tmp_path) == [{"step": "1", "a": "1.0"}]


@pytest.mark.parametrize("columns", [["a"], ["a", "b"]], ids=["appended", "rewritten"])
def test_a_full_disk_costs_a_row_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, columns: list[str]
) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 1.0}, step=1)
    logger.save()

    def full(writer: csv.DictWriter[str], *_: object) -> None:
        if columns == ["a"]:  # half of the row gets there
            with (tmp_path / "metrics.csv").open("a") as file:
                file.write("2,0.")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(csv.DictWriter, "writerow", full)
        context.setattr(csv.DictWriter, "writerows", full)
        logger.log_metrics(dict.fromkeys(columns, 2.0), step=2)
        logger.save()
    assert "metrics of step 2 could not be written ([Errno 28] No space left on device)" in caplog.text
    logger.log_metrics(dict.fromkeys(columns, 3.0), step=3)
    logger.finalize("success")
    first, last = _rows(tmp_path)
    assert (first["step"], first["a"]) == ("1", "1.0")
    assert last == {"step": "3", **dict.fromkeys(columns, "3.0")}


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_with_the_fix(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda package: None)
    with pytest.raises(
        ImportError, match=rf"logger={name}.*pip install {name} \(or.*pip install '\.\[{name}\]'.*logger=csv"
    ):
        getattr(loggers, f"{name}_logger")(tmp_path)


def test_wandb_keeps_its_run_id_in_the_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(loggers, "find_spec", lambda package: True)
    monkeypatch.setattr(loggers, "PatientWandbLogger", lambda **kwargs: seen.append(kwargs))
    for _ in range(2):
        loggers.wandb_logger(tmp_path / "run", offline=True)
    loggers.wandb_logger(tmp_path / "other", offline=True)
    first, again, other = seen
    assert first["id"] == again["id"] != other["id"]
    assert first["resume"] == "allow"
    assert first["offline"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own
def test_tensorboard_file_holds_what_was_logged(runs: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = runs.pretrain(tmp_path, "logger=tensorboard", "trainer.max_steps=3")
    (events,) = run.rglob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    rows = runs.metrics(run)
    for key in ("train/loss", "train/effective_rank", "train/grad_norm", "perf/samples_per_s"):
        scalars = accumulator.Scalars(key)
        assert [scalar.value for scalar in scalars] == [pytest.approx(float(row[key]), rel=1e-5) for row in rows]
        assert [scalar.step for scalar in scalars] == [int(row["step"]) for row in rows]


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe garbage\n", b"step,a\n1,0.5\n\0\0\0\0\n", b"other,columns\n1,2\n", b"step,a\n1,2,3,4\n"],
    ids=["not text", "zeros", "another table", "too many cells"],
)
def test_a_damaged_file_is_named_kept_and_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / "metrics.csv").write_bytes(content)
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 1.0}, step=2)
    logger.finalize("success")
    assert f"{tmp_path / 'metrics.csv'} is damaged" in caplog.text
    assert _rows(tmp_path) == [{"step": "2", "a": "1.0"}]
    assert (tmp_path / "metrics.csv.damaged").read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"\0\0\0\0", b"a b\n", b"\xff" * 9, b"x" * 99])
def test_a_damaged_wandb_id_is_named_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    seen = []
    monkeypatch.setattr(loggers, "find_spec", lambda package: True)
    monkeypatch.setattr(loggers, "PatientWandbLogger", lambda **kwargs: seen.append(kwargs))
    monkeypatch.setattr(loggers, "check_login", lambda offline: None)
    (tmp_path / "wandb_id.txt").write_bytes(content)
    for _ in range(2):
        loggers.wandb_logger(tmp_path)
    first, again = seen
    assert first["id"] == again["id"]
    assert len(first["id"]) == 8
    assert "wandb_id.txt holds no id" in caplog.text


@pytest.mark.parametrize(
    ("login", "offline", "found"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"WANDB_MODE": "offline"}, False, True),
        ({"WANDB_MODE": "disabled"}, False, True),
        ({"WANDB_API_KEY": "0" * 40}, False, True),
        ({"netrc": "localhost"}, False, True),
        ({"netrc": "elsewhere.org"}, False, False),
    ],
)
def test_a_login_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, login: dict[str, str], offline: bool, found: bool
) -> None:
    wandb = pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith(("WANDB", "NETRC"))]:
        monkeypatch.delenv(name)
    if "netrc" in login:
        (tmp_path / ".netrc").write_text(f"machine {login['netrc']}\n login user\n password {'0' * 40}\n")
        (tmp_path / ".netrc").chmod(0o600)
    home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "WANDB_BASE_URL": "http://localhost:9"}
    for name, value in {**home, **login}.items():
        if name != "netrc":
            monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    wandb.teardown()  # it has read another environment
    try:
        if found:
            check_login(offline)
            return
        with pytest.raises(ValueError, match=r"logger=wandb: there is no login for localhost: .*_API_KEY") as error:
            check_login(offline)
        assert "offline=true" in str(error.value)
    finally:
        wandb.teardown()

"""A resumed run goes on with its own configuration; what the command line may change of it, and what not."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from d2v.runs.resuming import APPLIED, FREE, OtherRun, Words, resumed

OWN: dict[str, Any] = {
    "data": {"_target_": "d2v.data.images.factories.image_folder", "root": "/a", "img_size": 28, "mean": [0.5]},
    "model": {"_target_": "M", "encoder": {"depth": 2}},
    "optim": {"_target_": "d2v.lit.optim.adamw", "lr": 1e-3, "betas": (0.9, 0.95)},
    "schedule": {"_target_": "S", "warmup_steps": 1},
    "trainer": {"max_steps": 4, "devices": 1},
    "callbacks": {"checkpoint": {"keep": -1}, "probe": {"every_n_steps": 1}},
    "seed": 0,
    "global_batch_size": 8,
    "resume": None,
    "run_dir": "/somewhere/else",
}


def composed(**other: Any) -> dict[str, Any]:
    """What other defaults and some words make."""
    return {
        "data": {"_target_": "d2v.data.images.factories.samples", "img_size": 32},
        "model": {"_target_": "N"},
        "optim": {"_target_": "d2v.lit.optim.adamw", "lr": 2e-3, "betas": [0.9, 0.95]},
        "schedule": {"_target_": "S", "warmup_steps": 100},
        "trainer": {"max_steps": 4000, "devices": 1},
        "callbacks": {"checkpoint": {"keep": 2}},
        "seed": 1,
        "global_batch_size": 64,
        "compile": False,
        "resume": "RUN",
        "run_dir": "/here",
        **other,
    }


def test_defaults_are_not_the_runs() -> None:
    """``resume=RUN`` alone: the run's own, but for where it lies and keys that it did not know."""
    config = resumed(OWN, composed(), Words(["resume"]), "RUN")
    own = {key: value for key, value in OWN.items() if key not in ("resume", "run_dir", "optim")}
    assert {key: config[key] for key in own} == own
    assert config["optim"] == {**OWN["optim"], "betas": [0.9, 0.95]}
    assert (config["resume"], config["run_dir"], config["compile"]) == ("RUN", "/here", False)
    config["trainer"]["devices"] = 8
    assert OWN["trainer"]["devices"] == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.max_steps", 8), ("trainer.devices", 2), ("data.root", "/b"), ("callbacks.checkpoint.keep", 3),
        ("logger.wandb", {"_target_": "W"}), ("compile", True),
    ],
)  # fmt: skip
def test_what_may_change_is_taken(key: str, value: Any) -> None:
    given: dict[str, Any] = composed()
    *path, last = key.split(".")
    node = given
    for name in path:
        node = node.setdefault(name, {})
    node[last] = value
    config: Any = resumed(OWN, given, Words([key]), "RUN")
    for name in path:
        config = config[name]
    assert config[last] == value


def test_what_changes_learning_is_taken_and_said(caplog: pytest.LogCaptureFixture) -> None:
    words = Words(["optim.lr", "optim.betas", "trainer.max_steps"])
    with caplog.at_level(logging.WARNING):
        config = resumed(OWN, composed(), words, "RUN")
    assert config["optim"]["lr"] == 2e-3
    assert caplog.messages == ["optim.lr=0.002 from now on; it was 0.001"]  # the betas are the same


def test_what_the_run_began_with_stays_on_record(caplog: pytest.LogCaptureFixture) -> None:
    own = {**OWN, "init_from": None, "checkpoint": "/a", "network": "student"}
    other = composed(init_from="/c", checkpoint="/b", network="teacher")
    config = resumed(own, other, Words(["init_from", "checkpoint", "network"]), "RUN")
    assert [config[key] for key in ("init_from", "checkpoint", "network")] == [None, "/a", "student"]
    assert "checkpoint=/b is ignored: the run began with /a" in caplog.text


def test_a_schedule_of_another_kind_is_taken_whole(caplog: pytest.LogCaptureFixture) -> None:
    given = composed(schedule={"_target_": "T", "hold_fraction": 0.4})
    assert resumed(OWN, given, Words(groups=["schedule"]), "RUN")["schedule"] == given["schedule"]
    assert "schedule=T from now on; it was S" in caplog.text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (Words(["seed"]), ["seed=1: the run that is resumed has 0"]),
        (Words(["global_batch_size"]), ["global_batch_size=64: the run that is resumed has 8"]),
        (Words(["data.img_size", "seed"]), ["data.img_size=32: the run that is resumed has 28", "seed=1"]),
        (
            Words(groups=["data"]),
            ["data=d2v.data.images.factories.samples: the run that is resumed has d2v.data.images.factories.image_f"],
        ),
        (Words(groups=["model"]), ["model=N: the run that is resumed has M"]),
        (Words(groups=[""]), ["model=N", "seed=1", "data="]),
        (Words(deleted=["data.mean"]), ["data.mean=nothing: the run that is resumed has [0.5]"]),
    ],
)
def test_what_makes_another_run_is_refused_in_one_message(words: Words, said: list[str]) -> None:
    with pytest.raises(OtherRun, match=r"resume=RUN: .*init_from=") as error:
        resumed(OWN, composed(), words, "RUN")
    for text in said:
        assert text in str(error.value)


def test_what_is_left_out_is_left_out() -> None:
    config = resumed(OWN, composed(), Words(deleted=["callbacks.probe", "callbacks.gone"]), "RUN")
    assert config["callbacks"] == {"checkpoint": {"keep": -1}}


def test_numbers_are_compared_as_numbers() -> None:
    resumed(OWN, composed(global_batch_size=8.0), Words(["global_batch_size"]), "RUN")
    with pytest.raises(OtherRun, match="seed=false"):
        resumed(OWN, composed(seed=False), Words(["seed"]), "RUN")


def test_a_configuration_that_is_none_is_refused() -> None:
    circle: dict[str, Any] = {}
    circle["data"] = circle
    for own in ([], {1: 2}, {"a": object()}, {"a": {"b": b"bytes"}}, circle, {"a": [0] * 1_000_001}):
        with pytest.raises(ValueError, match="is not one of a run"):
            resumed(own, composed(), Words(), "RUN")  # type: ignore[arg-type]  # what a file may hold


def test_the_documentation_lists_them() -> None:
    text = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
    listed = set(re.findall(r"`([\w.]+?)(?:\.\*)?`", text.partition("## Resuming")[2].partition("\n## ")[0]))
    assert not {*FREE, *APPLIED} - listed

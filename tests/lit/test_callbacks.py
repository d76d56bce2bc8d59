"""Health, collapse guard, online probe, throughput, progress."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from d2v.eval.features import extract
from d2v.eval.health import effective_rank, relative_spread
from d2v.eval.knn import knn_accuracy
from d2v.eval.linear import linear_probe
from d2v.interop.build import build
from d2v.interop.checkpoints import load_encoder
from d2v.lit.callbacks import health
from d2v.lit.callbacks.health import Collapse, HealthMonitor
from d2v.lit.callbacks.probe import OnlineProbe


class Log:
    """A module and trainer that only keep what is logged."""

    def __init__(self, accumulate: int = 1, every: int = 1) -> None:
        self.trainer: Any = SimpleNamespace(
            accumulate_grad_batches=accumulate,
            log_every_n_steps=every,
            global_step=0,
            max_steps=100_000,
            strategy=SimpleNamespace(reduce=lambda value, **_: value),
        )
        self.batch_idx = -1
        self.logged: list[dict[str, float]] = []

    def log(self, name: str, value: Any, **_: Any) -> None:
        self.logged[-1][name] = float(value)

    def end_batch(self, callback: Any, features: torch.Tensor, local: torch.Tensor | None = None) -> None:
        """A micro-batch ends; the frontend's features are healthy ones if not given."""
        self.end(callback, {"features": features, "frontend": _features(0, 64) if local is None else local})

    def end(self, callback: Any, watched: dict[str, torch.Tensor]) -> None:
        """A micro-batch ends."""
        self.batch_idx += 1
        self.logged.append({})
        self.trainer.global_step = (self.batch_idx + 1) // self.trainer.accumulate_grad_batches
        callback.on_train_batch_end(self.trainer, self, {"watched": watched}, None, self.batch_idx)


def _features(seed: int, n: int = 8, d: int = 6, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1 + spread * torch.randn(n, d, generator=generator)


def test_health_is_measured_over_the_window() -> None:
    log, monitor = Log(), HealthMonitor(window=20)
    batches = [_features(i) for i in range(6)]
    for i, features in enumerate(batches):
        log.end_batch(monitor, features)
        # the fewest newest batches that hold 20 samples: 3 of 8
        expected = torch.cat(batches[max(0, i - 2) : i + 1])
        assert log.logged[-1]["train/effective_rank"] == pytest.approx(float(effective_rank(expected)))
        assert log.logged[-1]["train/relative_spread"] == pytest.approx(float(relative_spread(expected)))


def test_health_tells_a_collapse_from_scale() -> None:
    values = []
    for spread, scale in ((1.0, 1.0), (1.0, 1e-3), (1e-3, 1.0)):
        log, monitor = Log(), HealthMonitor()
        log.end_batch(monitor, scale * _features(0, n=64, spread=spread))
        values.append(log.logged[-1]["train/relative_spread"])
    assert values[1] == pytest.approx(values[0], rel=1e-4)
    assert values[2] < 0.01 * values[0]


def test_health_is_logged_with_the_other_metrics() -> None:
    log, monitor = Log(accumulate=2, every=3), HealthMonitor()
    for i in range(12):
        log.end_batch(monitor, _features(i))
    assert [i + 1 for i, logged in enumerate(log.logged) if logged] == [2, 6, 12]  # micro-batches ending 1, 3, 6


def _watch(monitor: HealthMonitor, spreads: list[float], every: int = 1, accumulate: int = 1) -> Log:
    """A run whose features have these spreads around 1."""
    log = Log(accumulate, every)
    for i, spread in enumerate(spreads):
        log.end_batch(monitor, _features(i, n=64, spread=spread))
    return log


def test_guard_watches_the_frontend_on_its_own() -> None:
    log, monitor = Log(), HealthMonitor(window=64, check_every_n_steps=1, patience=3)
    for i, spread in enumerate([0.5, 0.5, 0.001, 0.001]):
        log.end_batch(monitor, _features(i, n=64), _features(i, n=64, spread=spread))
    with pytest.raises(Collapse, match=r"the frontend has collapsed at step 5.*train/frontend_spread"):
        log.end_batch(monitor, _features(4, n=64), _features(4, n=64, spread=0.001))
    assert log.logged[-1]["train/frontend_spread"] < 0.01 < log.logged[0]["train/frontend_spread"]
    assert log.logged[-1]["train/frontend_rank"] < log.logged[0]["train/frontend_rank"]


def test_every_modality_has_a_window_and_a_limit_of_its_own() -> None:
    """Images and texts take turns, and looks fall on steps of texts."""
    log, monitor = Log(every=2), HealthMonitor(window=16, check_every_n_steps=2, patience=3)
    images, texts = [_features(i) for i in range(12)], [_features(100 + i, spread=3.0) for i in range(12)]
    for i in range(4):
        log.end(monitor, {"features/image": images[i]})
        log.end(monitor, {"features/text": texts[i], "frontend/text": texts[i]})
        logged = log.logged[-2] | log.logged[-1]  # the first step is logged, too
        for name, batches in (("image", images), ("text", texts)):
            window = torch.cat(batches[max(0, i - 1) : i + 1])
            assert logged[f"train/effective_rank/{name}"] == pytest.approx(float(effective_rank(window)))
            assert logged[f"train/relative_spread/{name}"] == pytest.approx(float(relative_spread(window)))
        assert log.logged[-1]["train/frontend_spread/text"] == pytest.approx(float(relative_spread(texts[i])))
        assert "train/frontend_spread/image" not in log.logged[-1]
    resumed = HealthMonitor(window=16, check_every_n_steps=2, patience=3)
    resumed.load_state_dict(monitor.state_dict())
    for i in range(4, 7):
        log.end(resumed, {"features/image": _features(i, spread=0.001)})
        log.end(resumed, {"features/text": texts[i]})
    log.end(resumed, {"features/image": _features(7, spread=0.001)})
    with pytest.raises(Collapse, match=r"of image, the features have collapsed at step 16: .*relative_spread/image"):
        log.end(resumed, {"features/text": texts[7]})


def test_a_modality_that_was_not_seen_again_is_not_judged_again() -> None:
    log, monitor = Log(), HealthMonitor(window=8, check_every_n_steps=1, patience=3)
    for spread in (1.0, 0.001):
        log.end(monitor, {"features/image": _features(0, spread=spread)})
    for i in range(8):
        log.end(monitor, {"features/text": _features(i)})
        assert "train/effective_rank/image" not in log.logged[-1]


def test_features_of_other_names_are_watched_too() -> None:
    log, monitor = Log(), HealthMonitor(window=8, check_every_n_steps=1, patience=2)
    log.end(monitor, {"slots": _features(0)})
    assert log.logged[-1].keys() == {"train/slots_rank", "train/slots_spread"}
    log.end(monitor, {"slots": _features(1, spread=0.001)})
    with pytest.raises(Collapse, match=r"slots have collapsed at step 3: .*min_spread"):
        log.end(monitor, {"slots": _features(2, spread=0.001)})


@pytest.mark.parametrize("end", [0.0, 0.02, float("nan")])
def test_guard_stops_a_collapse_with_advice(end: float) -> None:
    with pytest.raises(Collapse) as error:
        _watch(HealthMonitor(window=64, check_every_n_steps=1, patience=3), [0.5, 0.5, 0.3, end, end, end, end])
    message = str(error.value)
    for words in ("step 6", "lr=", "warmup", "decay_start", "min_spread"):
        assert words in message


@pytest.mark.parametrize(
    "spreads",
    [
        [0.5] * 20,
        [0.5, 0.4, 0.3, 0.2, 0.15, 0.2, 0.3, 0.4],  # a dip while it warms up
        [0.5, 0.01, 0.01, 0.5, 0.01, 0.01, 0.5],  # outliers, never three in a row
        [0.1, 0.2, 0.4, 0.8, 0.9],
    ],
)
def test_guard_does_not_cry_wolf(spreads: list[float]) -> None:
    _watch(HealthMonitor(window=64, check_every_n_steps=1, patience=3), spreads)


def test_guard_looks_more_often_than_the_log() -> None:
    """A collapse between two logged steps is not missed; only ends of optimizer steps count."""
    with pytest.raises(Collapse, match="step 12"):
        _watch(HealthMonitor(window=64, check_every_n_steps=4), [0.5] * 4 + [0.001] * 60, every=1000, accumulate=2)


def test_guard_can_be_switched_off() -> None:
    _watch(HealthMonitor(window=64, check_every_n_steps=1, min_spread=None), [0.5, *[0.0] * 8])


def test_guard_goes_on_where_it_was() -> None:
    monitor = HealthMonitor(window=64, check_every_n_steps=1, patience=3)
    _watch(monitor, [0.5, 0.001, 0.001])
    resumed = HealthMonitor(window=64, check_every_n_steps=1, patience=3)
    resumed.load_state_dict(monitor.state_dict())
    with pytest.raises(Collapse):
        _watch(resumed, [0.001])


@pytest.mark.parametrize(
    "options",
    [
        {"window": 0},
        {"check_every_n_steps": 0},
        {"patience": 0},
        {"min_spread": 0.0},
        {"min_spread": 1.5},
        {"min_frontend_spread": 1.0},
    ],
)
def test_guard_options_out_of_range(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    node = {"_target_": "d2v.lit.callbacks.health.HealthMonitor", **options}
    with pytest.raises(ValueError, match=rf"^callbacks\.health\.{name}={value}: give a "):
        build(node, key="callbacks.health")


def test_a_collapsed_run_ends_with_advice_not_a_stack_trace(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spreads = iter([0.5, 0.5] + [1e-4] * 20)
    monkeypatch.setattr(health, "relative_spread", lambda features: torch.tensor(next(spreads)))
    result = runs.d2v_command("pretrain", f"output_dir={tmp_path}", *runs.TINY, "trainer.max_steps=20")
    assert result.status == 1
    assert "d2v: error: " in result.err
    assert "optim.lr" in result.err
    assert "Traceback" not in result.err + result.out
    (run,) = (tmp_path / "image_tiny").iterdir()
    assert 2 <= len(runs.metrics(run)) < 8  # early, and what was logged is there


def test_online_probes_are_those_of_the_checkpoint(runs: ModuleType, images: Path, tmp_path: Path) -> None:
    common = [*runs.folder_data(images), "callbacks.checkpoint.every_n_steps=2", "trainer.max_steps=4"]
    run = runs.pretrain(
        tmp_path, *common, "callbacks=probe", "callbacks.probe.every_n_steps=2", "callbacks.checkpoint.keep=-1"
    )
    logged = [row for row in runs.metrics(run) if row["probe/knn"]]
    assert [row["step"] for row in logged] == ["2", "4"]
    with runs.configuration("pretrain", *runs.TINY, *common) as cfg:
        from d2v.cli.settings import built

        data = built(cfg, "data")
    for step, row in zip((2, 4), logged, strict=True):
        encoder = load_encoder(run / "checkpoints" / f"step-{step:08d}.ckpt")
        train, val = (
            extract(
                encoder,
                torch.utils.data.DataLoader(data.eval_dataset(split), batch_size=64, collate_fn=data.eval_collate),
            )
            for split in ("train", "val")
        )
        assert train.labels is not None
        assert val.labels is not None
        parts = train.features, train.labels, val.features, val.labels
        assert float(row["probe/knn"]) == pytest.approx(knn_accuracy(*parts))
        assert float(row["probe/linear"]) == pytest.approx(linear_probe(*parts, (0.1,)).accuracy)


def test_probing_changes_nothing(runs: ModuleType, images: Path, tmp_path: Path) -> None:
    common = [*runs.folder_data(images), *runs.NOISE]
    plain = runs.pretrain(tmp_path / "plain", *common)
    probed = runs.pretrain(tmp_path / "probed", *common, "callbacks=probe", "callbacks.probe.every_n_steps=1")
    assert not runs.differences(runs.load(plain, 4)["state_dict"], runs.load(probed, 4)["state_dict"])


@pytest.mark.parametrize(("left_out", "kept"), [("knn", "linear"), ("linear", "knn")])
def test_each_online_probe_can_be_left_out(
    runs: ModuleType, images: Path, tmp_path: Path, left_out: str, kept: str
) -> None:
    run = runs.pretrain(
        tmp_path, *runs.folder_data(images), "trainer.max_steps=1",
        "callbacks=probe", "callbacks.probe.every_n_steps=1", f"callbacks.probe.{left_out}=false",
    )  # fmt: skip
    (row,) = runs.metrics(run)
    assert row[f"probe/{kept}"]
    assert f"probe/{left_out}" not in row


def test_probe_results_survive_a_sparser_log(runs: ModuleType, images: Path, tmp_path: Path) -> None:
    run = runs.pretrain(
        tmp_path, *runs.folder_data(images), "trainer.log_every_n_steps=3",
        "callbacks=probe", "callbacks.probe.every_n_steps=2",
    )  # fmt: skip
    assert len([row for row in runs.metrics(run) if row.get("probe/knn")]) == 2


def test_probe_needs_labels() -> None:
    with pytest.raises(ValueError, match=r"callbacks=probe.*val_root.*callbacks=default"):
        OnlineProbe(data=SimpleNamespace(probe_train=None, val=None))
    with pytest.raises(ValueError, match="callbacks=probe needs labelled"):  # only transcripts
        OnlineProbe(data=SimpleNamespace(probe_train=[1], val=[1], class_names=None))
    with pytest.raises(ValueError, match=r"knn=false linear=false: .*callbacks=default"):
        OnlineProbe(data=SimpleNamespace(probe_train=[1], val=[1], class_names=["a"]), knn=False, linear=False)


@pytest.mark.parametrize("micro_batch_size", ["null", "2"])
def test_throughput_is_a_rate_and_a_share(runs: ModuleType, tmp_path: Path, micro_batch_size: str) -> None:
    run = runs.pretrain(
        tmp_path, "trainer.max_steps=6", "trainer.log_every_n_steps=2", f"micro_batch_size={micro_batch_size}"
    )
    rows = runs.metrics(run)
    assert rows
    for row in rows:
        assert 0 < float(row["perf/samples_per_s"]) < 1e6
        assert 0 <= float(row["perf/data_wait_fraction"]) <= 1


def test_throughput_sees_slow_data(runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    from d2v.data.datasets import PretrainCollate

    collate = PretrainCollate.__call__

    def slow(self: Any, samples: Any) -> Any:
        time.sleep(0.2)
        return collate(self, samples)

    monkeypatch.setattr(PretrainCollate, "__call__", slow)
    rows = runs.metrics(runs.pretrain(tmp_path, "trainer.max_steps=3"))
    assert float(rows[-2]["perf/data_wait_fraction"]) > 0.3
    assert float(rows[-2]["perf/samples_per_s"]) < 4 / 0.2


def test_progress_shows_loss_speed_wait_and_time_left(runs: ModuleType, tmp_path: Path) -> None:
    result = runs.d2v_command("pretrain", f"output_dir={tmp_path}", *runs.TINY, "trainer.max_steps=2")
    lines = [line for line in result.err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    for words in ("loss ", "samples/s", "data wait", "left"):
        assert words in lines[-1]


def test_progress_shows_what_was_measured_at_its_step(runs: ModuleType, images: Path, tmp_path: Path) -> None:
    result = runs.d2v_command(
        "pretrain", f"output_dir={tmp_path}", *runs.TINY, *runs.folder_data(images), "trainer.log_every_n_steps=3",
        "trainer.max_steps=7", "callbacks=probe", "callbacks.probe.every_n_steps=2",
    )  # fmt: skip
    lines = [line for line in result.err.splitlines() if line.startswith("step ")]
    shown = [(line.split()[1], "loss" in line, "samples/s" in line, "kNN" in line) for line in lines]
    assert shown == [
        ("1/7", True, True, False),
        ("2/7", False, False, True),
        ("3/7", True, True, False),
        ("4/7", False, False, True),
        ("6/7", True, True, True),
        ("7/7", True, True, False),  # the last step is logged, too
    ]
    (run,) = (tmp_path / "image_tiny").iterdir()
    rows = runs.metrics(run)
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [1, 3, 6, 7]
    by_line = {line.split()[1]: line for line in lines}
    assert f"loss {float(rows[-1]['train/loss']):.3f}" in by_line["7/7"]

"""Two processes are one: the same losses, gradients, teacher and weights, by DDP and FSDP; real processes over gloo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from d2v.objective.masking import RandomMask

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

STEPS = 3
COMMON = [
    f"trainer.max_steps={STEPS}", "trainer.log_every_n_steps=1", "trainer.precision=32-true", "trainer.accelerator=cpu",
    "trainer.gradient_clip_val=4", "schedule.warmup_steps=1", "optim.lr=0.01", "optim.eps=0.01", "num_threads=1",
    "callbacks.checkpoint.keep=-1", "callbacks.checkpoint.every_n_steps=1", "callbacks.health.min_spread=null",
    "callbacks.health.min_frontend_spread=null", "ema.decay_start=0.9", "ema.decay_end=0.99", "ema.anneal_steps=5",
]  # fmt: skip
MODALITIES = ["image", "speech", "text"]
WAYS = {
    "ddp": ["trainer.devices=2"],
    "fsdp": ["trainer.devices=2", "trainer.strategy=fsdp"],
}


class Uneven:
    """Random masks whose share depends on the samples, so that no two micro-batches mask equally many tokens."""

    def __init__(self, num_masks: int, **_recipes_own: float) -> None:
        self.num_masks = num_masks

    def num_visible(self, num_tokens: int) -> int:
        return num_tokens // 2

    def validate(self, grid: tuple[int, ...]) -> None:
        RandomMask(self.num_masks).validate(grid)

    def __call__(
        self, grid: tuple[int, ...], rngs: Sequence[np.random.Generator], lengths: Sequence[int] | None = None
    ) -> np.ndarray:
        return RandomMask(self.num_masks, 0.25 + 0.5 * rngs[0].random())(grid, rngs, lengths)


@pytest.fixture(scope="module")
def recipes(runs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Small runs of every modality, without the decoder's noise, which no two splits of a batch share."""
    root = tmp_path_factory.mktemp("data")
    speech = runs.librispeech(root / "speech", speakers=3, clips=5)
    data = {
        "image": ["model.encoder.frontends.image.patch_size=7", "mask.num_masks=2", "mask.mask_length=2",
                  "mask.mask_ratio=0.8", "mask.mask_ratio_adjust=0.07", "global_batch_size=8", "micro_batch_size=2"],
        "speech": ["data=librispeech", f"data.root={speech}", "data.train=train-clean-100", "data.val=train-clean-100",
                   "data.probe_train=null", "global_batch_size=16", "micro_batch_size=4"],
        "text": ["data=text_files", f"data.root={runs.text_file(root / 'text.txt')}", "data.vocab_size=300",
                 "global_batch_size=8", "micro_batch_size=2"],
    }  # fmt: skip
    return {
        name: [f"experiment={name}_tiny", *runs.SMALL[name], *data[name], *COMMON,
               f"model.decoders.{name}.mask_noise_std=0", "seed=0"]
        for name in MODALITIES
    }  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def launch(folder: Path, cache: Path, *overrides: str, command: str = "pretrain", status: int = 0) -> Path:
    """A command in processes of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "D2V_CACHE": str(cache), "MASTER_ADDR": "127.0.0.1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-m", "d2v.cli.main", command, f"hydra.run.dir={folder}", *overrides],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == status, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="module")
def run_of(recipes: dict[str, list[str]], cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run of a modality in a way ("one", "ddp", "fsdp"), made when first asked for."""
    made: dict[tuple[str, str], Path] = {}

    def get(modality: str, way: str) -> Path:
        if (modality, way) not in made:
            folder = tmp_path_factory.mktemp(f"{modality}-{way}") / "run"
            made[modality, way] = launch(folder, cache, *recipes[modality], *WAYS.get(way, []))
        return made[modality, way]

    return get


def close(a: Any, b: Any, name: str) -> None:
    """Equal but for the order of sums: to 1e-6 of the tensor's largest value."""
    scale = max(float(torch.as_tensor(a).abs().max()), 1e-3)
    torch.testing.assert_close(b, a, rtol=0, atol=1e-6 * scale * 4, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("modality", MODALITIES)
def test_two_processes_are_one(runs: ModuleType, run_of: Any, modality: str, way: str) -> None:
    one, two = run_of(modality, "one"), run_of(modality, way)
    for row, other in zip(runs.metrics(one), runs.metrics(two), strict=True):
        for name in ("train/loss", "train/grad_norm", "train/lr", "train/ema_decay"):
            assert float(other[name]) == pytest.approx(float(row[name]), rel=2e-6), name
    for step in range(1, STEPS + 1):
        a, b = runs.load(one, step), runs.load(two, step)
        assert a["state_dict"].keys() == b["state_dict"].keys()
        for name, value in a["state_dict"].items():
            close(value, b["state_dict"][name], f"step {step} {name}")
        moments = [state["optimizer_states"][0]["state"] for state in (a, b)]
        assert moments[0].keys() == moments[1].keys()
        for key, moment in moments[0].items():  # after the first step, a tenth of the gradient
            close(moment["exp_avg"], moments[1][key]["exp_avg"], f"step {step} gradient {key}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("modality", MODALITIES)
def test_unequal_masked_counts(
    runs: ModuleType, recipes: dict[str, list[str]], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    modality: str, way: str,
) -> None:  # fmt: skip
    """The gradient is that of the sum over both processes' tokens, over their number."""
    own = [o for o in recipes[modality] if not o.startswith("micro_batch_size")]
    own += ["trainer.gradient_clip_val=null"]
    # Clips of one step mask equally many tokens, but the processes get two and three of them; others take odd masks.
    own += ["global_batch_size=11"] if modality == "speech" else ["mask._target_=test_distributed.Uneven"]
    run = launch(tmp_path / "run", cache, *own, *WAYS[way], "trainer.max_steps=1")

    monkeypatch.setenv("D2V_CACHE", str(cache))
    with runs.configuration("pretrain", *own) as cfg:
        data, mask, model = (instantiate(cfg[key], _convert_="all") for key in ("data", "mask", "model"))
        split = data.split_batch(cfg.global_batch_size, None, 2)
    end = runs.load(run, 1)  # the first step's learning rate is 0: these are the weights that it began with
    model.load_state_dict({name.removeprefix("model."): value for name, value in end["state_dict"].items()})
    dataset, collate = data.pretrain_dataset(0), data.pretrain_collate(mask, 0)
    outputs = []
    for rank in range(2):
        sampler = data.pretrain_sampler(0, split, num_batches=1, rank=rank, world_size=2)
        outputs.append(model.train()(collate([dataset[key] for key in next(iter(sampler))])))
    counts = [int(out.count) for out in outputs]
    assert counts[0] != counts[1]
    (sum(out.loss_sum for out in outputs) / sum(counts)).backward()
    trained = [(name, p.grad) for name, p in model.named_parameters() if p.requires_grad]
    moments = end["optimizer_states"][0]["state"]
    assert len(moments) == len(trained)
    for i, (name, gradient) in enumerate(trained):
        assert gradient is not None, name
        close(gradient * (1 - cfg.optim.betas[0]), moments[i]["exp_avg"], name)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("ddp", ["trainer.devices=1"]),
        ("ddp", ["trainer.devices=4", "trainer.strategy=fsdp"]),
        ("fsdp", ["trainer.devices=1"]),
        ("one", WAYS["fsdp"]),
        ("fsdp", ["trainer.devices=4"]),
    ],
    ids=["ddp2-one", "ddp2-fsdp4", "fsdp2-one", "one-fsdp2", "fsdp2-ddp4"],
)
def test_resumed_on_another_number_of_devices(
    runs: ModuleType, recipes: dict[str, list[str]], run_of: Any, cache: Path, tmp_path: Path, before: str,
    after: list[str],
) -> None:  # fmt: skip
    first, whole = run_of("image", before), run_of("image", "one")
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    name = "step-00000001.ckpt"
    (folder / "checkpoints" / name).write_bytes((first / "checkpoints" / name).read_bytes())
    launch(folder, cache, *recipes["image"], *after, f"resume={folder}")
    assert [int(row["step"]) for row in runs.metrics(folder)] == [2, 3]
    a, b = runs.load(whole, STEPS), runs.load(folder, STEPS)
    for key, value in a["state_dict"].items():
        close(value, b["state_dict"][key], key)
    for number, state in a["optimizer_states"][0]["state"].items():
        close(state["exp_avg_sq"], b["optimizer_states"][0]["state"][number]["exp_avg_sq"], str(number))
    progress = [c["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"] for c in (a, b)]
    per_step = [c["d2v"]["accumulate"] for c in (a, b)]
    assert progress == [STEPS * n for n in per_step]


@pytest.mark.parametrize("way", WAYS)
def test_finetuning_and_probes(
    runs: ModuleType, images: Path, run_of: Any, recipes: dict[str, list[str]], cache: Path, tmp_path: Path, way: str
) -> None:
    """Scores, averaged weights and the kept checkpoint are those of one process; so is the kNN probe's accuracy."""
    own = [
        "task=image_classification", f"data.root={images}", "data.img_size=28", "data.in_chans=1", "data.mean=[0.5]",
        "data.std=[0.5]", f"checkpoint={run_of('image', 'one')}", "global_batch_size=8", "trainer.max_steps=4",
        "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.log_every_n_steps=1", "num_threads=1",
        "optim.layer_decay=1", "optim.eps=0.01", "optim.lr=0.01", "schedule.warmup_fraction=0", "ema_decay=0.5",
        "callbacks.score.every_n_steps=2", "labels.augment.auto_augment=null", "labels.augment.erase_prob=0",
        "labels.augment.mixup=0", "labels.augment.cutmix=0", "encoder.drop_path_rate=0",
    ]  # fmt: skip
    one = launch(tmp_path / "one", cache, *own, command="finetune")
    two = launch(tmp_path / "two", cache, *own, *WAYS[way], command="finetune")
    a, b = runs.load(one, 4), runs.load(two, 4)
    for key, value in a["state_dict"].items():
        close(value, b["state_dict"][key], key)
    assert (one / "results.md").read_text() == (two / "results.md").read_text()

    probed = ["callbacks=probe", "callbacks.probe.every_n_steps=3", "callbacks.probe.max_train=60",
              "callbacks.probe.max_val=40", "callbacks.checkpoint.every_n_steps=10", "callbacks.checkpoint.keep=1",
              "callbacks.checkpoint.monitor=probe/knn", "trainer.max_steps=4"]  # fmt: skip
    found = []
    for name, extra in (("one", []), ("two", WAYS[way])):
        run = launch(tmp_path / f"probe-{name}", cache, *recipes["image"], *probed, *extra)
        found.append(runs.metrics(run)[2]["probe/knn"])
        assert runs.checkpoints(run) == ["best.ckpt", "step-00000003.ckpt", "step-00000004.ckpt"]
        best = runs.load(run, 4)["callbacks"]["CheckpointEvery"]["best"]
        assert best == [(float(found[-1]), 3)]
    assert found[0] == found[1] != ""


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
    return port


@pytest.mark.parametrize("rendezvous", ["static", "c10d"])
def test_torchrun(
    runs: ModuleType, run_of: Any, recipes: dict[str, list[str]], cache: Path, tmp_path: Path, rendezvous: str
) -> None:
    """Its processes agree on one folder, and on what to go on from."""
    extra = (
        [f"--master-port={_free_port()}"] if rendezvous == "static"
        else ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{_free_port()}", "--local-addr=127.0.0.1"]
    )  # fmt: skip
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *extra, "-m", "d2v.cli.main",
        "pretrain", f"output_dir={tmp_path}", *recipes["image"], "trainer.devices=2", "resume=auto",
    ]  # fmt: skip
    for steps in (1, STEPS):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "D2V_CACHE": str(cache)}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        (run,) = (tmp_path / "image_tiny").iterdir()
        if steps == 1:
            for later in (2, STEPS):
                (run / "checkpoints" / f"step-{later:08d}.ckpt").unlink()
    for key, value in runs.load(run_of("image", "one"), STEPS)["state_dict"].items():
        close(value, runs.load(run, STEPS)["state_dict"][key], key)


def test_tasks_of_a_slurm_step(
    runs: ModuleType, run_of: Any, recipes: dict[str, list[str]], cache: Path, tmp_path: Path
) -> None:
    """Started a second apart, as srun may do, they share a folder."""
    slurm = {
        "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NODEID": "0",
        "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODELIST": "127.0.0.1", "SLURM_STEP_NODELIST": "127.0.0.1",
    }  # fmt: skip
    tasks = []
    for rank in range(2):
        environment = {**os.environ, **slurm, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank),
                       "OMP_NUM_THREADS": "1", "D2V_CACHE": str(cache)}  # fmt: skip
        tasks.append(
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "d2v.cli.main",
                    "pretrain",
                    f"output_dir={tmp_path}",
                    *recipes["image"],
                    "trainer.devices=2",
                ],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        time.sleep(1.1)
    for task in tasks:
        out, _ = task.communicate(timeout=300)
        assert task.returncode == 0, out
    (run,) = (tmp_path / "image_tiny").iterdir()
    assert run.name == "slurm-7.0"
    for key, value in runs.load(run_of("image", "one"), STEPS)["state_dict"].items():
        close(value, runs.load(run, STEPS)["state_dict"][key], key)

"""Two processes are one: the same losses, gradients, teacher and weights, by DDP and FSDP; real processes over gloo."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from d2v.cli.settings import built
from d2v.lit.pretrain import PretrainModule
from d2v.nn.block import Block
from d2v.objective.masking import RandomMask
from d2v.types import LossOutput

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

    def __call__(self, grid: tuple[int, ...], rngs: Sequence[np.random.Generator]) -> np.ndarray:
        return RandomMask(self.num_masks, 0.25 + 0.5 * rngs[0].random())(grid, rngs)


class SmallBatches(L.Callback):
    """So that every process has something to score."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        trainer.datamodule.data = dataclasses.replace(trainer.datamodule.data, eval_batch_size=5)  # type: ignore[attr-defined]


class SpoilOne(SmallBatches):
    """The second process's outputs become infinite where they are scored."""

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.global_rank == 1:
            pl_module.scored.register_forward_hook(
                lambda module, _, out: out if module.training else out * float("inf")
            )


@pytest.fixture(scope="module")
def recipes(runs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Small runs of every modality, without the decoder's noise, which no two splits of a batch share."""
    root = tmp_path_factory.mktemp("data")
    speech = runs.librispeech(root / "speech", speakers=3, clips=5)
    data = {
        "image": ["data.patch_size=7", "mask.num_masks=2", "mask.mask_length=2",
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
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as context:
        context.setenv("D2V_CACHE", str(folder))
        yield folder


class Pair:
    """Two processes of one group, as torchrun starts them, that run one command after another.

    Most of what a small run takes is starting its processes.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self.processes: list[subprocess.Popen[str]] = []

    def _start(self) -> None:
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "TORCHELASTIC_RUN_ID": "pair",
                 "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}  # fmt: skip
        with self.log.open("a") as file:
            self.processes = [
                subprocess.Popen(
                    [sys.executable, str(Path(__file__).with_name("pair_worker.py"))],
                    env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True,
                )
                for rank in range(2)
            ]  # fmt: skip

    def begin(self, *arguments: str) -> None:
        """Start ``d2v ARGUMENTS`` in both processes."""
        if not self.processes:
            self._start()
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(arguments) + "\n")
            process.stdin.flush()

    def end(self, seconds: float = 300) -> list[Any]:
        """How it ended in each: exit status, output and errors. A pair that hangs is not used again."""
        answers = []
        for process in self.processes:
            assert process.stdout is not None
            ready = select.select([process.stdout], [], [], seconds)[0]
            answer = process.stdout.readline() if ready else ""
            if not answer:
                self.close()
                what = "a process died" if ready else "it hangs"
                raise AssertionError(f"{what}, after {answers}: {self.log.read_text()}")
            answers.append(json.loads(answer))
        return answers

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()
            process.communicate()
        self.processes = []


@pytest.fixture(scope="module")
def pair(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    started = Pair(tmp_path_factory.mktemp("pair") / "log")
    yield started
    started.close()


@pytest.fixture(scope="module")
def launch(runs: ModuleType, pair: Pair) -> Any:
    """A command in this process, in two that are there, or in those that it starts by itself."""

    def run(folder: Path, *overrides: str, command: str = "pretrain") -> Path:
        arguments = [command, f"hydra.run.dir={folder}", *overrides]
        devices = [o for o in overrides if o.startswith("trainer.devices=")][-1:]
        if devices == ["trainer.devices=2"]:
            pair.begin(*arguments)
            for status, out, err in pair.end():
                assert status in (0, None), out + err
        elif devices in ([], ["trainer.devices=1"]):
            result = runs.d2v_command(*arguments)
            assert result.status in (0, None), result.err
        else:
            result = subprocess.run(
                [sys.executable, "-m", "d2v.cli.main", *arguments],
                env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"},
                capture_output=True, text=True, timeout=300, check=False,
            )  # fmt: skip
            assert result.returncode == 0, result.stdout + result.stderr
        return folder

    return run


@pytest.fixture(scope="module")
def run_of(recipes: dict[str, list[str]], launch: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run of a modality in a way ("one", "ddp", "fsdp"), made when first asked for."""
    made: dict[tuple[str, str], Path] = {}

    def get(modality: str, way: str) -> Path:
        if (modality, way) not in made:
            folder = tmp_path_factory.mktemp(f"{modality}-{way}") / "run"
            made[modality, way] = launch(folder, *recipes[modality], *WAYS.get(way, []))
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


def test_two_compiled_processes_are_one(
    runs: ModuleType, recipes: dict[str, list[str]], run_of: Any, launch: Any, tmp_path: Path
) -> None:
    """Gradients of a compiled step are summed over processes, too; compiled code rounds in an order of its own."""
    one, two = run_of("image", "one"), launch(tmp_path / "run", *recipes["image"], *WAYS["ddp"], "compile=true")
    assert "the first step waits for the compiler" in (two / "pretrain.log").read_text()
    a, b = (runs.load(run, STEPS)["state_dict"] for run in (one, two))
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def check_first_gradient(runs: ModuleType, own: list[str], end: dict[str, Any]) -> list[LossOutput]:
    """The first step's gradient, which two processes found, against that of the sum over all tokens, by hand.

    Args:
        runs: ``tiny_runs``.
        own: the run's overrides.
        end: the step's checkpoint. Its learning rate is 0: these are the weights that the step began with.

    Returns:
        What the model computed of the first process's micro-batches, then of the second's.
    """
    with runs.configuration("pretrain", *own) as cfg:
        data, mask, model = (built(cfg[key]) for key in ("data", "mask", "model"))
        split = data.split_batch(cfg.global_batch_size, cfg.micro_batch_size, 2)
    model.load_state_dict({name.removeprefix("model."): value for name, value in end["state_dict"].items()})
    dataset, collate = data.pretrain_dataset(0), data.pretrain_collate(mask, 0)
    outputs = []
    for rank in range(2):
        trainer = SimpleNamespace(accumulate_grad_batches=split.accumulate, global_step=0, global_rank=rank)
        plan = {"num_batches": split.accumulate, "accumulate": split.accumulate, "rank": rank, "world_size": 2}
        sampler = data.pretrain_sampler(0, split, **plan)
        for number, keys in enumerate(sampler):
            PretrainModule._seed_step(SimpleNamespace(seed=0, trainer=trainer), number)  # type: ignore[arg-type]
            outputs.append(model.train()(collate([dataset[key] for key in keys])))
    (sum(out.loss_sum for out in outputs) / sum(int(out.count) for out in outputs)).backward()
    trained = [(name, p.grad) for name, p in model.named_parameters() if p.requires_grad]
    moments = end["optimizer_states"][0]["state"]
    assert len(moments) == len(trained)
    for i, (name, gradient) in enumerate(trained):
        assert gradient is not None, name
        close(gradient * (1 - cfg.optim.betas[0]), moments[i]["exp_avg"], name)
    return outputs


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("modality", MODALITIES)
def test_unequal_masked_counts(
    runs: ModuleType, recipes: dict[str, list[str]], launch: Any, tmp_path: Path, modality: str, way: str
) -> None:
    """The gradient is that of the sum over both processes' tokens, over their number."""
    own = [o for o in recipes[modality] if not o.startswith("micro_batch_size")]
    own += ["trainer.gradient_clip_val=null"]
    # Clips of one step mask equally many tokens, but the processes get two and three of them; others take odd masks.
    own += ["global_batch_size=11"] if modality == "speech" else ["mask._target_=test_distributed.Uneven"]
    run = launch(tmp_path / "run", *own, *WAYS[way], "trainer.max_steps=1")

    outputs = check_first_gradient(runs, own, runs.load(run, 1))
    assert int(outputs[0].count) != int(outputs[1].count)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("modality", ["image", "speech"])
def test_processes_that_skip_different_blocks(
    runs: ModuleType, recipes: dict[str, list[str]], launch: Any, tmp_path: Path, modality: str, way: str
) -> None:
    """No process waits for the gradient of a block that it skips: it is zeros, and part of the sum over both."""
    own = [*recipes[modality], "trainer.gradient_clip_val=null", "model.encoder.layer_drop_rate=0.5",
           "model.encoder.depth=3"]  # fmt: skip
    run = launch(tmp_path / "run", *own, *WAYS[way], "trainer.max_steps=6")
    assert [int(row["step"]) for row in runs.metrics(run)] == [1, 2, 3, 4, 5, 6]

    skipped: list[bool] = []  # every time that a block is called

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        if isinstance(module, Block) and module.training:  # the student's
            skipped.append(torch.equal(inputs[0], output[0]))

    hook = nn.modules.module.register_module_forward_hook(note)
    try:
        outputs = check_first_gradient(runs, own, runs.load(run, 1))
    finally:
        hook.remove()
    assert len(outputs) == 4
    half = len(skipped) // 2
    assert skipped[:half] != skipped[half:]  # the first process's two micro-batches, the second's
    assert any(skipped)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("ddp", ["trainer.devices=1"]),
        ("ddp", ["trainer.devices=4", "trainer.strategy=fsdp"]),
        ("fsdp", ["trainer.devices=1", "trainer.strategy=auto"]),
        ("one", WAYS["fsdp"]),
        ("fsdp", ["trainer.devices=4", "trainer.strategy=auto"]),
    ],
    ids=["ddp2-one", "ddp2-fsdp4", "fsdp2-one", "one-fsdp2", "fsdp2-ddp4"],
)
def test_resumed_on_another_number_of_devices(
    runs: ModuleType, recipes: dict[str, list[str]], run_of: Any, launch: Any, tmp_path: Path, before: str,
    after: list[str],
) -> None:  # fmt: skip
    first, whole = run_of("image", before), run_of("image", "one")
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    name = "step-00000001.ckpt"
    (folder / "checkpoints" / name).write_bytes((first / "checkpoints" / name).read_bytes())
    launch(folder, *recipes["image"], *after, f"resume={folder}")
    assert [int(row["step"]) for row in runs.metrics(folder)] == [2, 3]
    a, b = runs.load(whole, STEPS), runs.load(folder, STEPS)
    for key, value in a["state_dict"].items():
        close(value, b["state_dict"][key], key)
    for number, state in a["optimizer_states"][0]["state"].items():
        close(state["exp_avg_sq"], b["optimizer_states"][0]["state"][number]["exp_avg_sq"], str(number))
    progress = [c["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"] for c in (a, b)]
    per_step = [c["d2v"]["accumulate"] for c in (a, b)]
    assert progress == [STEPS * n for n in per_step]


def test_shards_are_read_on_where_every_process_left_them(
    runs: ModuleType, recipes: dict[str, list[str]], launch: Any, tmp_path: Path
) -> None:
    data = [*runs.image_shards(tmp_path / "data"), *WAYS["ddp"], "num_workers=1"]
    whole = launch(tmp_path / "whole", *recipes["image"], *data)
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    name = "step-00000001.ckpt"
    (folder / "checkpoints" / name).write_bytes((whole / "checkpoints" / name).read_bytes())
    launch(folder, *recipes["image"], *data, f"resume={folder}")
    a, b = runs.load(whole, STEPS), runs.load(folder, STEPS)
    assert runs.differences(a["state_dict"], b["state_dict"]) == []
    states = [checkpoint["PretrainDataModule"]["loaders"] for checkpoint in (a, b)]
    assert states[0] == states[1]
    assert len(states[0]) == 2
    assert states[0][0] != states[0][1]


@pytest.mark.parametrize("way", WAYS)
def test_finetuning_and_probes(
    runs: ModuleType, images: Path, run_of: Any, recipes: dict[str, list[str]], launch: Any, tmp_path: Path, way: str
) -> None:
    """Scores, averaged weights and the kept checkpoint are those of one process; so is the kNN probe's accuracy."""
    own = [
        "task=image_classification", f"data.root={images}", "data.img_size=28", "data.in_chans=1", "data.mean=[0.5]",
        "data.std=[0.5]", f"checkpoint={run_of('image', 'one')}", "global_batch_size=8", "trainer.max_steps=4",
        "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.log_every_n_steps=1", "num_threads=1",
        "optim.layer_decay=1", "optim.eps=0.01", "optim.lr=0.01", "schedule.warmup_fraction=0", "ema_decay=0.5",
        "callbacks.score.every_n_steps=2", "labels.augment.auto_augment=null", "labels.augment.erase_prob=0",
        "labels.augment.mixup=0", "labels.augment.cutmix=0", "encoder.drop_path_rate=0",
        "+callbacks.small._target_=test_distributed.SmallBatches",
    ]  # fmt: skip
    one = launch(tmp_path / "one", *own, command="finetune")
    two = launch(tmp_path / "two", *own, *WAYS[way], command="finetune")
    a, b = runs.load(one, 4), runs.load(two, 4)
    for key, value in a["state_dict"].items():
        close(value, b["state_dict"][key], key)
    assert (one / "results.md").read_text() == (two / "results.md").read_text()
    scores = [[row["val/top1"] for row in runs.metrics(run) if row.get("val/top1")] for run in (one, two)]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 2

    probed = ["callbacks=probe", "callbacks.probe.every_n_steps=3", "callbacks.probe.max_train=60",
              "callbacks.probe.max_val=40", "callbacks.checkpoint.every_n_steps=10", "callbacks.checkpoint.keep=1",
              "callbacks.checkpoint.monitor=probe/knn", "trainer.max_steps=4"]  # fmt: skip
    found = []
    for name, extra in (("one", []), ("two", WAYS[way])):
        run = launch(tmp_path / f"probe-{name}", *recipes["image"], *probed, *extra)
        found.append(runs.metrics(run)[2]["probe/knn"])
        assert runs.checkpoints(run) == ["best.ckpt", "step-00000003.ckpt", "step-00000004.ckpt"]
        best = runs.load(run, 4)["callbacks"]["CheckpointEvery"]["best"]
        assert best == [(float(found[-1]), 3)]
    assert found[0] == found[1] != ""


def test_what_one_process_finds_wrong_ends_both(images: Path, run_of: Any, pair: Pair, tmp_path: Path) -> None:
    """Scores are made of both processes' shares: neither waits for the other's, nor goes on without it."""
    pair.begin(
        "finetune", f"hydra.run.dir={tmp_path / 'run'}", "task=image_classification", f"data.root={images}",
        "data.img_size=28", "data.in_chans=1", "data.mean=[0.5]", "data.std=[0.5]", "trainer.accelerator=cpu",
        f"checkpoint={run_of('image', 'one')}", "global_batch_size=8", "trainer.max_steps=2", "num_threads=1",
        "trainer.precision=32-true", "schedule.warmup_fraction=0", "labels.augment.mixup=0", "labels.augment.cutmix=0",
        "+callbacks.spoil._target_=test_distributed.SpoilOne", *WAYS["ddp"],
    )  # fmt: skip
    for status, out, err in pair.end(120):
        assert status == 1, out + err
        assert "the model's outputs are not finite: lower optim.lr" in err


@pytest.mark.parametrize("rank", [0, 1])
def test_told_to_stop_they_stop_together(
    runs: ModuleType, recipes: dict[str, list[str]], pair: Pair, tmp_path: Path, rank: int
) -> None:
    """Whichever gets SIGTERM: a checkpoint, which both have waited for, and a clean end."""
    run = tmp_path / "run"
    often = ["trainer.max_steps=100000", "callbacks.checkpoint.keep=1", "callbacks.checkpoint.every_n_steps=5"]
    pair.begin("pretrain", f"hydra.run.dir={run}", *recipes["image"], *WAYS["ddp"], *often)
    for _ in range(6000):
        if list(run.glob("checkpoints/step-*.ckpt")):
            break
        time.sleep(0.02)
    os.kill(pair.processes[rank].pid, signal.SIGTERM)
    ends = pair.end(120)
    assert [status for status, *_ in ends] == [143, 0], ends  # the first one's is the run's
    assert "stopped by SIGTERM after step " in ends[0][1]
    (name,) = runs.checkpoints(run)
    step = int(name[5:13])
    assert all(re.search(rf"stopping after step {step}\b", out + err) for _, out, err in ends)


def test_a_full_disk_of_the_first_fails_both(recipes: dict[str, list[str]], pair: Pair, tmp_path: Path) -> None:
    """The other has nothing to write, and is told: it must not wait for ever, nor take the run for saved."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").write_text("a file where the folder would be")
    pair.begin("pretrain", f"hydra.run.dir={run}", *recipes["image"], *WAYS["ddp"])
    for status, out, err in pair.end(120):
        assert status == 1, out + err
        assert "the last checkpoint, step 3, could not be written" in err


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

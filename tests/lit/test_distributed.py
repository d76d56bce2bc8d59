"""Two processes are one: the same losses, gradients, teacher and weights, by DDP and FSDP; real processes over gloo."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from two_processes import MODALITIES, STEPS, WAYS, close

from d2v.cli.settings import built
from d2v.lit.pretrain import PretrainModule
from d2v.nn.block import Block
from d2v.types import LossOutput

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


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


BOTH_LOSSES = ["curriculum.start_fraction=0", "curriculum.end_fraction=0"]  # from the first step on


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
        data, mask, model = (built(cfg, key) for key in ("data", "mask", "model"))
        split = data.split_batch(cfg.global_batch_size, cfg.micro_batch_size, 2)
    model.load_state_dict({name.removeprefix("model."): value for name, value in end["state_dict"].items()})
    if cfg.get("curriculum") is not None:
        model.set_latent_share(cfg.curriculum.end_share)
    dataset, collate = data.pretrain_dataset(0), data.pretrain_collate(mask, 0)
    outputs = []
    for rank in range(2):
        trainer = SimpleNamespace(accumulate_grad_batches=split.accumulate, global_step=0, global_rank=rank)
        plan = {"num_batches": split.accumulate, "accumulate": split.accumulate, "rank": rank, "world_size": 2}
        sampler = data.pretrain_sampler(0, split, **plan)
        for number, keys in enumerate(sampler):
            module = SimpleNamespace(seed=0, trainer=trainer, device=torch.device("cpu"))
            PretrainModule._seed_step(module, number)  # type: ignore[arg-type]
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
    own += ["global_batch_size=11"] if modality == "speech" else ["mask._target_=two_processes.Uneven"]
    own += [] if modality == "text" else BOTH_LOSSES
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
           "model.encoder.depth=3", *BOTH_LOSSES]  # fmt: skip
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
        "+callbacks.small._target_=two_processes.SmallBatches",
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

"""Training loops that ``end_to_end.py`` times, each in a process of its own: by hand, and under other trainers.

All take the same images in batches of the same size, on the same device, threads and precision. The loop by hand on
d2v's classes repeats what ``d2v pretrain`` computes, step by step: its loss is the same. The masked autoencoders of the
other libraries are as wide and deep as the recipe's encoder.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import torch
from common import compose_recipe
from methods import pretraining, train
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from d2v.cli.settings import build_schedule, built, plain_value
from d2v.data.keys import SampleKey
from d2v.lit.machine import keep_freed_memory

WARM_UP_STEPS = 8  # of every run, so that short ones have a warm-up
WEIGHT_DECAY, LR = 0.05, 1.5e-4  # of the other libraries' models: values that cost as much as others


@dataclass(frozen=True)
class Loop:
    """A loop to time.

    Attributes:
        name: key of ``LOOPS``.
        recipe: of the model and the images.
        steps: to take.
        first: steps that are not timed.
        device: "cpu" or "cuda".
        precision: "32-true" or "bf16-mixed".
        num_workers: of the data.
        launched: Unix time at which the command was started.
        overrides: of the recipe.
    """

    name: str
    recipe: str
    steps: int
    first: int
    device: str
    precision: str
    num_workers: int
    launched: float
    overrides: list[str] = field(default_factory=list)

    def autocast(self) -> Any:
        """Context of a forward pass."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16-mixed")


class Clock:
    """Times of steps, by the wall clock and by the processor time of this process.

    Args:
        loop: the loop that takes the steps.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.count = 0
        self.times: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    def begin(self) -> None:
        """Before a step, of which the first counts."""
        self.times.setdefault("begun", time.time())

    def end(self) -> None:
        """After a step."""
        self.count += 1
        if self.count in (1, self.loop.first, self.loop.steps):
            if self.loop.device == "cuda":
                torch.cuda.synchronize()
            mark = "first" if self.count < self.loop.steps else "last"
            self.times.setdefault("one", time.time())
            self.times[mark], self.cpu[mark] = time.time(), time.process_time()

    def record(self, loss: float) -> dict[str, Any]:
        """Seconds to the first step and of it, and steps a second after those that do not count."""
        times, steps = self.times, self.loop.steps - self.loop.first
        return {
            "start_s": times["begun"] - self.loop.launched,
            "first_step_s": times["one"] - times["begun"],
            "steps_per_s": steps / (times["last"] - times["first"]),
            "cpu_s_per_step": (self.cpu["last"] - self.cpu["first"]) / steps,
            "loss": loss,
        }


def d2v_by_hand(loop: Loop) -> dict[str, Any]:
    """What ``d2v pretrain`` computes, in a loop of its own."""
    cfg = compose_recipe(loop.recipe, loop.overrides)
    _seed_as_lightning(cfg.seed)
    device = torch.device(loop.device)
    method = pretraining(cfg, loop.steps, cfg.seed, device, loop.num_workers)
    schedule = build_schedule({**plain_value(cfg.schedule), "warmup_steps": WARM_UP_STEPS}, loop.steps)
    clock = Clock(loop)
    loss = train(method, loop.steps, schedule, cfg.seed, device, loop.autocast, clock.begin, lambda step: clock.end())
    return clock.record(loss)


def _seed_as_lightning(seed: int) -> None:
    import lightning

    lightning.seed_everything(seed, verbose=False)


class EpochImages(Dataset[Tensor]):
    """Training images of the recipe as ``d2v pretrain`` would vary them, of one epoch.

    Args:
        loop: with the recipe.
        key: under which an image is handed out in a dict; None for the bare tensor.
    """

    def __init__(self, loop: Loop, key: str | None = None) -> None:
        cfg = compose_recipe(loop.recipe, loop.overrides)
        self.samples = built(cfg, "data").pretrain_dataset(cfg.seed)
        self.batch_size, self.encoder = int(cfg.global_batch_size), cfg.model.encoder
        self.frontend, self.img_size = cfg.model.encoder.frontends.image, cfg.data.img_size
        self.key = key

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        image = self.samples[SampleKey(0, index)].inputs
        return image if self.key is None else {self.key: image}

    def loader(self, num_workers: int) -> DataLoader[Any]:
        """Shuffled batches of one epoch."""
        return DataLoader(self, self.batch_size, shuffle=True, num_workers=num_workers, drop_last=True)


def endless(loader: DataLoader[Any]) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from loader


def by_hand(loop: Loop, model: nn.Module, loss_of: Callable[[Tensor], Tensor], images: EpochImages) -> dict[str, Any]:
    """A loop of forward, backward and AdamW."""
    model.to(loop.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    clock, loss = Clock(loop), torch.tensor(math.nan)
    batches = islice(endless(images.loader(loop.num_workers)), loop.steps)
    clock.begin()
    for batch in batches:
        with loop.autocast():
            loss = loss_of(batch.to(loop.device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        clock.end()
    return clock.record(float(loss.detach()))


def huggingface_model(images: EpochImages) -> nn.Module:
    """transformers' ViTMAE, as wide and deep as the recipe's encoder, with a decoder of one block."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    encoder, width = images.encoder, images.encoder.embed_dim
    return ViTMAEForPreTraining(ViTMAEConfig(
        hidden_size=width, num_hidden_layers=encoder.depth, num_attention_heads=encoder.num_heads,
        intermediate_size=4 * width, image_size=images.img_size, patch_size=images.frontend.patch_size,
        num_channels=images.frontend.in_chans, decoder_hidden_size=width // 2, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=encoder.num_heads, decoder_intermediate_size=2 * width,
    ))  # fmt: skip


def huggingface_by_hand(loop: Loop) -> dict[str, Any]:
    """ViTMAE in a loop of its own."""
    images = EpochImages(loop)
    model = huggingface_model(images)
    return by_hand(loop, model, lambda batch: model(pixel_values=batch).loss, images)


def huggingface_trainer(loop: Loop) -> dict[str, Any]:
    """ViTMAE under transformers' Trainer."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    images, clock = EpochImages(loop, "pixel_values"), Clock(loop)

    class Marks(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.begin()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.end()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=loop.steps, per_device_train_batch_size=images.batch_size, learning_rate=LR,
            weight_decay=WEIGHT_DECAY, lr_scheduler_type="constant", max_grad_norm=0.0,
            bf16=loop.precision == "bf16-mixed", use_cpu=loop.device == "cpu", report_to=[], save_strategy="no",
            logging_steps=50, dataloader_num_workers=loop.num_workers, dataloader_drop_last=True, disable_tqdm=True,
            remove_unused_columns=False,
        )  # fmt: skip
        model = huggingface_model(images)
        out = Trainer(model=model, args=arguments, train_dataset=images, callbacks=[Marks()]).train()
    return clock.record(out.training_loss)


def stable_model(images: EpochImages) -> nn.Module:
    """stable-pretraining's MAE, as wide and deep as the recipe's encoder, with a decoder of one block."""
    from stable_pretraining.methods import MAE
    from timm.models.vision_transformer import VisionTransformer

    encoder, width = images.encoder, images.encoder.embed_dim
    vit = VisionTransformer(
        img_size=images.img_size, patch_size=images.frontend.patch_size, in_chans=images.frontend.in_chans,
        num_classes=0, embed_dim=width, depth=encoder.depth, num_heads=encoder.num_heads,
    )  # fmt: skip
    return MAE(vit, decoder_embed_dim=width // 2, decoder_depth=1, decoder_num_heads=encoder.num_heads)


def stable_by_hand(loop: Loop) -> dict[str, Any]:
    """stable-pretraining's MAE in a loop of its own."""
    images = EpochImages(loop)
    model = stable_model(images)
    return by_hand(loop, model, lambda batch: model(batch).loss, images)


def stable_trainer(loop: Loop) -> dict[str, Any]:
    """stable-pretraining's MAE in its Module, under Lightning's Trainer."""
    import lightning
    import stable_pretraining

    images, clock = EpochImages(loop, "image"), Clock(loop)

    def forward(module: Any, batch: dict[str, Tensor], stage: str) -> dict[str, Any]:
        return {"loss": module.mae(batch["image"]).loss}

    class Marks(lightning.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            clock.begin()

        def on_train_batch_end(self, *args: Any) -> None:
            clock.end()

    optim = {"optimizer": {"type": "AdamW", "lr": LR, "weight_decay": WEIGHT_DECAY}, "scheduler": "ConstantLR"}
    module = stable_pretraining.Module(forward=forward, mae=stable_model(images), optim=optim)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_steps=loop.steps, max_epochs=-1, accelerator=loop.device, devices=1, precision=loop.precision,  # type: ignore[arg-type]
            callbacks=[Marks()], default_root_dir=folder, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, images.loader(loop.num_workers))
    return clock.record(math.nan)


LOOPS: dict[str, Callable[[Loop], dict[str, Any]]] = {
    "d2v by hand": d2v_by_hand,
    "transformers by hand": huggingface_by_hand,
    "transformers trainer": huggingface_trainer,
    "stable-pretraining by hand": stable_by_hand,
    "stable-pretraining trainer": stable_trainer,
}


def command(loop: Loop) -> list[str]:
    """Words of the command that runs a loop with the interpreter of this process."""
    return [sys.executable, __file__, json.dumps(asdict(loop))]


if __name__ == "__main__":
    described = Loop(**json.loads(sys.argv[1]))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if described.device == "cpu":
        keep_freed_memory()
    print(json.dumps(LOOPS[described.name](described)))

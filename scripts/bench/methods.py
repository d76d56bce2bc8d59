"""Methods that ``peers.py`` compares: what each trains, its loss of a batch, and the features of its encoder.

d2v's are recipes. Those of stable-pretraining and lightly are the libraries' own classes with their own losses, masks
and averages, at the libraries' default values, around a timm ViT of the recipe's shape: width, depth, heads, patch.
Decoders and predictors have one block of half the encoder's width, because the defaults (six or eight blocks of 384 or
512) would be many times as large as this encoder. Features are the mean of the patch tokens of the trained encoder,
never the average's; LeJEPA's are its CLS token, which is what it trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from common import compose_recipe
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from d2v.cli.settings import build_schedule, built, plain_value
from d2v.data.keys import SampleKey
from d2v.data.loading import Workers
from d2v.data.samplers import StepPlan
from d2v.lit.module import seed_generators, step_seed
from d2v.types import Batch

RECIPE = "image_tiny32"  # all methods have its encoder, images and views
WEIGHT_DECAY, BETAS = 0.05, (0.9, 0.95)
VIEWS = 4  # of an image, for LeJEPA: two global ones and two smaller crops
LEARNING_RATES = (5e-4, 1e-3, 2e-3)


@dataclass
class Method:
    """A model in training.

    Attributes:
        model: with all its parts.
        optimizer: of the parameters that are trained, at the peak learning rate.
        batches: endless training batches, on the CPU.
        loss: of a batch on the device; called in each step, with the step's number.
        encode: (B, D) features of (B, C, H, W) images.
        after_step: what follows the optimizer's step; called with the number of steps so far and of all.
        clip: largest norm of the gradients.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Iterator[Any]
    loss: Callable[[Any, int], Tensor]
    encode: Callable[[Tensor], Tensor]
    after_step: Callable[[int, int], None] = field(default=lambda step, steps: None)
    clip: float = float("inf")


def recipe(name: str, root: str, *overrides: str) -> DictConfig:
    """Configuration of a recipe on a folder of images."""
    return compose_recipe(name, [f"data.root={root}", *overrides])


def d2v_method(name: str) -> Callable[..., Method]:
    """A recipe of d2v."""

    def build(root: str, lr: float, steps: int, seed: int, device: torch.device) -> Method:
        cfg = recipe(name, root, f"optim.lr={lr}", f"ema.anneal_steps={max(1, steps // 2)}")
        return pretraining(cfg, steps, seed, device)

    return build


def pretraining(cfg: DictConfig, steps: int, seed: int, device: torch.device, num_workers: int = 0) -> Method:
    """What ``d2v pretrain`` computes on one device without accumulation, but for its learning rates.

    Args:
        cfg: of the recipe.
        steps: of the run.
        seed: of order, views and masks.
        device: of the model.
        num_workers: of the data.
    """
    data, mask, model = (built(cfg, key) for key in ("data", "mask", "model"))
    optim, ema = (built(cfg, key) for key in ("optim", "ema"))
    node = cfg.get("curriculum")
    curriculum = None if node is None else build_schedule(plain_value(node), steps, "curriculum")
    if curriculum is not None:
        model.set_latent_share(curriculum(0))
    model.to(device).train()
    split = data.split_batch(cfg.global_batch_size, cfg.micro_batch_size, 1)
    assert split.accumulate == 1, "batches are not accumulated here"
    workers = Workers(num_workers, pin_memory=device.type == "cuda")
    loader = data.loader(mask, seed, split, StepPlan(num_batches=steps), workers)

    def loss(batch: Any, step: int) -> Tensor:
        if curriculum is not None:
            if step and curriculum(step) > 0 and curriculum(step - 1) == 0:
                model.update_teacher(0.0)
            model.set_latent_share(curriculum(step))
        out = model(batch)
        return out.loss_sum / out.count

    def after_step(step: int, steps: int) -> None:
        if curriculum is None or curriculum(step - 1) > 0:
            model.update_teacher(ema(step))

    def encode(images: Tensor) -> Tensor:
        tokens: Tensor = model.student(Batch("image", images, torch.arange(len(images)))).patch_tokens
        return tokens.mean(1)

    clip = cfg.trainer.gradient_clip_val or float("inf")
    return Method(model, optim(model), iter(loader), loss, encode, after_step, clip)


class Images(Dataset[Any]):
    """Training images of the recipe, varied as d2v varies them, or by a transform of Pillow images.

    Args:
        cfg: of the recipe.
        seed: of the views.
        transform: of an image, instead of the recipe's view.
    """

    def __init__(self, cfg: DictConfig, seed: int, transform: Callable[[Any], Any] | None = None) -> None:
        self.samples = built(cfg, "data").pretrain_dataset(seed)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        if self.transform is None:
            return self.samples[SampleKey(epoch, index)].inputs
        return self.transform(self.samples.source.load(index))


def endless(images: Images, batch_size: int, seed: int) -> Iterator[Any]:
    """Shuffled batches, epoch after epoch."""

    def keys() -> Iterator[list[tuple[int, int]]]:
        epoch = 0
        while True:
            order = np.random.default_rng((seed, epoch)).permutation(len(images)).tolist()
            for start in range(0, len(order) - batch_size + 1, batch_size):
                yield [(epoch, index) for index in order[start : start + batch_size]]
            epoch += 1

    loader: DataLoader[Any] = DataLoader(images, batch_sampler=keys())  # has no end
    return iter(loader)


def vit(cfg: DictConfig, **options: Any) -> Any:
    """timm's ViT of the recipe's shape."""
    from timm.models.vision_transformer import VisionTransformer

    encoder = cfg.model.encoder
    return VisionTransformer(
        img_size=cfg.data.img_size, patch_size=cfg.data.patch_size, in_chans=cfg.data.in_chans, num_classes=0,
        embed_dim=encoder.embed_dim, depth=encoder.depth, num_heads=encoder.num_heads, **options,
    )  # fmt: skip


def peer(
    make: Callable[[DictConfig], tuple[nn.Module, Callable[[Any], Tensor], Callable[[Tensor], Tensor], Any]],
    transform: Callable[[DictConfig], Callable[[Any], Any]] | None = None,
) -> Callable[..., Method]:
    """A method of another library.

    Args:
        make: model, loss of a batch, features of images, and a wrapper of a teacher or None.
        transform: of Pillow images, instead of the recipe's views.
    """

    def build(root: str, lr: float, steps: int, seed: int, device: torch.device) -> Method:
        cfg = recipe(RECIPE, root)
        model, loss, encode, teacher = make(cfg)
        model.to(device).train()
        images = Images(cfg, seed, None if transform is None else transform(cfg))
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=lr,
            betas=BETAS,
            weight_decay=WEIGHT_DECAY,
            fused=True,
        )

        def after_step(step: int, steps: int) -> None:
            if teacher is not None:
                teacher.update_teacher()
                teacher.update_ema_coefficient(step, steps)

        batches = endless(images, int(cfg.global_batch_size), seed)
        return Method(model, optimizer, batches, lambda batch, step: loss(batch), encode, after_step)

    return build


def patch_mean(tokens: Tensor, num_prefix_tokens: int = 1) -> Tensor:
    """(B, D) mean of the patch tokens."""
    return tokens[:, num_prefix_tokens:].mean(1)


def stable_data2vec(cfg: DictConfig, **options: float) -> Any:
    """stable-pretraining's Data2Vec: the average of as many of its layers as the ViT has."""
    from stable_pretraining.methods import Data2Vec

    model = Data2Vec(vit(cfg), top_k_blocks=min(6, cfg.model.encoder.depth), image_size=cfg.data.img_size, **options)
    student = model.encoder.student
    return model, lambda x: model(x).loss, lambda x: patch_mean(student.forward_features(x)), model.encoder


def stable_data2vec_fast(cfg: DictConfig) -> Any:
    """The same with the averaging rates of d2v's recipe, which are for runs as short as these."""
    return stable_data2vec(cfg, ema_decay_start=cfg.ema.decay_start, ema_decay_end=cfg.ema.decay_end)


def stable_mae(cfg: DictConfig) -> Any:
    """stable-pretraining's MAE."""
    from stable_pretraining.methods import MAE

    encoder = cfg.model.encoder
    model = MAE(
        vit(cfg), decoder_embed_dim=encoder.embed_dim // 2, decoder_depth=1, decoder_num_heads=encoder.num_heads
    )
    prefix = model.encoder.num_prefix_tokens
    return model, lambda x: model(x).loss, lambda x: patch_mean(model.encoder(x).encoded, prefix), None


def stable_ijepa(cfg: DictConfig) -> Any:
    """stable-pretraining's I-JEPA; its ViT is used without a CLS token."""
    from stable_pretraining.methods import IJEPA

    model = IJEPA(vit(cfg), predictor_embed_dim=cfg.model.encoder.embed_dim // 2, predictor_depth=1)
    return model, lambda x: model(x).loss, lambda x: model(x).embedding.mean(1), model.encoder


def stable_lejepa(cfg: DictConfig) -> Any:
    """stable-pretraining's LeJEPA; timm has to know its ViT by a name."""
    from stable_pretraining.methods import LeJEPA
    from timm.models import register_model

    def vit_of_the_recipe(pretrained: bool = False, **options: Any) -> nn.Module:
        known = {name: value for name, value in options.items() if name in ("dynamic_img_size", "drop_path_rate")}
        model: nn.Module = vit(cfg, **known)
        return model

    vit_of_the_recipe.__module__ = __name__
    register_model(vit_of_the_recipe)
    model = LeJEPA("vit_of_the_recipe")

    def loss(views: list[Tensor]) -> Tensor:
        half = VIEWS // 2
        out: Tensor = model(global_views=views[:half], local_views=views[half:]).loss
        return out

    return model, loss, lambda x: model(images=x).embedding, None


def lejepa_views(cfg: DictConfig) -> Callable[[Any], Any]:
    """Views of an image as in LeJEPA's paper, from torchvision: crops, colours, blur, grey, solarized, flipped."""
    from torchvision.transforms import v2

    def view(low: float, high: float) -> Any:
        return v2.Compose([
            v2.RandomResizedCrop(cfg.data.img_size, scale=(low, high)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(3)], p=0.5),
            v2.RandomApply([v2.RandomSolarize(threshold=128, p=1.0)], p=0.2),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean=mean, std=std),
        ])  # fmt: skip

    data = built(cfg, "data")
    mean, std = list(data.mean), list(data.std)
    large, small = view(0.3, 1.0), view(0.05, 0.3)

    def views(image: Any) -> list[Tensor]:
        image = image.convert("RGB")
        return [large(image) if i < VIEWS // 2 else small(image) for i in range(VIEWS)]

    return views


def lightly_mae(cfg: DictConfig) -> Any:
    """lightly's MAE, put together from its modules as its examples do."""
    from lightly.models import utils
    from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM

    encoder, patch = cfg.model.encoder, cfg.data.patch_size
    width = encoder.embed_dim // 2
    backbone = MaskedVisionTransformerTIMM(vit(cfg))
    decoder = MaskedVisionTransformerDecoderTIMM(
        (cfg.data.img_size // patch) ** 2, embed_dim=width, depth=1, num_heads=encoder.num_heads
    )
    embed = nn.Linear(encoder.embed_dim, width)
    predict = nn.Linear(width, patch**2 * cfg.data.in_chans)
    model = nn.ModuleDict({"backbone": backbone, "embed": embed, "decoder": decoder, "predict": predict})

    def loss(images: Tensor) -> Tensor:
        size = (len(images), backbone.sequence_length)
        keep, masked = utils.random_token_mask(size, mask_ratio=0.75, device=images.device)
        visible = embed(backbone.encode(images, idx_keep=keep))
        tokens = utils.repeat_token(decoder.mask_token, size).to(visible.dtype)
        decoded = decoder(utils.set_at_index(tokens, keep, visible))
        predicted = predict(utils.get_at_index(decoded, masked))
        target = utils.get_at_index(utils.patchify(images, patch), masked - 1)  # the CLS token is no patch
        return nn.functional.mse_loss(predicted.float(), target)

    return model, loss, lambda x: patch_mean(backbone.encode(x)), None


METHODS: dict[str, Callable[..., Method]] = {
    "d2v: data2vec 2.0": d2v_method(RECIPE),
    "d2v: autoencoder": d2v_method("mae_image_tiny32"),
    "stable-pretraining: Data2Vec": peer(stable_data2vec),
    "stable-pretraining: Data2Vec, d2v's EMA": peer(stable_data2vec_fast),
    "stable-pretraining: MAE": peer(stable_mae),
    "stable-pretraining: I-JEPA": peer(stable_ijepa),
    "stable-pretraining: LeJEPA": peer(stable_lejepa, lejepa_views),
    "lightly: MAE": peer(lightly_mae),
}


def train(
    method: Method,
    steps: int,
    schedule: Callable[[int], float],
    seed: int,
    device: torch.device,
    autocast: Callable[[], Any],
    begin: Callable[[], None] = lambda: None,
    end: Callable[[int], None] = lambda step: None,
) -> float:
    """Train; return the last loss.

    Args:
        method: what to train.
        steps: of the run.
        schedule: factor on the peak learning rates by step, from 0.
        seed: of the randomness on the device.
        device: of the model.
        autocast: returns the context of a forward pass.
        begin: called before each step.
        end: called after each step with the number of steps so far.

    Raises:
        FloatingPointError: the loss is not finite at the end.
    """
    peaks = [group["lr"] for group in method.optimizer.param_groups]
    parameters = [p for group in method.optimizer.param_groups for p in group["params"]]
    loss = torch.tensor(math.nan)
    for step in range(steps):
        begin()
        batch = on_device(next(method.batches), device)
        seed_generators(step_seed(seed, step, 0, 0), device)
        for group, peak in zip(method.optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule(step)
        with autocast():
            loss = method.loss(batch, step)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, method.clip, foreach=True)
        method.optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]  # as the trainer does
        method.optimizer.step()
        method.optimizer.zero_grad()
        method.after_step(step + 1, steps)
        end(step + 1)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {float(loss.detach())} after {steps} steps")
    return float(loss.detach())


def on_device(batch: Any, device: torch.device) -> Any:
    """A batch of any method on the device."""
    if isinstance(batch, (list, tuple)):
        return [on_device(part, device) for part in batch]
    return batch.to(device, non_blocking=True)

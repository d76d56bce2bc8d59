"""Keys that the command line puts into messages of the library."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from d2v.cli.keys import argument_keys
from d2v.errors import in_keys


def configuration(command: str, *words: str) -> DictConfig:
    with initialize_config_module("d2v.conf", version_base="1.3"):
        return compose(command, overrides=list(words))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("mask_ratio=1: too much", "mask.mask_ratio=1: too much"),
        ("max_steps=0", "trainer.max_steps=0"),  # and not the schedule's
        ("a lower lr=..., a longer warmup_steps", "a lower optim.lr=..., a longer schedule.warmup_steps"),
        ("decay_start and layer_norms", "ema.decay_start and model.layer_norms"),
        ("max_in_a_row=20, min_spread=0.2", "callbacks.finite.max_in_a_row=20, callbacks.health.min_spread=0.2"),
        ("check_every_n_steps=1", "check_every_n_steps=1"),  # of two callbacks
        ("offline=true", "logger.wandb.offline=true"),
        ("val_split=x, label_column=y", "data.val_split=x, data.label_column=y"),  # of other data than are chosen
        ("seed=1, global_batch_size=4", "seed=1, global_batch_size=4"),
        ("task=x", "task=x"),  # a group, and a key of one of data
        ("model.encoder.frontends.image.patch_size=7", "data.patch_size=7"),
        ("model.decoders.image.embed_dim=7", "model.encoder.embed_dim=7"),
    ],
)
def test_pretrain(message: str, expected: str) -> None:
    assert in_keys(message, argument_keys(configuration("pretrain"))) == expected


def test_keys_at_the_top_stand_for_themselves() -> None:
    keys = argument_keys(configuration("extract", "checkpoint=x", "output=y"))
    assert in_keys("split=x, precision=y, val_root=z", keys) == "split=x, precision=y, data.val_root=z"
    keys = argument_keys(configuration("tokenizer", "files=x", "output=y"))
    assert in_keys("document=page, vocab_size=3", keys) == "document=page, vocab_size=3"


def test_a_key_that_no_option_has_is_known_where_it_is_given() -> None:
    assert argument_keys({"trainer": {"max_epochs": 3}})["max_epochs"] == "trainer.max_epochs"

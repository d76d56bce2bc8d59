"""Fixtures shared by all tests: tiny models and batches, the slow oracle, and a clean torch for every test."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from d2v.models.data2vec2 import Data2Vec2
from d2v.nn.decoders import ConvDecoder2d
from d2v.nn.encoder import Encoder, transformer_encoder
from d2v.nn.frontends.image import ImageFrontend
from d2v.objective.masking import InverseBlockMask
from d2v.types import Batch, TokenMask

TESTS = Path(__file__).parent
REPO = TESTS.parent

# Whoever starts the tests by nohup or in the background has signals ignored, and every child inherits that.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)


def load_module(path: Path, name: str) -> ModuleType:
    """A module from a file that is in no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(autouse=True)
def _clean_torch() -> Iterator[None]:
    """Every test starts from seed 0 on one thread, and leaves torch's global state as it found it."""
    state, dtype, threads = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


@pytest.fixture
def data_config() -> Callable[[str], DictConfig]:
    """The configuration of ``data=NAME``, inputs included."""

    def composed(name: str) -> DictConfig:
        with initialize_config_module("d2v.conf", version_base="1.3"):
            config: DictConfig = compose("check", [f"data={name}"]).data
        OmegaConf.set_struct(config, False)
        return config

    return composed


@pytest.fixture(scope="session")
def repo() -> Path:
    """The checkout."""
    return REPO


@pytest.fixture(scope="session")
def runs() -> ModuleType:
    """Tiny runs of the trainer and of commands, ``tests/lit/tiny_runs.py``."""
    return load_module(TESTS / "lit" / "tiny_runs.py", "tiny_runs")


@pytest.fixture(scope="session")
def images(runs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 training and 12 validation images of two classes."""
    return runs.image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """What the authors' code computed."""
    return TESTS / "golden"


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """The slow second implementation."""
    return load_module(TESTS / "models" / "slow_oracle.py", "d2v_tests_slow_oracle")


@pytest.fixture(scope="session")
def check_parity() -> ModuleType:
    """``scripts/check_parity.py`` as a module."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(REPO / "scripts")  # its recipes are in a file beside it
        return load_module(REPO / "scripts" / "check_parity.py", "d2v_scripts_check_parity")


def perturb(module: torch.nn.Module, std: float = 0.2, seed: int = 1) -> torch.nn.Module:
    """Move every parameter off its initial value, so that a skipped norm or a swapped bias shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += std * torch.randn(parameter.shape, generator=generator)
    return module


ENCODER_KEYS = {
    "depth", "num_heads", "prenet_depth", "mlp_ratio", "norm_first", "norm_eps", "drop_rate", "attn_drop_rate",
    "mlp_drop_rate", "post_mlp_drop_rate", "drop_path_rate",
}  # fmt: skip


@pytest.fixture
def make_encoder() -> Callable[..., Encoder]:
    """Factory of perturbed tiny encoders: 12 px images in 3 px patches (16 tokens), 16 features."""

    def make(embed_dim: int = 16, num_prefix_tokens: int = 1, **options: Any) -> Encoder:
        options = {"depth": 2, "num_heads": 4, "prenet_depth": 1, "mlp_ratio": 2.0} | options
        frontend = ImageFrontend(embed_dim, 12, 3, 2, num_prefix_tokens)
        encoder = transformer_encoder({"image": frontend}, embed_dim, **options)
        perturb(encoder)
        return encoder

    return make


@pytest.fixture
def make_model(make_encoder: Callable[..., Encoder]) -> Callable[..., Data2Vec2]:
    """Factory of perturbed tiny models without noise; keywords go to the encoder, the decoder or the model."""

    def make(embed_dim: int = 16, num_prefix_tokens: int = 1, mask_noise_std: float = 0.0, **options: Any) -> Data2Vec2:
        encoder_options = {k: options.pop(k) for k in ENCODER_KEYS & options.keys()}
        encoder = make_encoder(embed_dim, num_prefix_tokens, **encoder_options)
        decoder = ConvDecoder2d(embed_dim, 8, 2, 3, 2, mask_noise_std)
        model = Data2Vec2(encoder, {"image": decoder}, **({"average_top_k_layers": 2} | options))
        perturb(model.decoders)
        perturb(model.teacher, 0.05, seed=2)
        return model

    return make


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """Factory of batches for the tiny models: each sample's image and masks depend on its id alone."""

    def make(sample_ids: list[int] | int = 3, num_masks: int = 2) -> Batch:
        ids = list(range(sample_ids)) if isinstance(sample_ids, int) else sample_ids
        rngs = [np.random.default_rng(i) for i in ids]
        inputs = np.stack([rng.standard_normal((2, 12, 12)) for rng in rngs])
        masks = InverseBlockMask(num_masks, 0.7, 2, 0.1)((4, 4), rngs)
        mask = TokenMask.from_bool(torch.from_numpy(masks), num_masks)
        return Batch("image", torch.from_numpy(inputs).float(), torch.tensor(ids), mask)

    return make


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named by their argument: what is compressed holds the time, and every process must collect the same."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Undo what a test, or a library within it, sets in the environment: ranks that Lightning notes, say."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)

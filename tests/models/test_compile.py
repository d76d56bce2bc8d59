"""A training step's forward compiles to one graph, once, and computes what it computes uncompiled."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from recipes import AUTOENCODER, RECIPES, build, make_batch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from d2v.nn.trunk import checkpoint_activations

each_recipe = pytest.mark.parametrize("recipe", [*RECIPES, AUTOENCODER])


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("recipe", "checkpointing"),
    [*((recipe, False) for recipe in [*RECIPES, AUTOENCODER]), ("image-2", True), ("speech-2", True)],
)
def test_one_graph_for_all_batches_of_a_shape(recipe: str, checkpointing: bool) -> None:
    model = build(recipe)
    if checkpointing:
        checkpoint_activations(model)
    backend = CompileCounterWithBackend("aot_eager")
    step = torch.compile(model.forward, fullgraph=True, backend=backend)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-3)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(4):
            out = step(make_batch(recipe, seed))
            (out.loss_sum / out.count).backward()
            optimizer.step()
            optimizer.zero_grad()
            model.update_teacher(0.9)
    assert backend.frame_count == counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@each_recipe
def test_there_is_no_graph_break_to_explain(recipe: str) -> None:
    explained = torch._dynamo.explain(build(recipe).forward)(make_batch(recipe))
    assert (explained.graph_count, explained.graph_break_count, explained.break_reasons) == (1, 0, [])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["speech-2", "text-1"])
def test_batches_of_many_sizes_share_graphs(recipe: str) -> None:
    model = build(recipe)
    backend = CompileCounterWithBackend("eager")
    step = torch.compile(model.forward, fullgraph=True, backend=backend)
    scale = 100 if recipe == "speech-2" else 2
    for seed, (samples, size) in enumerate([(3, 5), (4, 7), (5, 9), (6, 8), (7, 12), (3, 11), (4, 5), (7, 6), (2, 8)]):
        batch = make_batch(recipe, seed, samples, size * scale)
        out = step(batch)
        assert out.count == batch.mask.ids_mask.numel()  # type: ignore[union-attr]
    assert backend.frame_count <= 3  # of the first size, perhaps with one of the two unknown, and of any size


def _gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.compiled
@pytest.mark.timeout(900)
@pytest.mark.parametrize("recipe", ["image-2", "text-1"])
def test_compiled_code_computes_the_same(recipe: str) -> None:
    """By the real compiler; without noise, of which compiled code draws its own."""
    model = build(recipe, noise=False)
    compiled = copy.deepcopy(model)
    step = torch.compile(compiled.forward, fullgraph=True)
    for seed in range(2):
        batch = make_batch(recipe, seed)
        outputs = [model(batch), step(batch)]
        for out in outputs:
            (out.loss_sum / out.count).backward()
        expected, found = ({"loss_sum": out.loss_sum, **out.logged, **out.watched} for out in outputs)
        assert expected.keys() == {"loss_sum", "target_std", "pred_std", "masked_fraction", "features", "frontend"}
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    expected_gradients, gradients = _gradients(model), _gradients(compiled)
    assert gradients.keys() == expected_gradients.keys()
    for name, expected in expected_gradients.items():
        torch.testing.assert_close(gradients[name], expected, rtol=1e-4, atol=1e-6, msg=lambda t, n=name: f"{n}: {t}")

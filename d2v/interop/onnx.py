"""Export of encoders and fine-tuned models to ONNX, with a comparison with PyTorch.

Source: torch.onnx, https://docs.pytorch.org/docs/stable/onnx_export.html

B samples, C channels, H x W pixels, S samples of a waveform, T tokens, P prefix tokens, D features
"""

from __future__ import annotations

import copy
import importlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.onnx import ONNXProgram

from d2v.errors import how_to_install
from d2v.interop.exports import write_config
from d2v.models.heads import reads_layers
from d2v.nn.attention import Attention
from d2v.nn.encoder import Encoder
from d2v.nn.frontends.base import Frontend
from d2v.nn.frontends.text import TextFrontend
from d2v.runs.exports import export_folder

log = logging.getLogger(__name__)

ENCODER, MODEL = "encoder.onnx", "model.onnx"
OPSET = 18  # written by the exporter without conversion; the first with all operators in use is 17
TOLERANCE = 1e-4  # of the largest magnitude, or of 1 where that is smaller

# (samples, share of the frontend's example): shapes of the export, and others to check, shorter and longer.
_EXPORTED_AT = (2, 0.75)
_CHECKED_AT = ((1, 0.5), (3, 1.0))


def save_onnx(
    encoder: Encoder, folder: Path, card: str, config: Mapping[str, Any], head: nn.Module | None = None
) -> Path:
    """Write an encoder, or a fine-tuned model, as an ONNX file, with the configuration and model card beside it.

    The file's inputs are ``inputs``, (B, C, H, W) float32 images, (B, S) float32 waveforms or (B, T) int64 token ids,
    and, of sequences, ``padding_mask``, (B, T) bool, True = padding (all False where nothing is padded). Its outputs
    are ``features``, (B, P + T, D) float32 last features, prefix tokens first, and with a head ``logits``. Batches may
    have any size, sequences any length that the encoder takes. Weights of more than 1.5 GiB go to a second file; its
    name ends in .data; the two stay together.

    Where onnxruntime is installed, the file is run at two batch sizes and lengths, with padding, and compared with
    PyTorch. Only a file that agrees replaces what the folder held.

    Args:
        encoder: encoder of one modality, on any device, in any precision; not changed.
        folder: created if missing.
        card: model card in Markdown.
        config: plain containers, as for :func:`d2v.interop.exports.save_encoder`.
        head: head that reads the encoder's output and the padding mask, as in :mod:`d2v.models.heads`; or None.

    Returns:
        ``folder/encoder.onnx``, or ``folder/model.onnx`` with a head.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        ValueError: ``folder`` is a file or holds something else, the encoder has several modalities, or the file does
            not agree with PyTorch.
    """
    missing = [package for package in ("onnx", "onnxscript") if find_spec(package) is None]
    if missing:
        raise ImportError(f"writing ONNX needs {' and '.join(missing)}: {how_to_install('onnx')}")
    if len(encoder.frontends) != 1:
        raise ValueError(
            f"an ONNX file has one kind of input, this encoder has frontends for {', '.join(encoder.frontends)}: "
            "export an encoder of one modality"
        )
    model = copy.deepcopy(_Exported(encoder, head)).cpu().float().eval().requires_grad_(False)
    path = folder / (ENCODER if head is None else MODEL)
    with export_folder(folder, "onnx") as part:
        written = part / path.name
        _export(model).save(written)  # large weights beside it, as ``<name>.data``
        if find_spec("onnxruntime") is None:
            log.warning("%s was not checked against PyTorch: onnxruntime is missing; %s", path, how_to_install("onnx"))
        else:
            _check(written, model)
        write_config(config, part, card)
    return path


class _Exported(nn.Module):
    """Module with tensors as inputs and outputs: an encoder of one modality and, optionally, a head."""

    def __init__(self, encoder: Encoder, head: nn.Module | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        (self.modality,) = encoder.frontends
        self.output_names = ["features"] if head is None else ["features", "logits"]

    @property
    def frontend(self) -> Frontend:
        return self.encoder.frontend(self.modality)

    def forward(self, inputs: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        features_BTD = self.frontend.embed(inputs)
        out = self.encoder.encode(
            self.modality, features_BTD, None, padding_mask, return_layers=reads_layers(self.head)
        )
        return (out.x,) if self.head is None else (out.x, self.head(out, padding_mask))


def _random_inputs(frontend: Frontend, num_samples: int, share: float) -> tuple[Tensor, ...]:
    """Return noise or random ids in the shape of the frontend's example.

    Args:
        frontend: frontend of the encoder.
        num_samples: B.
        share: length of sequences divided by that of the example.

    Returns:
        The inputs, and for sequences a padding mask that covers the last third of the last sample.
    """
    example = frontend.example(num_samples)
    is_sequence = len(frontend.token_grid(example)) == 1
    if is_sequence:
        example = example[:, : max(1, int(example.shape[1] * share))]
    generator = torch.Generator().manual_seed(0)
    if example.is_floating_point():
        inputs = torch.randn(example.shape, generator=generator)
    elif isinstance(frontend, TextFrontend):
        inputs = torch.randint(frontend.token_embed.num_embeddings, example.shape, generator=generator)
    else:
        inputs = example  # only the frontend knows the valid ids
    if not is_sequence:
        return (inputs,)
    (num_tokens,) = frontend.token_grid(inputs)
    padding_mask = torch.zeros(num_samples, num_tokens, dtype=torch.bool)
    padding_mask[-1, num_tokens - num_tokens // 3 :] = True
    if isinstance(frontend, TextFrontend):
        inputs = inputs.masked_fill(padding_mask, frontend.pad_id)
    return inputs, padding_mask


def _dynamic_shapes(example: tuple[Tensor, ...]) -> tuple[dict[int, Any], ...]:
    """Names of the axes that may vary; an axis that always equals a named one has no name of its own to warn about."""
    if len(example) == 1:
        return ({0: "batch"},)
    inputs, padding_mask = example
    if inputs.shape[1] == padding_mask.shape[1]:
        return {0: "batch", 1: "tokens"}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    return {0: "batch", 1: "samples"}, {0: Dim.DYNAMIC, 1: "tokens"}


def _export(model: _Exported) -> ONNXProgram:
    """Return the model as an ONNX program, without the exporter's information about this machine."""
    example = _random_inputs(model.frontend, *_EXPORTED_AT)
    with _plain_attention(model), _quiet("onnx_ir", "onnxscript"):
        program = torch.onnx.export(
            model,
            example,
            input_names=["inputs", "padding_mask"][: len(example)],
            output_names=model.output_names,
            dynamic_shapes=_dynamic_shapes(example),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "with dynamo=True there is one"
    for node in program.model.graph:
        node.metadata_props.clear()  # stack traces, with the paths of source files
    return program


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Silence messages below warnings: the exporter's optimizer logs every constant that it folds."""
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _plain_attention(model: nn.Module) -> Iterator[None]:
    """Use unfused attention within the block, because the exporter cannot convert fused attention with a bias."""
    fused = [module for module in model.modules() if isinstance(module, Attention) and module.fused]
    for module in fused:
        module.fused = False
    try:
        yield
    finally:
        for module in fused:
            module.fused = True


def _check(path: Path, model: _Exported) -> None:
    """Compare the outputs of the file with PyTorch's.

    Raises:
        ValueError: outputs differ, or onnxruntime cannot run the file.
    """
    runtime: Any = importlib.import_module("onnxruntime")  # has no types
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    try:
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's error types have no common base class
        raise ValueError(f"{path.name}: onnxruntime cannot load it ({error})") from error
    names = [node.name for node in session.get_inputs()]
    for num_samples, share in _CHECKED_AT:
        inputs = _random_inputs(model.frontend, num_samples, share)
        shape = tuple(inputs[0].shape)
        with torch.inference_mode():
            expected = model(*inputs)
        feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        try:
            outputs = session.run(model.output_names, feed)
        except Exception as error:  # as above
            raise ValueError(f"{path.name}: onnxruntime cannot run it on inputs of shape {shape} ({error})") from error
        for name, want, array in zip(model.output_names, expected, outputs, strict=True):
            got = torch.from_numpy(array)
            if got.shape != want.shape:
                raise ValueError(
                    f"{path.name} does not agree with PyTorch: {name} of inputs of shape {shape} have shape "
                    f"{tuple(got.shape)}, not {tuple(want.shape)}"
                )
            difference = float((got - want).abs().max())
            allowed = TOLERANCE * max(1.0, float(want.abs().max()))
            if not difference < allowed:  # nor is NaN
                raise ValueError(
                    f"{path.name} does not agree with PyTorch: on inputs of shape {shape}, {name} differ by up to "
                    f"{difference:.3g}, {allowed:.3g} are allowed"
                )

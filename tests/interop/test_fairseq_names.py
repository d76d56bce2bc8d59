"""Names of the authors' parameters, one by one and as a whole."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import safe_open

from d2v.interop.fairseq import to_d2v_name, to_d2v_state

IMAGE = "modality_encoders.IMAGE."


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("blocks.11.attn.qkv.weight", "student.blocks.11.attn.qkv.weight"),
        (f"{IMAGE}context_encoder.norm.bias", "student.input_norms.image.bias"),
        (f"{IMAGE}context_encoder.blocks.1.mlp.fc2.bias", "student.prenets.image.1.mlp.fc2.bias"),
        (f"{IMAGE}local_encoder.proj.weight", "student.frontends.image.proj.weight"),
        (f"{IMAGE}fixed_positional_encoder.positions", "student.frontends.image.positions"),
        (f"{IMAGE}extra_tokens", "student.frontends.image.prefix_tokens"),
        (f"{IMAGE}decoder.blocks.5.0.weight", "decoders.image.convs.5.weight"),
        (f"{IMAGE}decoder.proj.bias", "decoders.image.proj.bias"),
    ],
)
def test_names(theirs: str, ours: str) -> None:
    assert to_d2v_name(theirs) == ours
    assert to_d2v_name(theirs, "teacher") == ours.replace("student.", "teacher.")


@pytest.mark.parametrize("name", ["", "head.weight", "xblocks.0.norm1.weight", f"{IMAGE}mystery.weight"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(KeyError, match="not a parameter of the reference"):
        to_d2v_name(name)


def test_a_modality_that_the_project_lacks_is_refused() -> None:
    with pytest.raises(KeyError):
        to_d2v_name("modality_encoders.VIDEO.context_encoder.norm.weight")


AUDIO, TEXT = "modality_encoders.AUDIO.", "modality_encoders.TEXT."


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (f"{AUDIO}local_encoder.conv_layers.6.0.weight", "student.frontends.speech.convs.6.weight"),
        (f"{AUDIO}local_encoder.conv_layers.6.2.1.bias", "student.frontends.speech.conv_norms.6.bias"),
        (f"{AUDIO}project_features.1.weight", "student.frontends.speech.norm.weight"),
        (f"{AUDIO}project_features.2.bias", "student.frontends.speech.proj.bias"),
        (f"{AUDIO}relative_positional_encoder.5.0.weight", "student.frontends.speech.positions.convs.4.weight"),
        (f"{AUDIO}alibi_scale", "student.frontends.speech.alibi_scale"),
        (f"{AUDIO}decoder.proj.weight", "decoders.speech.proj.weight"),
        (f"{TEXT}local_encoder.embed_tokens.weight", "student.frontends.text.token_embed.weight"),
        (f"{TEXT}local_encoder.embed_positions.weight", "student.frontends.text.pos_embed.weight"),
        (f"{TEXT}local_encoder.layernorm_embedding.bias", "student.frontends.text.norm.bias"),
        (f"{TEXT}decoder.proj.2.weight", "decoders.text.proj.2.weight"),
        ("3.attn.qkv.bias", "student.blocks.3.attn.qkv.bias"),
    ],
)
def test_names_of_speech_and_text(theirs: str, ours: str) -> None:
    assert to_d2v_name(theirs) == ours


@pytest.mark.parametrize("name", ["image_base", "image_variant"])
def test_every_name_of_a_golden_case_maps_to_one_of_ours(golden_dir: Path, name: str) -> None:
    with safe_open(golden_dir / f"{name}.safetensors", "pt") as file:
        theirs = {k.removeprefix("student/"): file.get_tensor(k) for k in file.keys() if k.startswith("student/")}  # noqa: SIM118
    ours = to_d2v_state(theirs)
    assert len(ours) == len(theirs)
    assert ours["student.frontends.image.prefix_tokens"].shape == (1, 48)
    assert ours["student.frontends.image.positions"].shape == (64, 48)


def test_the_table_agrees_with_the_oracles(oracle: ModuleType) -> None:
    parameters = oracle.random_parameters(oracle.Options(prenet_depth=2, num_extra_tokens=2), torch.Generator())
    teacher = {k: v for k, v in parameters.items() if oracle.in_teacher(k)}
    ours = to_d2v_state(parameters) | to_d2v_state(teacher, "teacher")
    expected = oracle.to_d2v_state(parameters, teacher)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[k].float(), expected[k]) for k in ours)

"""Names of the authors' data2vec 2.0 parameters (fairseq, examples/data2vec) and of ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

MODALITIES = {"IMAGE": "image", "AUDIO": "speech", "TEXT": "text"}

# The reference's names below "modality_encoders.X.", and ours; {f} is a frontend's prefix.
_RULES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"context_encoder\.norm\.", "{enc}input_norms.{modality}."),
    (r"context_encoder\.blocks\.", "{enc}prenets.{modality}."),
    (r"extra_tokens$", "{f}prefix_tokens"),
    (r"alibi_scale$", "{f}alibi_scale"),
    (r"decoder\.blocks\.(\d+)\.0\.", r"decoders.{modality}.convs.\1."),
    (r"decoder\.proj\.", "decoders.{modality}.proj."),
    # image
    (r"local_encoder\.proj\.", "{f}proj."),
    (r"fixed_positional_encoder\.positions$", "{f}positions"),
    # speech
    (r"local_encoder\.conv_layers\.(\d+)\.0\.", r"{f}convs.\1."),
    (r"local_encoder\.conv_layers\.(\d+)\.2\.1\.", r"{f}conv_norms.\1."),
    (r"project_features\.1\.", "{f}norm."),
    (r"project_features\.2\.", "{f}proj."),
    (r"relative_positional_encoder\.(\d+)\.0\.", lambda match: f"{{f}}positions.convs.{int(match[1]) - 1}."),
    # text
    (r"local_encoder\.embed_tokens\.", "{f}token_embed."),
    (r"local_encoder\.embed_positions\.", "{f}pos_embed."),
    (r"local_encoder\.layernorm_embedding\.", "{f}norm."),
]


def to_d2v_name(name: str, encoder: str = "student") -> str:
    """Our name for a parameter of the reference.

    Args:
        name: as the reference has it, for example "modality_encoders.IMAGE.extra_tokens".
        encoder: "student" or "teacher", the submodule of :class:`d2v.models.data2vec2.Data2Vec2` it belongs to.

    Raises:
        KeyError: no such parameter is known.
    """
    own = re.match(rf"modality_encoders\.({'|'.join(MODALITIES)})\.", name)
    if own:
        modality = MODALITIES[own[1]]
        for pattern, replacement in _RULES:
            ours, count = re.subn("^" + pattern, replacement, name[own.end() :])
            if count:
                return ours.format(enc=f"{encoder}.", f=f"{encoder}.frontends.{modality}.", modality=modality)
    elif re.match(r"blocks\.\d+\.", name):
        return f"{encoder}.{name}"
    elif re.match(r"\d+\.", name):  # a teacher of the blocks alone
        return f"{encoder}.blocks.{name}"
    raise KeyError(f"{name}: not a parameter of the reference's data2vec 2.0 that this project knows")


def to_d2v_state(state: Mapping[str, Tensor], encoder: str = "student") -> dict[str, Tensor]:
    """A state dict of the reference under our names, in our shapes (see :func:`to_d2v_shape`)."""
    named = {to_d2v_name(name, encoder): value for name, value in state.items()}
    return {name: to_d2v_shape(name, value) for name, value in named.items()}


def to_d2v_shape(name: str, value: Tensor) -> Tensor:
    """Prefix tokens and positions lose a leading 1, ALiBi scales all of theirs.

    Args:
        name: ours.
        value: the reference's parameter, or its gradient.
    """
    if name.endswith("alibi_scale"):
        return value.flatten()
    return value.squeeze(0) if name.endswith((".prefix_tokens", ".positions")) else value

"""Names of the authors' data2vec 2.0 parameters (fairseq, examples/data2vec) and of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_MODALITIES = {"IMAGE": "image"}

_RULES = [
    (r"modality_encoders\.({modality})\.context_encoder\.norm\.", r"{enc}input_norms.\1."),
    (r"modality_encoders\.({modality})\.context_encoder\.blocks\.", r"{enc}prenets.\1."),
    (r"modality_encoders\.({modality})\.local_encoder\.proj\.", r"{enc}frontends.\1.proj."),
    (r"modality_encoders\.({modality})\.fixed_positional_encoder\.positions$", r"{enc}frontends.\1.positions"),
    (r"modality_encoders\.({modality})\.extra_tokens$", r"{enc}frontends.\1.prefix_tokens"),
    (r"modality_encoders\.({modality})\.decoder\.blocks\.(\d+)\.0\.", r"decoders.\1.convs.\2."),
    (r"modality_encoders\.({modality})\.decoder\.proj\.", r"decoders.\1.proj."),
    (r"blocks\.", r"{enc}blocks."),
]


def to_d2v_name(name: str, encoder: str = "student") -> str:
    """Our name for a parameter of the reference.

    Args:
        name: as the reference has it, for example "modality_encoders.IMAGE.extra_tokens".
        encoder: "student" or "teacher", the submodule of :class:`d2v.models.data2vec2.Data2Vec2` it belongs to.

    Raises:
        KeyError: no such parameter is known.
    """
    for pattern, replacement in _RULES:
        known = pattern.replace("{modality}", "|".join(_MODALITIES))
        ours, count = re.subn("^" + known, replacement.replace("{enc}", f"{encoder}."), name)
        if count:
            for theirs, modality in _MODALITIES.items():
                ours = ours.replace(f".{theirs}.", f".{modality}.")
            return ours
    raise KeyError(f"{name}: not a parameter of the reference's data2vec 2.0 that this project knows")


def to_d2v_state(state: Mapping[str, Tensor], encoder: str = "student") -> dict[str, Tensor]:
    """A state dict of the reference under our names; shapes follow ours (prefix tokens and positions lose a 1)."""
    renamed = {}
    for name, value in state.items():
        ours = to_d2v_name(name, encoder)
        renamed[ours] = value.squeeze(0) if ours.endswith(("prefix_tokens", "positions")) else value
    return renamed

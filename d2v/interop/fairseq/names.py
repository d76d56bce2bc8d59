"""Tables of parameter names in the authors' code (fairseq, examples/data2vec), 2.0 and 1.0, and in d2v."""

from __future__ import annotations

from collections.abc import Mapping

from d2v.interop.renaming import Renaming, Rule

MODALITIES = {"IMAGE": "image", "AUDIO": "speech", "TEXT": "text"}


def _attention(theirs: str, ours: str) -> list[Rule]:
    """Return the rules of attention with separate queries, keys and values, as in fairseq."""
    parts = [Rule(f"{theirs}.self_attn.{x}_proj.{{p}}", f"{ours}.attn.qkv.{{p}}[{i}]") for i, x in enumerate("qkv")]
    return [
        *parts,
        Rule(f"{theirs}.self_attn.out_proj.{{p}}", f"{ours}.attn.proj.{{p}}"),
        Rule(f"{theirs}.self_attn_layer_norm.{{p}}", f"{ours}.norm1.{{p}}"),
        Rule(f"{theirs}.fc1.{{p}}", f"{ours}.mlp.fc1.{{p}}"),
        Rule(f"{theirs}.fc2.{{p}}", f"{ours}.mlp.fc2.{{p}}"),
        Rule(f"{theirs}.final_layer_norm.{{p}}", f"{ours}.norm2.{{p}}"),
    ]


def _blocks(theirs: str, ours: str) -> list[Rule]:
    """Return the rules of a block of 2.0; only the name of the stack differs."""
    names = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    return [Rule(f"{theirs}.{{n}}.{name}.{{p}}", f"{ours}.{{n}}.{name}.{{p}}") for name in names]


def rules_of_2(modalities: Mapping[str, str] = MODALITIES) -> list[Rule]:
    """Return the rules of 2.0.

    Args:
        modalities: our names of the modalities, by theirs.
    """
    rules = _blocks("blocks", "student.trunk.blocks")
    for theirs, modality in modalities.items():
        t, f = f"modality_encoders.{theirs}", f"student.frontends.{modality}"
        rules += [
            Rule(f"{t}.context_encoder.norm.{{p}}", f"student.input_norms.{modality}.{{p}}"),
            *_blocks(f"{t}.context_encoder.blocks", f"student.prenets.{modality}.blocks"),
            Rule(f"{t}.extra_tokens", f"{f}.prefix_tokens", (0,)),
            Rule(f"{t}.decoder.blocks.{{n}}.0.{{p}}", f"decoders.{modality}.convs.{{n}}.{{p}}"),
            Rule(f"{t}.decoder.proj.{{p}}", f"decoders.{modality}.proj.{{p}}"),
            Rule(f"{t}.decoder.proj.{{n}}.{{p}}", f"decoders.{modality}.proj.{{n}}.{{p}}"),
            *_FRONTENDS_OF_2[theirs](t, f),
        ]
    return rules


def _patches_of_2(t: str, f: str) -> list[Rule]:
    return [
        Rule(f"{t}.local_encoder.proj.{{p}}", f"{f}.proj.{{p}}"),
        Rule(f"{t}.fixed_positional_encoder.positions", f"{f}.positions", (0,)),
    ]


def _speech_of_2(t: str, f: str) -> list[Rule]:
    return [
        *_convs(f"{t}.local_encoder.conv_layers", f),
        Rule(f"{t}.project_features.1.{{p}}", f"{f}.norm.{{p}}"),
        Rule(f"{t}.project_features.2.{{p}}", f"{f}.proj.{{p}}"),
        Rule(f"{t}.relative_positional_encoder.{{n+1}}.0.{{p}}", f"{f}.positions.convs.{{n}}.{{p}}"),
        Rule(f"{t}.alibi_scale", f"{f}.alibi_scale", (0, 1, 3, 4)),
    ]


def _text_of_2(t: str, f: str) -> list[Rule]:
    return [
        Rule(f"{t}.local_encoder.embed_tokens.weight", f"{f}.token_embed.weight"),
        Rule(f"{t}.local_encoder.embed_positions.weight", f"{f}.pos_embed.weight"),
        Rule(f"{t}.local_encoder.layernorm_embedding.{{p}}", f"{f}.norm.{{p}}"),
    ]


_FRONTENDS_OF_2 = {"IMAGE": _patches_of_2, "AUDIO": _speech_of_2, "TEXT": _text_of_2}


def _convs(theirs: str, frontend: str) -> list[Rule]:
    """Return the rules of the convolutions on the waveform, each with its LayerNorm."""
    return [
        Rule(f"{theirs}.{{n}}.0.weight", f"{frontend}.convs.{{n}}.weight"),
        Rule(f"{theirs}.{{n}}.2.1.{{p}}", f"{frontend}.conv_norms.{{n}}.{{p}}"),
    ]


def _rules_of_1_text() -> list[Rule]:
    t, f = "encoder.sentence_encoder", "student.frontends.text"
    return [
        Rule(f"{t}.embed_tokens.weight", f"{f}.token_embed.weight"),
        Rule(f"{t}.embed_positions.weight", f"{f}.pos_embed.weight"),
        Rule(f"{t}.layernorm_embedding.{{p}}", f"{f}.norm.{{p}}"),
        *_attention(f"{t}.layers.{{n}}", "student.trunk.blocks.{n}"),
        Rule("encoder.regression_head.{n}.{p}", "heads.text.{n}.{p}"),
    ]


def _rules_of_1_speech() -> list[Rule]:
    f = "student.frontends.speech"
    return [
        *_convs("feature_extractor.conv_layers", f),
        Rule("layer_norm.{p}", f"{f}.norm.{{p}}"),
        Rule("post_extract_proj.{p}", f"{f}.proj.{{p}}"),
        Rule("mask_emb", f"{f}.mask_token"),
        Rule("encoder.pos_conv.{n}.0.{p}", f"{f}.positions.convs.{{n}}.{{p}}"),
        Rule("encoder.layer_norm.{p}", "student.input_norms.speech.{p}"),
        *_attention("encoder.layers.{n}", "student.trunk.blocks.{n}"),
        Rule("final_proj.{p}", "heads.speech.0.{p}"),
    ]


def _rules_of_1_image() -> list[Rule]:
    t, b, f = "encoder.blocks.{n}", "student.trunk.blocks.{n}", "student.frontends.image"
    return [
        Rule("patch_embed.conv.{p}", f"{f}.proj.{{p}}"),
        Rule("cls_emb", f"{f}.prefix_tokens", (0,)),
        Rule("mask_emb", f"{f}.mask_token", (0, 1)),
        Rule("encoder.rel_pos_bias.relative_position_bias_table", f"{f}.rel_pos.table"),
        Rule(f"{t}.attn.rel_pos_bias.relative_position_bias_table", f"{b}.rel_pos.table"),
        Rule(f"{t}.attn.qkv.weight", f"{b}.attn.qkv.weight"),
        Rule(f"{t}.attn.q_bias", f"{b}.attn.qkv.bias[0]"),
        Rule(f"{t}.attn.v_bias", f"{b}.attn.qkv.bias[2]"),
        Rule(f"{t}.attn.proj.{{p}}", f"{b}.attn.proj.{{p}}"),
        Rule(f"{t}.gamma_1", f"{b}.scale1.gamma"),
        Rule(f"{t}.gamma_2", f"{b}.scale2.gamma"),
        Rule(f"{t}.norm1.{{p}}", f"{b}.norm1.{{p}}"),
        Rule(f"{t}.norm2.{{p}}", f"{b}.norm2.{{p}}"),
        Rule(f"{t}.mlp.0.{{p}}", f"{b}.mlp.fc1.{{p}}"),
        Rule(f"{t}.mlp.2.{{p}}", f"{b}.mlp.fc2.{{p}}"),
        Rule("encoder.norm.{p}", "student.trunk.norm.{p}"),
    ]


# Of 1.0, by modality.
RENAMINGS_OF_1 = {
    "text": Renaming(_rules_of_1_text(), [r".*\.version"]),
    "speech": Renaming(_rules_of_1_speech()),
    # The image model has an unused projection.
    "image": Renaming(_rules_of_1_image(), [r"final_proj\.(weight|bias)", r".*relative_position_index"]),
}

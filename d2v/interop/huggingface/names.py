"""Table of parameter names in Hugging Face's data2vec 1.0 models (transformers, models/data2vec) and in d2v.

Ours are those of :class:`d2v.nn.encoder.Encoder`; those of a head begin with ``head.``.
"""

from __future__ import annotations

from typing import NamedTuple

from d2v.interop.renaming import Renaming, Rule

TOKEN_TYPES = "embeddings.token_type_embeddings.weight"  # ours has no types of tokens: the first is part of each token
HEAD = "head."


class Family(NamedTuple):
    """Models of a modality.

    Attributes:
        modality: modality in d2v.
        name: prefix of their class names.
        prefix: prefix of the encoder's parameters in a model with a head.
        head: suffix of the name of the class with the head that d2v supports.
        head_class: class of this head in d2v.
        outputs: name of the last layer of this head.
        renaming: table between their encoder's names, without the prefix, and ours.
    """

    modality: str
    name: str
    prefix: str
    head: str
    head_class: str
    outputs: str
    renaming: Renaming


def _qkv(theirs: str, ours: str, names: tuple[str, str, str]) -> list[Rule]:
    """Return the rules of queries, keys and values, which are three layers in transformers."""
    return [Rule(f"{theirs}.{name}.{{p}}", f"{ours}.attn.qkv.{{p}}[{i}]") for i, name in enumerate(names)]


def _text() -> list[Rule]:
    f, t, b = "frontends.text", "encoder.layer.{n}", "trunk.blocks.{n}"
    return [
        Rule("embeddings.word_embeddings.weight", f"{f}.token_embed.weight"),
        Rule("embeddings.position_embeddings.weight", f"{f}.pos_embed.weight"),
        Rule("embeddings.LayerNorm.{p}", f"{f}.norm.{{p}}"),
        *_qkv(f"{t}.attention.self", b, ("query", "key", "value")),
        Rule(f"{t}.attention.output.dense.{{p}}", f"{b}.attn.proj.{{p}}"),
        Rule(f"{t}.attention.output.LayerNorm.{{p}}", f"{b}.norm1.{{p}}"),
        Rule(f"{t}.intermediate.dense.{{p}}", f"{b}.mlp.fc1.{{p}}"),
        Rule(f"{t}.output.dense.{{p}}", f"{b}.mlp.fc2.{{p}}"),
        Rule(f"{t}.output.LayerNorm.{{p}}", f"{b}.norm2.{{p}}"),
        Rule("classifier.dense.{p}", "head.dense.{p}"),
        Rule("classifier.out_proj.{p}", "head.proj.{p}"),
    ]


def _speech() -> list[Rule]:
    f, t, b = "frontends.speech", "encoder.layers.{n}", "trunk.blocks.{n}"
    return [
        Rule("feature_extractor.conv_layers.{n}.conv.weight", f"{f}.convs.{{n}}.weight"),
        Rule("feature_extractor.conv_layers.{n}.layer_norm.{p}", f"{f}.conv_norms.{{n}}.{{p}}"),
        Rule("feature_projection.layer_norm.{p}", f"{f}.norm.{{p}}"),
        Rule("feature_projection.projection.{p}", f"{f}.proj.{{p}}"),
        Rule("masked_spec_embed", f"{f}.mask_token"),
        Rule("encoder.pos_conv_embed.layers.{n}.conv.{p}", f"{f}.positions.convs.{{n}}.{{p}}"),
        Rule("encoder.layer_norm.{p}", "input_norms.speech.{p}"),
        *_qkv(f"{t}.attention", b, ("q_proj", "k_proj", "v_proj")),
        Rule(f"{t}.attention.out_proj.{{p}}", f"{b}.attn.proj.{{p}}"),
        Rule(f"{t}.layer_norm.{{p}}", f"{b}.norm1.{{p}}"),
        Rule(f"{t}.feed_forward.intermediate_dense.{{p}}", f"{b}.mlp.fc1.{{p}}"),
        Rule(f"{t}.feed_forward.output_dense.{{p}}", f"{b}.mlp.fc2.{{p}}"),
        Rule(f"{t}.final_layer_norm.{{p}}", f"{b}.norm2.{{p}}"),
        Rule("lm_head.{p}", "head.proj.{p}"),
    ]


def _image() -> list[Rule]:
    """Return the rules of vision. Keys have no bias there; it would change no attention."""
    f, t, b = "frontends.image", "encoder.layer.{n}", "trunk.blocks.{n}"
    return [
        Rule("embeddings.cls_token", f"{f}.prefix_tokens", (0,)),
        Rule("embeddings.mask_token", f"{f}.mask_token", (0, 1)),
        Rule("embeddings.patch_embeddings.projection.{p}", f"{f}.proj.{{p}}"),
        Rule("encoder.relative_position_bias.relative_position_bias_table", f"{f}.rel_pos.table"),
        Rule(f"{t}.attention.attention.relative_position_bias.relative_position_bias_table", f"{b}.rel_pos.table"),
        Rule(f"{t}.attention.attention.query.{{p}}", f"{b}.attn.qkv.{{p}}[0]"),
        Rule(f"{t}.attention.attention.key.weight", f"{b}.attn.qkv.weight[1]"),
        Rule(f"{t}.attention.attention.value.{{p}}", f"{b}.attn.qkv.{{p}}[2]"),
        Rule(f"{t}.attention.output.dense.{{p}}", f"{b}.attn.proj.{{p}}"),
        Rule(f"{t}.lambda_1", f"{b}.scale1.gamma"),
        Rule(f"{t}.lambda_2", f"{b}.scale2.gamma"),
        Rule(f"{t}.layernorm_before.{{p}}", f"{b}.norm1.{{p}}"),
        Rule(f"{t}.layernorm_after.{{p}}", f"{b}.norm2.{{p}}"),
        Rule(f"{t}.intermediate.dense.{{p}}", f"{b}.mlp.fc1.{{p}}"),
        Rule(f"{t}.output.dense.{{p}}", f"{b}.mlp.fc2.{{p}}"),
        Rule("layernorm.{p}", "trunk.norm.{p}"),
        Rule("pooler.layernorm.{p}", "head.norm.{p}"),
        Rule("classifier.{p}", "head.proj.{p}"),
    ]


# By model_type in config.json. Ignored names are constants that old versions saved.
FAMILIES = {
    "data2vec-text": Family(
        modality="text",
        name="Data2VecText",
        prefix="data2vec_text.",
        head="ForSequenceClassification",
        head_class="FirstTokenHead",
        outputs="classifier.out_proj",
        renaming=Renaming(_text(), [r"embeddings\.(position_ids|token_type_ids)"]),
    ),
    "data2vec-audio": Family(
        modality="speech",
        name="Data2VecAudio",
        prefix="data2vec_audio.",
        head="ForCTC",
        head_class="FrameHead",
        outputs="lm_head",
        renaming=Renaming(_speech()),
    ),
    "data2vec-vision": Family(
        modality="image",
        name="Data2VecVision",
        prefix="data2vec_vision.",
        head="ForImageClassification",
        head_class="MeanPoolHead",
        outputs="classifier",
        renaming=Renaming(_image(), [r".*relative_position_index"]),
    ),
}

import pytest
import torch

from d2v.interop.build import build
from d2v.models.heads import FeatureMask, FinetunedModel, FirstTokenHead, FrameHead, MeanPoolHead
from d2v.nn.encoder import Encoder, transformer_encoder
from d2v.nn.frontends.speech import SpeechFrontend
from d2v.nn.frontends.text import TextFrontend
from d2v.types import Batch, EncoderOutput

DIM = 16


def output(num_prefix_tokens: int = 0) -> EncoderOutput:
    return EncoderOutput(torch.randn(3, num_prefix_tokens + 5, DIM), (), num_prefix_tokens)


def padding(*lengths: int) -> torch.Tensor:
    return torch.arange(5) >= torch.tensor(lengths).unsqueeze(1)


def test_the_mean_leaves_out_prefix_tokens_and_padding() -> None:
    head, out = MeanPoolHead(DIM, 4), output(num_prefix_tokens=1)
    assert head(out).shape == (3, 4)
    other = EncoderOutput(out.x.clone(), (), 1)
    other.x[:, 0] = 100.0
    torch.testing.assert_close(head(out), head(other))
    other.x[1, 3:] = -100.0
    mask = padding(5, 2, 5)
    torch.testing.assert_close(head(out, mask), head(other, mask))
    torch.testing.assert_close(head(out, mask)[0], head(out)[0])


def test_texts_are_read_at_their_first_token() -> None:
    head, out = FirstTokenHead(DIM, 2), output()
    other = EncoderOutput(out.x.clone(), (), 0)
    other.x[:, 1:] = 7.0
    torch.testing.assert_close(head(out), head(other))
    assert head(out).shape == (3, 2)
    assert not torch.allclose(head(out)[0], head(out)[1])


def test_frames_are_read_one_by_one() -> None:
    head, out = FrameHead(DIM, 6), output()
    assert head(out).shape == (3, 5, 6)
    torch.testing.assert_close(head(out)[:, 2], head(EncoderOutput(out.x[:, 2:3], (), 0))[:, 0])


def test_a_head_on_frames_reads_every_layer_side_by_side() -> None:
    frontend = SpeechFrontend(DIM, 2, ((8, 10, 5), (8, 4, 4)), pos_depth=1, pos_groups=4, num_prefix_tokens=1)
    encoder = transformer_encoder({"speech": frontend}, embed_dim=DIM, depth=3, num_heads=2)
    model = FinetunedModel(encoder, FrameHead(3 * DIM, 5, layers="concat"))
    batch = Batch("speech", torch.randn(2, 400), torch.arange(2))
    layers = encoder(batch, return_layers=True).hidden_states
    wanted = sum(
        layer[:, 1:] @ weight.T for layer, weight in zip(layers, model.head.proj.weight.split(DIM, 1), strict=True)
    )
    torch.testing.assert_close(model(batch), wanted + model.head.proj.bias)


def test_spans_of_time_and_channels_become_zero_in_training_only() -> None:
    x = torch.ones(64, 50, 32)
    mask = FeatureMask(time_prob=0.4, time_length=5)
    assert mask.eval()(x) is x
    masked = mask.train()(x)
    frames = (masked == 0).all(2)
    assert torch.equal(frames, (masked == 0).any(2))
    # every frame is left with probability (1 - p / length) ** length, away from the start
    assert abs(frames[:, 5:].float().mean() - (1 - (1 - 0.08) ** 5)) < 0.03
    runs = torch.cat([frames, torch.zeros(64, 1, dtype=torch.bool)], 1).flatten().int().diff()
    starts, ends = (runs == 1).nonzero().flatten(), (runs == -1).nonzero().flatten()
    lengths = ends[-len(starts) :] - starts[: len(ends)]
    assert (lengths >= 5).float().mean() > 0.85  # those cut off by the end are shorter
    channels = (FeatureMask(channel_prob=0.5, channel_length=4)(x) == 0).all(1)
    assert channels.any()
    assert not channels.all()
    with pytest.raises(ValueError, match="time_prob=2"):
        build({"_target_": "d2v.models.heads.FeatureMask", "time_prob": 2}, key="feature_mask")


def text_encoder() -> Encoder:
    frontend = TextFrontend(DIM, vocab_size=20, max_positions=12, drop_rate=0.0)
    return transformer_encoder({"text": frontend}, embed_dim=DIM, depth=2, num_heads=2)


def text_batch() -> Batch:
    ids = torch.randint(4, 20, (3, 6))
    return Batch("text", ids, torch.arange(3))


@pytest.mark.parametrize("train_frontend", [True, False])
@pytest.mark.parametrize("train_encoder", [True, False])
def test_what_is_frozen_gets_no_gradient(train_frontend: bool, train_encoder: bool) -> None:
    model = FinetunedModel(text_encoder(), FirstTokenHead(DIM, 2), train_frontend=train_frontend)
    model(text_batch(), train_encoder=train_encoder).sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {name for name in trained if name.startswith("head.")} == {
        f"head.{n}" for n, _ in model.head.named_parameters()
    }
    assert any(name.startswith("encoder.trunk.blocks.") for name in trained) == train_encoder
    assert any("token_embed" in name for name in trained) == (train_encoder and train_frontend)


def test_of_speech_the_convolutions_are_frozen_and_the_projection_is_trained() -> None:
    frontend = SpeechFrontend(DIM, 2, ((8, 10, 5), (8, 4, 4)), pos_depth=1, pos_groups=4)
    encoder = transformer_encoder({"speech": frontend}, embed_dim=DIM, depth=1, num_heads=2)
    model = FinetunedModel(encoder, FrameHead(DIM, 3), train_frontend=False)
    model(Batch("speech", torch.randn(2, 400), torch.arange(2))).sum().backward()
    frozen = {name for name, p in model.named_parameters() if p.grad is None}
    assert frozen == {f"encoder.frontends.speech.{n}" for n, _ in frontend.named_parameters() if n.startswith("conv")}


def test_the_model_is_encoder_and_head() -> None:
    encoder, head = text_encoder().eval(), FirstTokenHead(DIM, 2)
    model, batch = FinetunedModel(encoder, head, feature_mask=FeatureMask(time_prob=1.0)).eval(), text_batch()
    torch.testing.assert_close(model(batch), head(encoder(batch)))


def test_time_masks_hide_what_is_said() -> None:
    convs = ((8, 10, 5), (8, 4, 4))
    encoder = transformer_encoder(
        {"speech": SpeechFrontend(DIM, 2, convs, pos_depth=1, pos_groups=4)}, embed_dim=DIM, depth=1, num_heads=2
    )
    hidden = FinetunedModel(encoder, FrameHead(DIM, 3), feature_mask=FeatureMask(time_prob=1.0, time_length=1))
    batches = [Batch("speech", torch.randn(2, 400), torch.arange(2)) for _ in range(2)]
    torch.testing.assert_close(hidden(batches[0]), hidden(batches[1]))
    assert not torch.allclose(hidden.eval()(batches[0]), hidden(batches[1]))

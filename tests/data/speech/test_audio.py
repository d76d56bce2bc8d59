"""Audio files: decoding, rates, lengths, damage."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tones import clips_below, save, tone, truncated_flac

from d2v.data.bad_samples import BadSample
from d2v.data.speech.clips import audio_length, decode_audio, num_resampled, resample

soundfile = pytest.importorskip("soundfile")

pytest.importorskip("torchaudio")


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".au"])
def test_every_format_decodes_from_a_path_and_from_its_content(tmp_path, suffix):
    path = save(tmp_path / f"tone{suffix}", tone(16000))
    waveform = decode_audio(path, 16000)
    assert (waveform.shape, waveform.dtype) == ((16000,), np.float32)
    lossy = suffix in (".ogg", ".mp3", ".opus")
    np.testing.assert_allclose(waveform[2000:-2000], tone(16000)[2000:-2000], atol=0.05 if lossy else 1e-4)
    assert np.array_equal(waveform, decode_audio(path.read_bytes(), 16000))
    assert audio_length(path, 16000) == audio_length(path.read_bytes(), 16000) == 16000


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
def test_every_sample_type_decodes_to_one_range(tmp_path, subtype):
    waveform = decode_audio(save(tmp_path / "tone.wav", tone(1000), subtype=subtype), 16000)
    np.testing.assert_allclose(waveform, tone(1000), atol=0.02 if subtype in ("PCM_U8", "ULAW", "ALAW") else 1e-4)


def test_channels_are_averaged(tmp_path):
    channels = np.stack([np.full(500, 0.5), np.full(500, -0.25), np.full(500, 0.5)], axis=1)
    path = save(tmp_path / "three.wav", channels)
    waveform = decode_audio(path, 16000)
    assert waveform.shape == (500,)
    np.testing.assert_allclose(waveform, 0.25, atol=1e-4)
    assert audio_length(path, 16000) == 500


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates_are_resampled(tmp_path, rate):
    path = save(tmp_path / "tone.wav", np.stack([tone(rate + 7, rate)] * 2, axis=1), rate)
    waveform = decode_audio(path, 16000)
    assert waveform.dtype == np.float32
    assert len(waveform) == num_resampled(rate + 7, rate, 16000) == audio_length(path, 16000)
    np.testing.assert_allclose(waveform[500:15500], tone(16000)[500:15500], atol=0.01)  # same pitch, same time


@settings(max_examples=60, deadline=None)
@given(
    num_samples=st.integers(1, 3000),
    rate=st.sampled_from([8000, 11025, 16000, 22050, 32000, 44100, 48000]),
    sample_rate=st.sampled_from([8000, 16000]),
)
def test_the_length_after_resampling_is_known_before(num_samples, rate, sample_rate):
    resampled = resample(np.zeros(num_samples, np.float32), rate, sample_rate)
    assert len(resampled) == num_resampled(num_samples, rate, sample_rate)


@pytest.mark.parametrize("rate", [11127, 22254, 12345, 15999, 44056, 44101])
def test_rates_that_share_little_are_resampled_by_a_ratio_near_theirs(tmp_path, rate):
    """Exactly, 11,127 to 16,000 Hz would take 16,000 filters of tens of thousands of taps."""
    path = save(tmp_path / "tone.wav", tone(2 * rate, rate), rate)
    waveform = decode_audio(path, 16000)
    assert len(waveform) == audio_length(path, 16000) == num_resampled(2 * rate, rate, 16000)
    assert abs(len(waveform) - 32000) <= 1 + 32000 / 10000
    peak = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform)), 2**18)).argmax() * 16000 / 2**18
    assert abs(peak - 440) < 0.1
    assert np.abs(waveform[500:-500]).max() == pytest.approx(0.3, abs=0.01)


def mp3(waveform: np.ndarray, rate: int, mode: str) -> bytes:
    """An encoder's output less its first frame, which says how many follow."""
    if "MP3" not in soundfile.available_formats():
        pytest.skip("this libsndfile does not write mp3")
    buffer = io.BytesIO()
    with soundfile.SoundFile(
        buffer, "w", rate, waveform.ndim, format="MP3", bitrate_mode=mode, compression_level=0.5
    ) as file:
        file.write(waveform)
    content = buffer.getvalue()
    assert content.count(content[:2]) > 10
    return content[content.index(content[:2], 4) :]


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("loud_first", [False, True])
def test_an_mp3_without_a_count_has_its_true_length(tmp_path, mode, rate, channels, loud_first):
    """libsndfile guesses by the first frame: three times as long, or a fifth of it."""
    loud = np.random.default_rng(0).uniform(-0.5, 0.5, 4 * rate)
    waveform = np.concatenate([loud, np.zeros(8 * rate)] if loud_first else [np.zeros(8 * rate), loud])
    content = mp3(waveform if channels == 1 else np.stack([waveform] * 2, axis=1), rate, mode)
    tag = b"ID3\x04\0\0" + bytes([0, 0, 1, 0]) + bytes(128)
    for name, written in (("plain", content), ("tagged", tag + content + b"TAG" + b"\xff" * 125)):
        path = tmp_path / f"{name}.mp3"
        path.write_bytes(written)
        decoded = decode_audio(path, rate)
        assert len(decoded) == audio_length(path, rate) == audio_length(written, rate)
        assert abs(len(decoded) - len(waveform)) < 3 * 1152
        beginning, middle, end = (decoded[s * rate : (s + 2) * rate].std() for s in (1, 5, 9))
        assert middle < 0.01
        assert (beginning if loud_first else end) > 0.1
    whole = audio_length(content, rate)
    for cut in (1, 100, 1000, 5000):  # a frame that is cut is not there
        rest = content[:-cut]
        assert len(decode_audio(rest, rate)) == audio_length(rest, rate) < whole


def test_an_mp3_with_a_count_is_read_no_further_than_its_head(tmp_path):
    path = save(tmp_path / "tone.mp3", tone(160000))
    path.write_bytes(path.read_bytes()[:1000])
    assert audio_length(path, 16000) == 160000


def bad_file(folder: Path, kind: str) -> Path:
    path = folder / kind
    name = path.stem
    if name == "zero":
        path.write_bytes(b"")
    elif name == "text":
        path.write_text("<html>404</html>")
    elif name == "truncated":
        path.write_bytes(truncated_flac(16000))
    elif name == "silent":
        save(path, np.zeros(0, np.float32))
    elif name in ("nan", "inf"):
        waveform = tone(1000)
        waveform[500] = float(name)
        save(path, waveform, subtype="FLOAT")
    elif name == "directory":
        path.mkdir()
    elif name == "headerless":
        path.write_bytes(bytes(1000))
    return path


REASONS = {
    "zero.wav": "^empty file$",
    "text.wav": "^not readable audio .*[Ff]ormat",
    "truncated.flac": "^not readable audio",
    "silent.wav": "^no samples$",
    "nan.wav": "^samples that are not finite$",
    "inf.wav": "^samples that are not finite$",
    "headerless.raw": "^not readable audio",
    "directory.wav": "^not readable audio",
    "gone.wav": "^No such file or directory$",
    "a\0b.wav": "^embedded null byte$",
}


@pytest.mark.parametrize(("kind", "reason"), REASONS.items())
def test_bad_files_raise_bad_sample_with_a_reason(tmp_path, kind, reason):
    path = bad_file(tmp_path, kind)
    with pytest.raises(BadSample, match=reason):
        decode_audio(path, 16000)
    if path.is_file() and path.suffix != ".raw":
        with pytest.raises(BadSample, match=reason):
            decode_audio(path.read_bytes(), 16000)
    if path.stem in ("truncated", "nan", "inf"):  # their headers are fine
        assert audio_length(path, 16000) in (1000, 16000)
    else:
        with pytest.raises(BadSample, match=reason):
            audio_length(path, 16000)


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU"])
def test_files_that_break_off_are_bad_and_pipes_without_a_size_are_not(kind):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(8000), 16000, format=kind)
    whole = buffer.getvalue()
    reason = r"truncated: [\d,]+ of 16,0\d\d bytes of sound are there"
    for read in (decode_audio, audio_length):
        with pytest.raises(BadSample, match=reason):
            read(whole[:9000], 16000)
    if kind == "AIFF":  # has no way to say so
        return
    size = 8 if kind == "AU" else whole.index(b"data") + 4
    for unknown in (b"\xff\xff\xff\xff", b"\x7f\xff\xf0\x00"):
        stated = unknown[::-1] if kind == "WAV" else unknown
        assert audio_length(whole[:size] + stated + whole[size + 4 :], 16000) == 8000


def test_a_rate_at_which_a_small_file_lasts_for_hours_is_refused():
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(8000), 1, format="WAV")
    with pytest.raises(BadSample, match="a sampling rate of 1 Hz, below 100"):
        audio_length(buffer.getvalue(), 16000)


def test_bytes_flipped_behind_the_header_decode_or_raise_bad_sample():
    rng = np.random.default_rng(0)
    reasons: list[str | None] = []
    for name in ("WAV", "FLAC", "OGG", "AIFF", "AU"):
        buffer = io.BytesIO()
        soundfile.write(buffer, rng.uniform(-0.5, 0.5, 4000), 16000, format=name)
        content = np.frombuffer(buffer.getvalue(), np.uint8)
        for _ in range(30):
            broken = content.copy()
            broken[rng.integers(64, len(broken), size=6)] = rng.integers(256, size=6)
            reasons.append(reason_why_bad(broken.tobytes()))
    assert 30 < sum(reason is not None for reason in reasons) < 120
    # An object's address would make the reason differ from one try to the next.
    assert not any("0x" in reason for reason in reasons if reason is not None)


def reason_why_bad(content: bytes) -> str | None:
    try:
        decode_audio(content, 16000)
    except BadSample as error:
        return str(error)
    return None


@pytest.mark.parametrize("missing", ["soundfile", "torchaudio.functional"])
def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch, missing):
    path = save(tmp_path / "a.wav", tone(100))
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=r"pip install jiwer soundfile torchaudio"):
        clips_below(tmp_path, [path.name])

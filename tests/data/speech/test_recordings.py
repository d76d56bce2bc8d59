"""Long recordings and lengths that headers do not know: in blocks, by the stretch, in bounded memory."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from d2v.data.bad_samples import BadSample
from d2v.data.keys import ClipKey
from d2v.data.speech import audio as audio_decoding
from d2v.data.speech import clips as audio_sources
from d2v.data.speech.audio import Recording, audio_length, decode_audio
from d2v.data.speech.batches import PretrainClips, normalize
from d2v.data.speech.clips import AudioClips, Clip
from d2v.data.speech.factories import audio_folder

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("torchaudio")

RATE = 16000


def noise(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    shape = (round(seconds * rate), channels)
    return np.random.default_rng(0).uniform(-0.5, 0.5, shape).astype("float32")


def unknown_flac(path: Path, waveform: np.ndarray, rate: int = RATE) -> Path:
    """As of an encoder that writes to a pipe: the header's number of samples is 0, for unknown."""
    soundfile.write(path, waveform, rate)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert soundfile.info(path).frames > 2**60
    return path


def streamed_wav(path: Path, waveform: np.ndarray, size: int = 0xFFFFFFFF) -> Path:
    soundfile.write(path, waveform, RATE)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = struct.pack("<I", size)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_flac_of_unknown_length_is_read(tmp_path, rate, channels):
    waveform = noise(1.5, rate, channels)
    soundfile.write(tmp_path / "known.flac", waveform, rate)
    path = unknown_flac(tmp_path / "a.flac", waveform, rate)
    expected = decode_audio(tmp_path / "known.flac", RATE)
    for file in (path, path.read_bytes()):
        assert audio_length(file, RATE) == len(expected) == 1.5 * RATE
        assert np.array_equal(decode_audio(file, RATE), expected)
    assert Recording(path, RATE).num_samples is None


def test_flac_of_unknown_length_that_breaks_off(tmp_path):
    path = unknown_flac(tmp_path / "a.flac", noise(3, RATE))
    path.write_bytes(path.read_bytes()[:-40000])
    for read in (audio_length, decode_audio):
        with pytest.raises(BadSample, match=r"not readable audio \(.*flac decoder lost sync"):
            read(path, RATE)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF])
def test_wav_from_a_pipe_is_read(tmp_path, size):
    path = streamed_wav(tmp_path / "a.wav", noise(1, RATE), size)
    assert audio_length(path, RATE) == len(decode_audio(path, RATE)) == RATE


def test_a_folder_of_flac_of_unknown_length_is_trained_on(tmp_path):
    for i in range(3):
        unknown_flac(tmp_path / f"{i}.flac", noise(1 + i, RATE))
    data = audio_folder(str(tmp_path), conv_layers=[[8, 400, 320]], min_seconds=0.5)
    assert data.train.lengths.tolist() == [RATE, 2 * RATE, 3 * RATE]


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_blocks_are_resampled_as_the_whole(tmp_path, monkeypatch, rate, channels):
    soundfile.write(tmp_path / "a.wav", noise(1.37, rate, channels), rate)
    whole = decode_audio(tmp_path / "a.wav", RATE)
    for size in (1000, 4097, 30_000):
        monkeypatch.setattr(audio_decoding, "BLOCK", size)
        found = decode_audio(tmp_path / "a.wav", RATE)
        assert found.shape == whole.shape
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, whole, atol=2e-6)


@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff", "au"])
@pytest.mark.parametrize("rate", [8000, 11127, 16000, 22050, 44100])
def test_a_stretch_is_that_of_the_whole(tmp_path, suffix, rate):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(2, rate, 2), rate)
    whole = decode_audio(path, RATE)
    for file in (path, path.read_bytes()):
        recording = Recording(file, RATE)
        assert recording.num_samples == len(whole)
        for start, stop in (
            (0, 1),
            (0, 500),
            (1, 700),
            (12_345, 23_456),
            (len(whole) - 300, len(whole)),
            (0, len(whole)),
        ):
            found = recording.read(start, stop)
            assert found.shape == (stop - start,)
            np.testing.assert_allclose(found, whole[start:stop], atol=2e-6)


def test_a_stretch_reads_no_more_than_it_needs(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(30, 44100, 2), 44100)
    frames = []
    read = soundfile.SoundFile.read

    def counting(self, frames_wanted, *args, **kwargs):
        block = read(self, frames_wanted, *args, **kwargs)
        frames.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    Recording(path, RATE).read(20 * RATE, 21 * RATE)
    assert 44100 <= sum(frames) < 44100 + 3000


@pytest.mark.parametrize(("suffix", "subtype"), [("ogg", "VORBIS"), ("mp3", None), ("wav", "IMA_ADPCM")])
def test_formats_without_exact_places_are_read_whole(tmp_path, suffix, subtype):
    soundfile.write(tmp_path / f"a.{suffix}", noise(1, RATE), RATE, subtype=subtype)
    assert Recording(tmp_path / f"a.{suffix}", RATE).num_samples is None


def test_a_stretch_behind_the_end_of_a_torn_file_is_a_bad_sample(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(20, RATE), RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    recording = Recording(path, RATE)
    assert recording.num_samples == 20 * RATE
    with pytest.raises(BadSample, match=r"breaks off|not readable audio"):
        recording.read(18 * RATE, 19 * RATE)


def test_crops_of_long_recordings_begin_where_those_of_the_whole_do(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_sources, "WHOLE_SECONDS", 2)
    soundfile.write(tmp_path / "long.wav", noise(5, 44100, 2), 44100)
    soundfile.write(tmp_path / "short.wav", noise(1.5, 44100, 2), 44100)
    clips = AudioClips(lambda name: tmp_path / name, [Clip("long.wav"), Clip("short.wav")], RATE, 1)
    decoded = []
    decode = audio_sources.decode_audio
    monkeypatch.setattr(audio_sources, "decode_audio", lambda *given: decoded.append(1) or decode(*given))
    samples = PretrainClips(clips, seed=3)
    whole = decode(tmp_path / "long.wav", RATE)
    found = [samples[ClipKey(epoch, 0, RATE, None)].inputs for epoch in range(4)]
    assert not decoded
    monkeypatch.setattr(audio_sources, "WHOLE_SECONDS", 100)
    expected = [samples[ClipKey(epoch, 0, RATE, None)].inputs for epoch in range(4)]
    assert len(decoded) == 4
    starts = [int(np.abs(np.correlate(normalize(whole).numpy(), crop.numpy(), "valid")).argmax()) for crop in expected]
    assert len(set(starts)) == 4
    for crop, start in zip(found, starts, strict=True):
        torch.testing.assert_close(crop, normalize(whole[start : start + RATE]), atol=1e-4, rtol=0)
    monkeypatch.setattr(audio_sources, "WHOLE_SECONDS", 2)
    samples[ClipKey(0, 1, RATE, None)]
    assert len(decoded) == 5  # a short one is read whole, as ever


def test_long_files_are_decoded_in_bounded_memory(tmp_path, monkeypatch):
    """Beside the result, a few blocks."""
    monkeypatch.setattr(audio_decoding, "BLOCK", 2**16)
    with soundfile.SoundFile(tmp_path / "a.wav", "w", 44100, 2, "PCM_16") as file:
        for _ in range(30):
            file.write(noise(1, 44100, 2))
    largest = []
    resample = audio_decoding._resample
    monkeypatch.setattr(audio_decoding, "_resample", lambda x, ratio: largest.append(len(x)) or resample(x, ratio))
    assert len(decode_audio(tmp_path / "a.wav", RATE)) == 30 * RATE
    assert len(largest) > 30
    assert max(largest) < 2**16


# --- clips that training leaves out


def test_evaluation_leaves_out_no_clip(tmp_path):
    """Neither short ones, nor without a word those that cannot be read."""
    for name, seconds in (("0_a", 3), ("1_b", 0.4), ("0_c", 0.01), ("1_d", 2.5)):
        soundfile.write(tmp_path / f"{name}.wav", noise(seconds, RATE), RATE)
    (tmp_path / "1_e.wav").write_bytes(b"torn")
    options = {"conv_layers": [[8, 400, 320]], "min_seconds": 2.0, "max_bad_fraction": 1.0}
    for data in (
        audio_folder(str(tmp_path), **options),
        audio_folder(str(tmp_path), label_pattern="^([01])", **options),
    ):
        assert len(data.train) == 2
        dataset = data.eval_dataset("train")
        assert len(dataset) == 5
        samples = [dataset[i] for i in range(5)]
        assert [None if s.inputs is None else len(s.inputs) for s in samples] == [3 * RATE, None, 6400, 40000, None]
        assert [s.skipped for s in samples if s.skipped] == [
            ("0_c.wav: 160 samples do not hold one frame",),
            samples[4].skipped,
        ]
        assert samples[4].skipped[0].startswith("1_e.wav: not readable audio")
    assert [s.label for s in samples] == [0, None, 1, 1, None]
    assert data.class_names == ("0", "1")


def test_what_a_folder_holds_is_counted(tmp_path):
    for name in ("a.wav", "b.wav", "sub/c.flac"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, noise(1, RATE), RATE)
    soundfile.write(tmp_path / "short.wav", noise(0.1, RATE), RATE)
    for name in ("a.m4a", "b.m4a", "notes.txt", ".hidden.wav"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    data = audio_folder(str(tmp_path), conv_layers=[[8, 400, 320]], min_seconds=0.5, max_bad_fraction=1.0)
    assert data.train.contents.left_out == {".m4a": 2, ".txt": 1, "hidden": 1, "too short": 1, "unreadable": 1}
    assert data.describe()[0] == f"train     3 clips from {tmp_path}"
    assert "1 too short, 1 unreadable" in data.describe()[1]
    assert data.train.bad == ("gone.wav: No such file or directory",)


def test_a_folder_of_other_formats_says_what_it_holds(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.m4a").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"no audio file there \(\.wav.*\); it holds 3 \.m4a"):
        audio_folder(str(tmp_path), conv_layers=[[8, 400, 320]])


def test_git_lfs_pointers_are_named(tmp_path):
    (tmp_path / "a.wav").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(ValueError, match=r"1 cannot be read.*a\.wav: a Git LFS pointer.*git lfs pull"):
        audio_folder(str(tmp_path), conv_layers=[[8, 400, 320]])


def test_clips_all_too_short_to_train_on_are_evaluated(tmp_path):
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", noise(1, RATE), RATE)
    data = audio_folder(str(tmp_path), conv_layers=[[8, 400, 320]], min_seconds=2)
    assert [len(data.eval_dataset("train")[i].inputs) for i in range(3)] == [RATE] * 3
    for use in (lambda: data.size, lambda: data.pretrain_dataset(0), lambda: data.token_grid):
        with pytest.raises(ValueError, match=r"none of 3 clips can be used: .* 3 are shorter than 2 s \(min_seconds"):
            use()

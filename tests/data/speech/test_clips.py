"""Speech files: decoding, lists of clips and the samples that ship."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.data.bad_samples import BadSample
from d2v.data.speech.clips import (
    AudioClips,
    Clip,
    audio_files,
    audio_length,
    decode_audio,
    num_resampled,
    prompt_clips,
    read_prompt,
    resample,
)

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("torchaudio")


def tone(num_samples: int, rate: int = 16000, hz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(num_samples) / rate)).astype(np.float32)


def save(path: Path, waveform: np.ndarray, rate: int = 16000, subtype: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".opus":
        soundfile.write(path, waveform, rate, format="OGG", subtype="OPUS")
    else:
        soundfile.write(path, waveform, rate, subtype=subtype)
    return path


def truncated_flac(num_samples: int) -> bytes:
    """A file whose header is whole."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(0).uniform(-0.5, 0.5, num_samples), 16000, format="FLAC")
    return buffer.getvalue()[: num_samples // 2]


def clips_below(root: Path, names: list[str], min_samples: int = 1, **options) -> AudioClips:
    return AudioClips(lambda name: root / name, [Clip(name) for name in names], 16000, min_samples, **options)


# --- decoding


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


# --- mp3 that does not say how many frames it has


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


# --- files in folders


def test_files_are_found_in_order(tmp_path):
    for name in ("b/2.wav", "b/1.FLAC", "a/deeper/x.ogg", "0.mp3", ".hidden.wav", ".cache/y.wav", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    assert [clip.path for clip in audio_files(str(tmp_path))] == ["0.mp3", "a/deeper/x.ogg", "b/1.FLAC", "b/2.wav"]
    assert {clip[1:] for clip in audio_files(str(tmp_path))} == {(None, None, "")}


def test_symbolic_links_are_followed(tmp_path):
    save(tmp_path / "elsewhere" / "0.wav", tone(100))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "dangling.wav").symlink_to(tmp_path / "gone.wav")
    clips = clips_below(tmp_path / "root", [clip.path for clip in audio_files(str(tmp_path / "root"))])
    assert [clips.name(i) for i in range(len(clips))] == ["link/0.wav"]
    assert clips.bad == ("dangling.wav: No such file or directory",)


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "speech" / "0.wav", tone(100))
    assert [clip.path for clip in audio_files("~/speech")] == ["0.wav"]


def test_folder_errors_name_the_key(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"val_root=.*gone: no such folder; set val_root"):
        list(audio_files(str(tmp_path / "gone"), "val_root"))
    (tmp_path / "file.wav").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"root=.*file\.wav: not a folder; set root"):
        list(audio_files(str(tmp_path / "file.wav")))


# --- clips


def test_clips_that_cannot_be_read_or_are_too_short_are_left_out_and_named(tmp_path):
    names = ["1.wav", "empty.wav", "2.flac", "short.wav", "stereo 8 kHz.wav", "text.wav"]
    save(tmp_path / "1.wav", tone(1000))
    (tmp_path / "empty.wav").write_bytes(b"")
    save(tmp_path / "2.flac", tone(900))
    save(tmp_path / "short.wav", tone(899))
    save(tmp_path / "stereo 8 kHz.wav", np.stack([tone(500)] * 2, axis=1), 8000)
    (tmp_path / "text.wav").write_text("hello")
    clips = clips_below(tmp_path, names, 900)
    assert [clips.name(i) for i in range(len(clips))] == ["1.wav", "2.flac", "stereo 8 kHz.wav"]
    assert clips.lengths.tolist() == [1000, 900, 1000]
    assert clips.lengths.dtype == np.int64
    assert [len(clips.load(i)) for i in range(3)] == [1000, 900, 1000]
    assert clips.bad[0] == "empty.wav: empty file"
    assert [entry.partition(": ")[0] for entry in clips.bad] == ["empty.wav", "text.wav"]
    assert clips.too_short == ("short.wav",)
    assert (clips.has_labels, clips.has_transcripts, clips.class_names, clips.groups) == (False, False, None, None)
    assert (clips.label(0), clips.transcript(0)) == (None, None)


def test_nothing_left_says_why_and_names_the_key(tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    for name in ("a.wav", "b.wav"):
        save(tmp_path / name, tone(100))
    message = (
        r"val: none of 3 clips can be used: 1 cannot be read, 2 are shorter than 0\.5 s \(min_seconds\); "
        r"the first: empty\.wav: empty file"
    )
    with pytest.raises(ValueError, match=message):
        clips_below(tmp_path, ["a.wav", "b.wav", "empty.wav"], 8000, key="val").check_not_empty()
    with pytest.raises(ValueError, match=r"0 cannot be read, 1 are shorter than 0\.5 s \(min_seconds\)$"):
        clips_below(tmp_path, ["a.wav"], 8000).check_not_empty()
    with pytest.raises(ValueError, match=r"none of 1 clips can be used: 1 cannot be read"):
        clips_below(tmp_path, ["empty.wav"], 8000)
    with pytest.raises(FileNotFoundError, match=r"val: no audio file there \(\.wav, \.flac, .*\.sph\)"):
        clips_below(tmp_path, [], key="val")


def test_a_clip_may_be_damaged_behind_its_header(tmp_path):
    (tmp_path / "a.flac").write_bytes(truncated_flac(16000))
    clips = clips_below(tmp_path, ["a.flac"])
    assert clips.lengths.tolist() == [16000]
    with pytest.raises(BadSample, match="not readable audio"):
        clips.load(0)


def test_listed_lengths_are_trusted_without_a_look_into_the_file():
    def read(name: str) -> bytes:
        raise AssertionError(name)

    clips = AudioClips(read, [Clip("a", 50), Clip("b", 0), Clip("c", 49)], 16000, 50)
    assert (clips.lengths.tolist(), clips.bad, clips.too_short) == ([50], ("b: no samples",), ("c",))


def test_the_order_is_the_lists_whoever_is_ready_first(tmp_path):
    names = [f"{i}.wav" for i in range(40)]
    for i, name in enumerate(names):
        save(tmp_path / name, tone(100 + i))
    clips = clips_below(tmp_path, names)
    assert clips.lengths.tolist() == [100 + i for i in range(40)]
    assert [clips.name(i) for i in range(40)] == names


def test_transcripts_and_names_beyond_ascii(tmp_path):
    save(tmp_path / "größe 猫: x.wav", tone(100))
    listed = [Clip("größe 猫: x.wav", None, "straße, 猫"), Clip("größe 猫: x.wav", 100)]
    clips = AudioClips(lambda name: tmp_path / name, listed, 16000, 1)
    assert (clips.name(0), clips.transcript(0)) == ("größe 猫: x.wav", "straße, 猫")
    assert clips.has_transcripts
    assert len(clips.load(0)) == 100


# --- labels and groups

SPEAKERS = ("bob", "ann")
DIGITS = [Clip(f"{speaker}/{digit}_{take}.wav", 100) for speaker in SPEAKERS for digit in (7, 3) for take in (0, 1)]


def digits(clips: list[Clip] = DIGITS, **options) -> AudioClips:
    return AudioClips(lambda name: b"", clips, 16000, 1, **options)


def test_labels_and_groups_are_found_in_paths():
    clips = digits(label_pattern=r"/(\d)_", group_pattern=r"^(\w+)/")
    assert clips.class_names == ("3", "7")
    assert [clips.label(i) for i in range(8)] == [1, 1, 0, 0] * 2
    assert clips.groups == ["bob"] * 4 + ["ann"] * 4
    assert clips.has_labels


def test_labels_mean_the_same_as_in_the_training_set():
    clips = digits(label_pattern=r"/(\d)_", class_names=("1", "3", "7", "9"))
    assert clips.class_names == ("1", "3", "7", "9")
    assert [clips.label(i) for i in range(4)] == [2, 2, 1, 1]
    with pytest.raises(ValueError, match=r"val_root=x: labels \['7'\] are not in the training set"):
        digits(label_pattern=r"/(\d)_", class_names=("3",), key="val_root=x")


def test_labels_of_clips_that_are_left_out_are_no_classes():
    clips = digits([*DIGITS, Clip("bob/5_0.wav", 0)], label_pattern=r"/(\d)_", group_pattern=r"^(\w+)/")
    assert clips.class_names == ("3", "7")
    assert len(clips.groups) == len(clips) == 8


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"/(\d_", "not a regular expression"),
        (r"/\d_", "put parentheses around the one part that counts"),
        ("", "put parentheses around the one part that counts"),
        (r"(\w+)/(\d)_", "put parentheses around the one part that counts"),
        (r"ann/(\d)_", r"does not match bob/7_0\.wav"),
    ],
)
@pytest.mark.parametrize("key", ["label_pattern", "group_pattern"])
def test_bad_patterns_name_their_key(key, pattern, message):
    with pytest.raises(ValueError, match=rf"{key}=.*: {message}"):
        digits(**{key: pattern})


# --- the samples that ship


def test_prompts():
    train, val = prompt_clips("train"), prompt_clips("val")
    assert (len(train), len(val)) == (495, 56)
    assert len({clip.path for clip in train + val}) == 551
    assert all(clip.transcript for clip in train + val)
    waveform = decode_audio(read_prompt(val[0].path), 16000)
    assert 0.05 < np.abs(waveform).max() <= 1.1
    assert len(waveform) == audio_length(read_prompt(val[0].path), 16000)


def test_every_tenth_prompt_is_held_out():
    train, val = iter(prompt_clips("train")), iter(prompt_clips("val"))
    transcripts = read_prompt("transcripts.tsv").decode().splitlines()
    for i, line in enumerate(transcripts):
        clip = next(val if i % 10 == 0 else train)
        assert f"{clip.path}\t{clip.transcript}" == line

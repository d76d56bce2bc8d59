"""Lists of clips: from folders, manifests and prompts, with labels and groups."""

from __future__ import annotations

import numpy as np
import pytest
from tones import clips_below, save, tone, truncated_flac

from d2v.data.bad_samples import BadSample
from d2v.data.speech.clips import AudioClips, Clip, audio_files, audio_length, decode_audio, prompt_clips, read_prompt

soundfile = pytest.importorskip("soundfile")

pytest.importorskip("torchaudio")


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

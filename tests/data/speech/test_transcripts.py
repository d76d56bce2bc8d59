import gzip
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from d2v.arguments import check_arguments
from d2v.data.letters import LETTERS, unspell
from d2v.data.speech.clips import AudioClips, Clip
from d2v.data.speech.corpora import librispeech_parts, manifest_clips, with_transcripts
from d2v.data.speech.data import SpeechData
from d2v.data.speech.factories import audio_manifest, librispeech
from d2v.data.speech.transcripts import TranscribedClips, choose_hours

soundfile = pytest.importorskip("soundfile")
RATE = 16000


def save(path: Path, num_samples: int, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(num_samples, dtype="float32"), rate)
    return path


def clips(folder: Path, texts: dict[str, str | None], seconds: float = 0.1) -> AudioClips:
    for name in texts:
        save(folder / name, int(seconds * RATE))
    return AudioClips(folder.__truediv__, [Clip(name, None, text) for name, text in texts.items()], RATE, 1)


def test_transcripts_are_spelled_in_capitals(tmp_path: Path) -> None:
    transcribed = TranscribedClips(clips(tmp_path, {"a.wav": "it's  one", "b.wav": "TWO"}), LETTERS, RATE)
    assert [unspell(transcribed.label(i), LETTERS) for i in range(2)] == ["IT'S ONE", "TWO"]
    assert transcribed.lengths.tolist() == [1600, 1600]
    assert transcribed.load(1).shape == (1600,)
    small = TranscribedClips(clips(tmp_path, {"a.wav": "one"}), " eno", RATE)
    assert unspell(small.label(0), " eno") == "one"


def test_what_cannot_be_spelled_is_an_error_or_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = {"a.wav": "one", "b.wav": "zwölf", "c.wav": "", "d.wav": "two"}
    with pytest.raises(ValueError, match=r"b\.wav: 'Ö' in 'ZWÖLF' is not in letters"):
        TranscribedClips(clips(tmp_path, texts), LETTERS, RATE)
    with caplog.at_level(logging.WARNING):
        transcribed = TranscribedClips(clips(tmp_path, texts), LETTERS, RATE, "skip")
    assert [transcribed.name(i) for i in range(len(transcribed))] == ["a.wav", "d.wav"]
    assert "b.wav" in caplog.text
    assert "c.wav: empty transcript" in caplog.text
    assert "left out 2 clips for their transcripts, 0 for their length" in caplog.text
    with pytest.raises(ValueError, match="none of 2 clips can be used: 2 transcripts"):
        TranscribedClips(clips(tmp_path, {"b.wav": "zwölf", "x.wav": None}), LETTERS, RATE, "skip")


def test_clips_that_are_too_long_are_left_out_not_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = clips(tmp_path, {"a.wav": "one"}, seconds=0.1)
    with pytest.raises(ValueError, match="1 too long"):
        TranscribedClips(folder, LETTERS, 1000)


def test_scored_sets_say_what_was_left_out(tmp_path: Path) -> None:
    lengths = {"a": 1600, "b": 1600, "c": 8001, "d": 1600}
    for name, length in lengths.items():
        save(tmp_path / f"{name}.wav", length)
    (tmp_path / "d.wav").write_bytes(b"")
    (tmp_path / "m.tsv").write_text(".\n" + "".join(f"{name}.wav\t{n}\n" for name, n in lengths.items()))
    (tmp_path / "m.txt").write_text("ONE\n4\nTHREE\nONE\n")
    listed = with_transcripts(manifest_clips(str(tmp_path / "m.tsv"), RATE, "")[1], str(tmp_path / "m.txt"), "")
    found = AudioClips(tmp_path.__truediv__, [clip._replace(num_samples=None) for clip in listed], RATE, 1)
    transcribed = TranscribedClips(found, LETTERS, 8000, "skip")
    assert [transcribed.name(i) for i in range(len(transcribed))] == ["a.wav"]
    damaged, long, bad = transcribed.left_out
    assert damaged == "d.wav: empty file"
    assert long == "c.wav: 0.500062 s, eval_max_seconds allows 0.5"
    assert bad.startswith(f"b.wav: '4' in '4' ({tmp_path}/m.txt:2) is not in letters")
    short = AudioClips(tmp_path.__truediv__, [Clip("a.wav", 1600, "ONE"), Clip("x.wav", 10, "ONE")], RATE, 100)
    assert TranscribedClips(short, LETTERS, 8000).left_out == ("x.wav: too short (min_seconds)",)
    paths = {"transcripts": str(tmp_path / "m.txt"), "val_transcripts": str(tmp_path / "m.txt")}
    manifests = {"val_manifest": str(tmp_path / "m.tsv"), "conv_layers": [[8, 40, 20]], "min_seconds": 0.05}
    data = audio_manifest(str(tmp_path / "m.tsv"), eval_max_seconds=0.5, **paths, **manifests)  # type: ignore[arg-type]
    assert [entry[:5] for entry in data.finetune(on_bad_text="skip").evals["val"].left_out] == ["c.wav", "b.wav"]  # type: ignore[attr-defined]


def test_clips_whose_letters_do_not_fit_their_frames_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """CTC takes a frame a letter, and one more between two alike; for others its loss is 0."""
    texts = {"fits": "ABCD", "repeats": "ABBC", "exact": "ABB", "long": "ABCDE"}
    for name in texts:
        save(tmp_path / f"{name}.wav", 4 * 20 + 20)  # 4 frames
    (tmp_path / "m.tsv").write_text(".\n" + "".join(f"{name}.wav\t100\n" for name in texts))
    (tmp_path / "m.txt").write_text("".join(f"{text}\n" for text in texts.values()))
    path, said = str(tmp_path / "m.tsv"), str(tmp_path / "m.txt")
    options = {"conv_layers": [[8, 40, 20]], "min_seconds": 40 / RATE}
    data = audio_manifest(path, transcripts=said, val_manifest=path, val_transcripts=said, **options)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        data.finetune()
    assert "nothing is learnt from 2 of 4 clips" in caplog.text
    assert "frames: repeats.wav, long.wav; correct" in caplog.text


def test_errors_about_transcripts_name_their_file_and_line(tmp_path: Path) -> None:
    save(tmp_path / "a.wav", 1600)
    listed, said = [Clip("a.wav", 1600), Clip("a.wav", 1600)], tmp_path / "m.txt"
    for text, message in (
        ("ONE\nZWÖLF\n", r"'Ö' in 'ZWÖLF' \(.*m\.txt:2\) is"),
        ("ONE\n\n", r"empty .* in .*m\.txt:2;"),
    ):
        said.write_text(text, encoding="utf-8")
        found = AudioClips(tmp_path.__truediv__, with_transcripts(listed, str(said), "transcripts"), RATE, 1)
        with pytest.raises(ValueError, match=rf"^a\.wav: {message}"):
            TranscribedClips(found, LETTERS, RATE)
    librispeech_part(tmp_path, "dev", {"1-2-0000": "ONE", "1-2-0001": "4"})
    found = AudioClips(tmp_path.__truediv__, librispeech_parts(str(tmp_path), ["dev"], "val")[0], RATE, 1)
    with pytest.raises(ValueError, match=r"1-2-0001\.flac: '4' in '4' \(.*1-2\.trans\.txt:2\) is not in"):
        TranscribedClips(found, LETTERS, RATE)


def test_transcripts_in_another_encoding_are_named(tmp_path: Path) -> None:
    said = tmp_path / "m.txt"
    said.write_bytes("ONE\nZWÖLF\n".encode("latin-1"))
    listed = [Clip("a.wav", 1600), Clip("b.wav", 1600)]
    message = r"m\.txt:2: byte 0xd6 is not UTF-8; save the file as UTF-8 \(transcripts=.*m\.txt\)"
    with pytest.raises(ValueError, match=message):
        with_transcripts(listed, str(said), "transcripts")
    said.write_text("ONE\r\nZWÖLF\r\n", encoding="utf-8-sig")
    assert [clip.transcript for clip in with_transcripts(listed, str(said), "")] == ["ONE", "ZWÖLF"]
    librispeech_part(tmp_path, "dev", {"1-2-0000": "ONE"})
    with (tmp_path / "dev" / "1" / "2" / "1-2.trans.txt").open("ab") as file:
        file.write("1-2-0001 ZWÖLF\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"1-2\.trans\.txt:2: byte 0xd6 is not UTF-8; .* \(val=dev\)"):
        librispeech_parts(str(tmp_path), ["dev"], "val")[0]


def test_clips_without_transcripts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no transcripts"):
        TranscribedClips(clips(tmp_path, {"a.wav": None}), LETTERS, RATE)


def test_a_few_hours_have_many_voices(tmp_path: Path) -> None:
    names = [f"{speaker}/{chapter}/{i}.wav" for speaker in "abcd" for chapter in "xy" for i in range(5)]
    transcribed = TranscribedClips(clips(tmp_path, dict.fromkeys(names, "one")), LETTERS, RATE)
    hours = 8 * 0.1 / 3600
    chosen = choose_hours(transcribed, hours, RATE, seed=0)
    assert len(chosen) == 8
    voices = [chosen.name(i)[0] for i in range(8)]
    assert {voice: voices.count(voice) for voice in "abcd"} == dict.fromkeys("abcd", 2)
    assert choose_hours(transcribed, hours, RATE, 0).ids == chosen.ids
    assert choose_hours(transcribed, hours, RATE, 1).ids != chosen.ids
    assert set(chosen.ids) < set(choose_hours(transcribed, 3 * hours, RATE, 0).ids)
    assert len(choose_hours(transcribed, 1e-9, RATE, 0)) == 1
    assert len(choose_hours(transcribed, 100, RATE, 0)) == 40


@pytest.mark.parametrize(("key", "value"), [("hours", 0), ("label_fraction", 1.5), ("on_bad_text", "ignore")])
def test_ranges_of_labels(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"labels\.{key}={value}: (give|choose)"):
        check_arguments(SpeechData.finetune, {key: value}, "labels", lambda *_: None, filled=("self",))


def test_batches_hold_whole_clips_of_about_one_length(tmp_path: Path) -> None:
    for part in ("train-clean-100", "dev-clean"):
        folder = tmp_path / part / "1" / "2"
        folder.mkdir(parents=True)
        for i in range(12):
            soundfile.write(folder / f"1-2-{i}.flac", np.zeros(1600 + 160 * i, dtype="float32"), RATE)
        (folder / "1-2.trans.txt").write_text("".join(f"1-2-{i} ONE\n" for i in range(12)))
    data = librispeech(
        str(tmp_path), train="train-clean-100", val="dev-clean", conv_layers=[[8, 40, 20]], min_seconds=0.05
    ).finetune()
    assert data.batch_unit == "seconds"
    assert data.size == pytest.approx(sum(1600 + 160 * i for i in range(12)) / RATE)
    split = data.split_batch(1.0, None, 1)
    sampler = data.train_sampler(0, split, num_batches=8)
    letters = 3  # of every clip
    dataset = data.train_dataset(0)
    seen = []
    for keys in sampler:
        batch = data.collate([dataset[key] for key in keys])
        assert batch.labels is not None
        assert batch.inputs.shape[1] == max(int(data.train.lengths[i]) for i in batch.sample_ids)  # type: ignore[attr-defined]
        assert [unspell(row.tolist(), LETTERS) for row in batch.labels] == ["ONE"] * len(keys)
        assert batch.inputs.numel() <= RATE  # padding counts
        assert batch.step_size == letters * len(keys)
        seen += batch.sample_ids.tolist()
    assert set(seen) == set(range(12))
    with pytest.raises(ValueError, match=r"global_batch_size=0\.1 seconds"):
        data.split_batch(0.1, None, 1)


def test_manifests_have_transcripts_line_by_line(tmp_path: Path) -> None:
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(3200, dtype="float32"), RATE)
    (tmp_path / "train.tsv").write_text(".\na.wav\t3200\nb.wav\t3200\n")
    (tmp_path / "train.txt").write_text("ONE\nTWO THREE\n")
    paths = {"transcripts": str(tmp_path / "train.txt"), "conv_layers": [[8, 40, 20]], "min_seconds": 0.05}
    manifest = str(tmp_path / "train.tsv")
    found = audio_manifest(manifest, val_manifest=manifest, val_transcripts=paths["transcripts"], **paths)  # type: ignore[arg-type]
    data = found.finetune()
    assert [unspell(data.train.label(i), LETTERS) for i in range(2)] == ["ONE", "TWO THREE"]  # type: ignore[arg-type]
    assert len(data.evals["val"]) == 2
    (tmp_path / "train.txt").write_text("ONE\n")
    with pytest.raises(ValueError, match=r"transcripts=.*1 lines for 2 clips"):
        audio_manifest(manifest, **paths)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"set val_manifest"):
        audio_manifest(manifest, val_transcripts="x", conv_layers=[[8, 40, 20]])
    with pytest.raises(FileNotFoundError, match=r"transcripts=/nowhere"):
        audio_manifest(manifest, **{**paths, "transcripts": "/nowhere"})  # type: ignore[arg-type]


# --- LibriSpeech


def librispeech_part(root: Path, part: str, utterances: dict[str, str]) -> None:
    for name, text in utterances.items():
        speaker, chapter, _ = name.split("-")
        folder = root / part / speaker / chapter
        save(folder / f"{name}.flac", 800)
        with (folder / f"{speaker}-{chapter}.trans.txt").open("a") as file:
            file.write(f"{name} {text}\n")


TEXTS = {"19-198-0001": "TWO WORDS", "19-198-0000": "NORTHANGER ABBEY", "19-227-0000": "I'M", "103-5-0000": "MARILLA"}


@pytest.mark.parametrize("parent", ["", "LibriSpeech"])
def test_librispeech_lies_below_the_root_or_in_its_folder(tmp_path: Path, parent: str) -> None:
    librispeech_part(tmp_path / parent, "dev-clean", TEXTS)
    (tmp_path / parent / "dev-clean" / "README.TXT").write_text("x")
    listed = librispeech_parts(str(tmp_path), ["dev-clean"], "val")[0]
    found = {Path(clip.path).stem: clip.transcript for clip in listed}
    assert found == TEXTS
    assert [clip.path for clip in listed] == sorted(clip.path for clip in listed)
    assert all((tmp_path / clip.path).is_file() for clip in listed)
    assert {clip.num_samples for clip in listed} == {None}


def test_librispeech_errors(tmp_path: Path) -> None:
    librispeech_part(tmp_path, "dev-clean", TEXTS)
    with pytest.raises(FileNotFoundError, match=r"train=dev-other: .* neither dev-other nor LibriSpeech/"):
        librispeech_parts(str(tmp_path), ["dev-other"], "train")[0]
    save(tmp_path / "dev-clean" / "19" / "198" / "19-198-0002.flac", 800)
    with pytest.raises(ValueError, match=r"19-198-0002\.flac: no transcript in .*198/\*\.trans\.txt"):
        librispeech_parts(str(tmp_path), ["dev-clean"], "train")[0]


def test_librispeech_counts_what_is_left_out_or_missing(tmp_path: Path) -> None:
    librispeech_part(tmp_path, "dev", TEXTS)
    chapter = tmp_path / "dev" / "19" / "198"
    (chapter / "19-198-0000.flac").rename(chapter / "19-198-0000.FLAC")
    (chapter / "19-198-0001.flac").rename(chapter / "19-198-0001.wav")
    (tmp_path / "dev" / "103" / "5" / "103-5-0000.flac").unlink()
    data = librispeech(
        str(tmp_path), train="dev", val="dev", min_seconds=0.01, max_seconds=1, conv_layers=[[8, 10, 5], [8, 8, 4]]
    )
    assert "\n".join(data.describe()).split("\n")[:3] == [
        f"train     2 clips from {tmp_path} (dev)",
        "          left out: 1 with other endings (1 .wav)",
        "          2 transcripts without their .flac: the copy of LibriSpeech is damaged",
    ]
    assert data.describe()[-1] == "          trained on, too: dev"


def test_folders_of_librispeech_that_cannot_be_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    librispeech_part(tmp_path, "dev", TEXTS)
    scandir = os.scandir

    def locked(path: str) -> Any:
        if str(path).endswith("198"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(PermissionError, match=r"train=dev: 1 folders cannot be read: .*dev/19/198 \(Permission"):
        librispeech_parts(str(tmp_path), ["dev"], "train")[0]


# --- manifests


def write_manifest(path: Path, root: str, *lines: str) -> str:
    path.write_text("\n".join([root, *lines]) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("relative", [True, False])
def test_a_manifest_lists_files_below_its_root(tmp_path: Path, relative: bool) -> None:
    save(tmp_path / "audio" / "a b" / "ä.wav", 640)
    root = "audio" if relative else str(tmp_path / "audio")
    path = write_manifest(tmp_path / "train.tsv", root, "a b/ä.wav\t640", "gone.wav\t320")
    found, listed = manifest_clips(path, 16000, "manifest")
    assert os.path.samefile(found, tmp_path / "audio")
    assert listed == [Clip("a b/ä.wav", 640), Clip("gone.wav", 320)]


def test_a_manifests_lengths_are_at_the_files_rate(tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"x")
    save(tmp_path / "8k.wav", 81, 8000)
    path = write_manifest(tmp_path / "train.tsv", ".", "broken.wav\t80", "gone.wav\t80", "8k.wav\t81")
    assert [clip.num_samples for clip in manifest_clips(path, 16000, "manifest")[1]] == [160, 160, 162]
    assert [clip.num_samples for clip in manifest_clips(path, 8000, "manifest")[1]] == [80, 80, 81]


def test_a_manifest_from_windows(tmp_path: Path) -> None:
    (tmp_path / "m.tsv").write_bytes(b".\r\na.wav\t640\r\n")
    assert manifest_clips(str(tmp_path / "m.tsv"), 16000, "manifest")[1] == [Clip("a.wav", 640)]


def test_odd_names_in_a_manifest(tmp_path: Path) -> None:
    """Names are bytes to the system, and only a line feed ends a line."""
    names = ["one\u2028two.wav", os.fsdecode(b"bad\xff.wav"), " \x0b.wav"]
    source = save(tmp_path / "source.wav", 800)
    (tmp_path / "in").mkdir()
    for name in (*names, "tab\there.wav", "line\nhere.wav"):
        shutil.copy(source, tmp_path / "in" / name)
    script = Path(__file__).parents[3] / "scripts" / "prepare" / "audio_manifest.py"
    made = subprocess.run(
        [sys.executable, script, tmp_path / "in", tmp_path / "m.tsv"], capture_output=True, text=True, check=True
    )
    assert "3 files, 2 left out" in made.stdout
    assert made.stderr.count("a tab or a line break") == 2
    _, listed = manifest_clips(str(tmp_path / "m.tsv"), 16000, "manifest")
    assert sorted(clip.path for clip in listed) == sorted(names)


BAD_LINES = ["b.wav", "b.wav 640", "b.wav\t", "b.wav\tmany", "b.wav\t-5", "b.wav\t640.0", "", "b\0.wav\t640"]


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_of_a_manifest_is_named(tmp_path: Path, line: str) -> None:
    path = write_manifest(tmp_path / "train.tsv", ".", "a.wav\t640", line, "c.wav\t640")
    with pytest.raises(ValueError, match=r"train\.tsv:3: .* is not path<TAB>number of samples"):
        manifest_clips(path, 16000, "manifest")


@pytest.mark.parametrize("count", ["9" * 5000, "99999999999999999999999", "9999999999999", str(2**36 + 1)])
def test_a_length_that_no_file_has_is_named(tmp_path: Path, count: str) -> None:
    path = write_manifest(tmp_path / "train.tsv", ".", "a.wav\t640", f"b.wav\t{count}")
    with pytest.raises(ValueError, match=r"train\.tsv:3: 9*\d* samples are longer than any file; correct the number"):
        manifest_clips(path, 16000, "manifest")


@pytest.mark.parametrize("content", ["", "/tmp\n", "\n\n"])
def test_a_manifest_without_files_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "m.tsv").write_text(content)
    with pytest.raises(ValueError, match=r"manifest=.*m\.tsv: lists no file; give a root line"):
        manifest_clips(str(tmp_path / "m.tsv"), RATE, "manifest")


def test_manifest_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"manifest=.*gone\.tsv: no such file"):
        manifest_clips(str(tmp_path / "gone.tsv"), 16000, "manifest")
    path = write_manifest(tmp_path / "train.tsv", "/no/such/root", "a.wav\t640")
    with pytest.raises(FileNotFoundError, match=r"train\.tsv:1: '/no/such/root' is no folder"):
        manifest_clips(path, 16000, "manifest")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_transcripts_and_manifests_may_be_in_any_unicode(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "m.tsv").write_bytes(".\r\nä.wav\t640\r\nb.wav\t640\r\n".encode(encoding))
    (tmp_path / "m.txt").write_bytes("ONE\r\nZWÖLF\r\n".encode(encoding))
    _, listed = manifest_clips(str(tmp_path / "m.tsv"), 16000, "manifest")
    assert listed == [Clip("ä.wav", 640), Clip("b.wav", 640)]
    said = with_transcripts(listed, str(tmp_path / "m.txt"), "transcripts")
    assert [clip.transcript for clip in said] == ["ONE", "ZWÖLF"]


def test_transcripts_and_manifests_that_are_no_text_are_refused(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    (tmp_path / "m.tsv").write_text(pointer)
    with pytest.raises(ValueError, match=r"manifest=.*m\.tsv: a Git LFS pointer.*git lfs pull"):
        manifest_clips(str(tmp_path / "m.tsv"), 16000, "manifest")
    (tmp_path / "m.txt").write_bytes(gzip.compress(b"ONE\n"))
    with pytest.raises(ValueError, match=r"transcripts=.*m\.txt is gzip, not plain text: unpack it"):
        with_transcripts([Clip("a.wav", 640)], str(tmp_path / "m.txt"), "transcripts")

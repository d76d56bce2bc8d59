import logging
from pathlib import Path

import numpy as np
import pytest

from d2v.data.audio_sources import AudioClips, Clip
from d2v.data.letters import LETTERS, unspell
from d2v.data.speech import audio_manifest, librispeech
from d2v.data.spoken import SpokenClips, choose_hours

soundfile = pytest.importorskip("soundfile")
RATE = 16000


def clips(folder: Path, texts: dict[str, str | None], seconds: float = 0.1) -> AudioClips:
    for name in texts:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.zeros(int(seconds * RATE), dtype="float32"), RATE)
    return AudioClips(folder.__truediv__, [Clip(name, None, text) for name, text in texts.items()], RATE, 1)


def test_transcripts_are_spelled_in_capitals(tmp_path: Path) -> None:
    spoken = SpokenClips(clips(tmp_path, {"a.wav": "it's  one", "b.wav": "TWO"}), LETTERS, RATE)
    assert [unspell(spoken.label(i), LETTERS) for i in range(2)] == ["IT'S ONE", "TWO"]
    assert spoken.lengths.tolist() == [1600, 1600]
    assert spoken.load(1).shape == (1600,)
    small = SpokenClips(clips(tmp_path, {"a.wav": "one"}), " eno", RATE)
    assert unspell(small.label(0), " eno") == "one"


def test_what_cannot_be_spelled_is_an_error_or_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = {"a.wav": "one", "b.wav": "zwölf", "c.wav": "", "d.wav": "two"}
    with pytest.raises(ValueError, match=r"b\.wav: 'Ö' in 'ZWÖLF' is not in labels\.letters"):
        SpokenClips(clips(tmp_path, texts), LETTERS, RATE)
    with caplog.at_level(logging.WARNING):
        spoken = SpokenClips(clips(tmp_path, texts), LETTERS, RATE, "skip")
    assert [spoken.name(i) for i in range(len(spoken))] == ["a.wav", "d.wav"]
    assert "b.wav" in caplog.text
    assert "c.wav: empty transcript" in caplog.text
    assert "left out 2 clips for their transcripts, 0 for their length" in caplog.text
    with pytest.raises(ValueError, match="none of 2 clips can be used: 2 transcripts"):
        SpokenClips(clips(tmp_path, {"b.wav": "zwölf", "x.wav": None}), LETTERS, RATE, "skip")
    with pytest.raises(ValueError, match=r"labels\.on_bad_text=ignore"):
        SpokenClips(clips(tmp_path, texts), LETTERS, RATE, "ignore")  # type: ignore[arg-type]


def test_clips_that_are_too_long_are_left_out_not_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = clips(tmp_path, {"a.wav": "one"}, seconds=0.1)
    with pytest.raises(ValueError, match="1 too long"):
        SpokenClips(folder, LETTERS, 1000)


def test_clips_without_transcripts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no transcripts"):
        SpokenClips(clips(tmp_path, {"a.wav": None}), LETTERS, RATE)


def test_a_few_hours_have_many_voices(tmp_path: Path) -> None:
    names = [f"{speaker}/{chapter}/{i}.wav" for speaker in "abcd" for chapter in "xy" for i in range(5)]
    spoken = SpokenClips(clips(tmp_path, dict.fromkeys(names, "one")), LETTERS, RATE)
    hours = 8 * 0.1 / 3600
    chosen = choose_hours(spoken, hours, RATE, seed=0)
    assert len(chosen) == 8
    voices = [chosen.name(i)[0] for i in range(8)]
    assert {voice: voices.count(voice) for voice in "abcd"} == dict.fromkeys("abcd", 2)
    assert choose_hours(spoken, hours, RATE, 0).ids == chosen.ids
    assert choose_hours(spoken, hours, RATE, 1).ids != chosen.ids
    assert set(chosen.ids) < set(choose_hours(spoken, 3 * hours, RATE, 0).ids)
    assert len(choose_hours(spoken, 1e-9, RATE, 0)) == 1
    assert len(choose_hours(spoken, 100, RATE, 0)) == 40
    with pytest.raises(ValueError, match=r"labels\.hours=0"):
        choose_hours(spoken, 0, RATE, 0)


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
    with pytest.raises(ValueError, match=r"data\.transcripts=.*1 lines for 2 clips"):
        audio_manifest(manifest, **paths)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"set data\.val_manifest"):
        audio_manifest(manifest, val_transcripts="x", conv_layers=[[8, 40, 20]])
    with pytest.raises(FileNotFoundError, match=r"data\.transcripts=/nowhere"):
        audio_manifest(manifest, **{**paths, "transcripts": "/nowhere"})  # type: ignore[arg-type]

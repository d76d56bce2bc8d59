"""Where clips come from: the package, folders, LibriSpeech, manifests; errors."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from same_batches import assert_same_batches
from short_clips import CONVS, FACTORIES, MASK, RATE, SECONDS, SIZES, loader, save, speech

from d2v.arguments import parameters
from d2v.data.keys import ClipKey
from d2v.data.speech.data import SpeechData
from d2v.data.speech.factories import (
    HFSpeechOptions,
    audio_folder,
    audio_manifest,
    hf_audio,
    librispeech,
    samples_speech,
)
from d2v.interop.build import build

soundfile = pytest.importorskip("soundfile")

pytest.importorskip("torchaudio")


def test_the_shipped_samples():
    data = samples_speech(conv_layers=CONVS)
    assert (len(data.train), len(data.val)) == (493, 56)  # two clips are shorter than half a second
    assert data.probe_train is data.train
    assert data.train.has_transcripts
    assert data.val.has_transcripts
    assert not {data.train.name(i) for i in range(493)} & {data.val.name(i) for i in range(56)}
    assert 15 * 60 < data.size < 17 * 60
    assert data.train.lengths.sum() / RATE > 20 * 60
    batch = next(iter(loader(data, seconds=8.0, steps=1)))
    assert 4 * RATE < batch.inputs.numel() <= 8 * RATE
    assert data.eval_dataset("val")[0].inputs.shape == (data.val.lengths[0],)


def test_folders_have_labels_and_groups_if_asked(folder, tmp_path):
    data = speech(folder, label_pattern=r"_([ab])", group_pattern=r"^(\d+)_")
    assert data.class_names == ("a", "b")
    assert data.train.groups[:4] == ["00", "00", "01", "01"]
    assert data.probe_train is data.train
    plain = speech(folder)
    assert (plain.probe_train, plain.class_names, plain.train.groups) == (None, None, None)
    assert len(plain.eval_dataset("train")) == 20
    save(tmp_path / "val" / "x_b.wav", 160)
    held_out = speech(folder, val_root=str(tmp_path / "val"), label_pattern=r"_([ab])")
    assert held_out.val.label(0) == 1
    save(tmp_path / "val" / "x_c.wav", 1600)
    with pytest.raises(ValueError, match=r"val_root=.*: labels \['c'\] are not in the training set"):
        speech(folder, val_root=str(tmp_path / "val"), label_pattern=r"_([abc])")


def test_clips_to_evaluate_on_are_not_trained_on(folder, tmp_path):
    save(tmp_path / "a" / "0_a.wav", 1600)
    save(tmp_path / "held" / "1_a.wav", 1600, 1)
    (tmp_path / "linked").symlink_to(tmp_path / "held")
    for val_root in ("held", "linked"):
        data = speech(tmp_path, val_root=str(tmp_path / val_root), label_pattern=r"_([ab])")
        assert [data.train.name(i) for i in range(len(data.train))] == ["a/0_a.wav"]
        assert len(data.val) == 1
        assert any(
            line.endswith(f"both here and in {tmp_path / val_root}: only evaluated on") for line in data.describe()
        )
    with pytest.raises(ValueError, match=r"val_root=.*: holds all clips of root=.* too"):
        speech(folder, val_root=str(folder))


def test_folders_named_as_splits_are_named_where_all_is_read(tmp_path):
    for name in ("train", "Valid", "test"):
        save(tmp_path / name / "0.wav", 1600)
    assert any("read as all the others: Valid, test; " in line for line in speech(tmp_path).describe())
    assert len(speech(tmp_path / "train").describe()) == 1


def test_librispeech_takes_a_part_or_a_list_of_parts(tmp_path):
    for part, speaker in (("train-a", 1), ("train-b", 2), ("dev", 3)):
        chapter = tmp_path / "LibriSpeech" / part / str(speaker) / "7"
        for i, length in enumerate((3200, 160)):
            save(chapter / f"{speaker}-7-{i:04}.flac", length, i)
        lines = [f"{speaker}-7-{i:04} SPEAKER {speaker}\n" for i in range(2)]
        (chapter / f"{speaker}-7.trans.txt").write_text("".join(lines))
    options = {"conv_layers": CONVS, "min_seconds": 0.1, "max_seconds": 0.3}
    data = librispeech(str(tmp_path), train="train-a", val="dev", **options)
    assert (len(data.train), len(data.val)) == (1, 2)  # short clips are left out of training only
    assert data.probe_train is data.train
    assert (data.train.transcript(0), data.val.transcript(1)) == ("SPEAKER 1", "SPEAKER 3")
    assert data.pretrain_dataset(0)[ClipKey(0, 0, 3200, 1)].inputs.shape == (3200,)
    both = librispeech(str(tmp_path), train=["train-b", "train-a"], val=None, probe_train=["train-a"], **options)
    assert [both.train.transcript(i) for i in range(2)] == ["SPEAKER 2", "SPEAKER 1"]
    assert (len(both.probe_train), both.val) == (2, None)
    for key, parts in (("train", {"train": "x"}), ("val", {"val": ["x"]}), ("probe_train", {"probe_train": "x"})):
        with pytest.raises(FileNotFoundError, match=rf"{key}=x: .*download=true"):
            librispeech(str(tmp_path), **({"train": "train-a", "val": None} | parts), **options)
    with pytest.raises(FileNotFoundError, match=r"root=.*gone: no such folder"):
        librispeech(str(tmp_path / "gone"), train="train-a", val=None, **options)


def test_librispeech_fetches_only_what_is_missing(tmp_path, monkeypatch):
    import torchaudio.datasets

    fetched = []

    def fetch(root, url, download):
        if url != "dev":
            raise RuntimeError("no network")
        fetched.append(url)
        chapter = Path(root) / "LibriSpeech" / url / "3" / "7"
        save(chapter / "3-7-0000.flac", 3200)
        (chapter / "3-7.trans.txt").write_text("3-7-0000 HELLO\n")

    monkeypatch.setattr(torchaudio.datasets, "LIBRISPEECH", fetch)
    options = {"conv_layers": CONVS, "min_seconds": 0.1, "max_seconds": 0.3, "download": True}
    for _ in range(2):
        data = librispeech(str(tmp_path / "new"), train="dev", val="dev", **options)
    assert fetched == ["dev"]
    assert data.val.transcript(0) == "HELLO"
    assert [p.name for p in (tmp_path / "new" / "LibriSpeech").iterdir() if not p.name.endswith(".lock")] == ["dev"]
    message = r"train=tset: could not be fetched \(no network\); .*root="
    with pytest.raises(FileNotFoundError, match=message):
        librispeech(str(tmp_path / "new"), train=["dev", "tset"], val=None, **options)


def test_librispeech_half_unpacked_is_not_there(tmp_path, monkeypatch):
    """Whoever was interrupted, or is still at it, leaves nothing that looks like a part."""
    import torchaudio.datasets

    def fetch(root, url, download):
        chapter = Path(root) / "LibriSpeech" / url / "3" / "7"
        if not interrupted:
            assert not chapter.exists()
        for number in range(2):
            save(chapter / f"3-7-000{number}.flac", 3200)
            if interrupted and number == 0:
                raise KeyboardInterrupt
        (chapter / "3-7.trans.txt").write_text("3-7-0000 HELLO\n3-7-0001 YOU\n")

    monkeypatch.setattr(torchaudio.datasets, "LIBRISPEECH", fetch)
    options = {"conv_layers": CONVS, "min_seconds": 0.1, "max_seconds": 0.3, "download": True}
    interrupted = True
    with pytest.raises(KeyboardInterrupt):
        librispeech(str(tmp_path), train="dev", val=None, **options)
    interrupted = False
    assert len(librispeech(str(tmp_path), train="dev", val=None, **options).train) == 2


def test_manifest(folder, tmp_path):
    lines = [f"{i // 2:02}_{'ab'[i % 2]}.flac\t{int(seconds * RATE)}" for i, seconds in enumerate(SECONDS)]
    (tmp_path / "train.tsv").write_text("\n".join([str(folder), *lines]))
    options = {"conv_layers": CONVS, "min_seconds": 0.05, "max_seconds": 0.3, "pool_size": 20}
    data = audio_manifest(str(tmp_path / "train.tsv"), **options)
    assert_same_batches(list(loader(data, steps=3)), list(loader(speech(folder), steps=3)))
    assert (data.probe_train, data.val) == (None, None)
    (tmp_path / "empty.tsv").write_text(".\n")
    with pytest.raises(ValueError, match=r"manifest=.*empty\.tsv: lists no file"):
        audio_manifest(str(tmp_path / "empty.tsv"), **options)


def test_clips_to_probe_only(folder):
    clips = speech(folder).train
    data = SpeechData(train=None, probe_train=clips, val=clips, conv_layers=CONVS)
    assert not data.streaming
    assert len(data.eval_dataset("train")) == 20
    with pytest.raises(ValueError, match="there are no clips to train on"):
        data.pretrain_dataset(0)


def test_there_may_be_nothing_to_evaluate(folder):
    with pytest.raises(ValueError, match="split 'val': this data has no such clips"):
        speech(folder).eval_dataset("val")
    with pytest.raises(ValueError, match="split 'val': this data has no such clips"):
        speech(folder).raw("val")
    with pytest.raises(ValueError, match=r"streaming=false: use pretrain_dataset"):
        speech(folder).pretrain_stream(MASK, 0, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_seconds": 0.0}, r"data\.min_seconds=0\.0: give a number above 0"),
        ({"min_seconds": 0.4}, r"data\.min_seconds=0\.4, data\.max_seconds=0\.3"),
        ({"max_seconds": float("nan")}, r"data\.max_seconds=nan"),
        ({"min_seconds": 0.001}, r"data\.min_seconds=0\.001: such a clip holds no frame; raise it"),
        ({"max_bad_fraction": 1.5}, r"data\.max_bad_fraction=1\.5: give a number from 0 to 1"),
        ({"max_bad_fraction": -0.1}, r"data\.max_bad_fraction=-0\.1"),
        ({"min_seconds": 0.39, "max_seconds": 0.5}, r"root=.*: none of 20 clips can be used: .*20 are shorter"),
        ({"label_pattern": "x"}, r"data\.label_pattern=x: put parentheses"),
        ({"group_pattern": "(x)"}, r"data\.group_pattern=\(x\): does not match 00_a\.flac"),
        ({"val_root": "/no/such"}, r"data\.val_root=/no/such: no such folder"),
    ],
)
def test_errors_name_the_key(folder, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        _ = build({"_target_": f"{FACTORIES}.audio_folder", "root": str(folder), **SIZES, **change}, key="data").size


def test_folder_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"root=.*gone: no such folder; set root"):
        speech(tmp_path / "gone")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"root=.*: no audio file there"):
        speech(tmp_path)
    with pytest.raises(ValueError, match=r"root=.*notes\.txt: not a folder"):
        speech(tmp_path / "notes.txt")


@pytest.mark.parametrize("name", ["crop_seconds", "shuffle_buffer"])
def test_settings_of_streams_are_checked(name):
    with pytest.raises(ValueError, match=rf"data\.{name}=0: give a"):
        build({"_target_": f"{FACTORIES}.hf_audio", "path": "a", "conv_layers": CONVS, name: 0}, key="data")


@pytest.mark.parametrize("factory", [samples_speech, librispeech, audio_folder, audio_manifest, hf_audio])
def test_configuration_files_spell_out_every_keyword(factory, data_config):
    config = data_config(factory.__name__)
    keywords = parameters(factory)
    options = HFSpeechOptions.__annotations__.keys() & keywords.keys()
    assert config.pop("_target_") == f"{factory.__module__}.{factory.__name__}"
    assert set(config) == set(keywords)
    made = samples_speech(conv_layers=CONVS) if factory is samples_speech else SpeechData
    for name in config:
        default = getattr(made, name) if name in options else keywords[name].default
        if name not in ("probe_train", "conv_layers") and default is not inspect.Parameter.empty:
            assert config[name] == default, name


def test_configured_lists_are_read(folder):
    convs = OmegaConf.create([list(layer) for layer in CONVS])
    data = speech(folder, conv_layers=convs)
    assert data.conv_layers == CONVS
    assert data == data
    assert next(iter(loader(data, steps=1))).inputs.ndim == 2

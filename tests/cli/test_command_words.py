"""Values arrive as they were typed, and slips are answered with the words to type, by the light modules alone."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import d2v.cli.launch  # has Hydra read text as typed
from d2v.cli.commands import COMMANDS
from d2v.cli.words import check_words, for_the_shell, quoted, read_text_as_typed

assert d2v.cli.launch is not None

NAMES = [
    "my data", "a,b", "k=v", "train (1)", "set[1]", "données", "日本", "2024", "2024_10", "1e5", "c#", "50%", "a'b",
    'a"b', "x@y", "true", "a&b", "$x", "{y}", "~/x", "a~b", "x;y", "!x", "a*b", "`x`", "<x>", "a|b", "a^b", "[a,b]",
    "{a:1}", "range(1,3)", "choice(a,b)", "nan", "inf", "1_0", "a\\b", "a\nb", "a}b", "TRUE", "auto", "x:y", "-1",
]  # fmt: skip
KEYS = [
    ("pretrain", ["data=image_folder"], "data.root"),
    ("pretrain", ["data=image_folder"], "data.val_root"),
    ("pretrain", ["experiment=speech_base", "data=audio_folder"], "data.root"),
    ("pretrain", ["experiment=text_base"], "data.root"),
    ("pretrain", ["experiment=text_base"], "data.tokenizer"),
    ("pretrain", [], "init_from"),
    ("pretrain", [], "output_dir"),
    ("evaluate", [], "checkpoint"),
    ("extract", [], "output"),
    ("tokenizer", [], "files"),
]


def _parsed(word: str) -> object:
    return OverridesParser.create().parse_override(word).value()


@pytest.mark.parametrize("key", sorted({key for _, _, key in KEYS} | {"data.label_pattern", "data.text_column"}))
def test_text_arrives_as_typed(key: str) -> None:
    names = [*(name for name in NAMES if key != "checkpoint" or name != "[a,b]"), "^([0-9])_"]
    assert [_parsed(f"{key}={name}") for name in names] == names


def test_text_arrives_as_typed_in_the_configuration() -> None:
    names = ["a,b", "2024_10", "$x{y}"]
    with initialize_config_module("d2v.conf", version_base="1.3"):
        for (command, overrides, key), name in zip(KEYS, names * len(KEYS), strict=False):
            node: object = compose(command, overrides=[*overrides, f"{key}={name}"])
            for part in key.split("."):
                node = node[part]  # type: ignore[index]
            assert node == name, key


def test_files_of_the_name_take_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """null, a reference and quotes mean what they mean in Hydra, unless there is a file of that name."""
    monkeypatch.chdir(tmp_path)
    names = ["null", "${y}", "'q'", "a\\ b", " lead"]
    assert [_parsed(f"data.root={name}") for name in names] == [None, "${y}", "q", "a b", "lead"]
    for name in names:
        Path(name).touch()
    assert [_parsed(f"data.root={name}") for name in names] == ["null", "\\${y}", *names[2:]]


def test_other_keys_keep_hydras_meaning() -> None:
    words = ["seed=2_024", "optim.betas=[0.9,0.95]", "compile=true", "optim.lr=1e-3", "micro_batch_size=null"]
    assert [_parsed(word) for word in words] == [2024, [0.9, 0.95], True, 1e-3, None]


def test_several_values_in_a_multirun_stay_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c,d").touch()
    try:
        read_text_as_typed(multirun=True)
        parse = OverridesParser.create().parse_override
        assert parse("checkpoint=a,b").is_sweep_override()
        assert _parsed("checkpoint=c,d") == "c,d"
        assert _parsed("checkpoint=2024") == "2024"
    finally:
        read_text_as_typed()
    assert _parsed("checkpoint=a,b") == "a,b"
    assert _parsed("checkpoint=[/a/b,c]") == ["/a/b", "c"]


@pytest.mark.parametrize("name", [*NAMES, "a\\", "\\'", "a\\'b", "\\${x}", "'", "x\\\\"])
def test_the_words_to_type_give_the_value(name: str) -> None:
    """Through a real shell's rules and Hydra's grammar."""
    (word,) = shlex.split(for_the_shell(f"seed={name}"))
    for override in (f"seed={quoted(name)}", word):
        assert OmegaConf.create({"seed": _parsed(override)}).seed == name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seed=3"], "write seed=3"),
        (["--data.root=x"], "write data.root=x"),
        (["--seed", "3"], "write seed=3"),
        (["-seed", "3"], "write seed=3"),
        (["--max-steps"], "write max_steps=VALUE"),
        (["seed", "=", "3"], "write seed="),
        (["seed=", "3"], "write seed=3"),
        (["data.root=my", "data"], "'data.root=\"my data\"'"),
        (["seed"], "seed: give key=value"),
        (["=3"], "give key=value"),
    ],
)
def test_words_that_are_no_key_and_value(words: list[str], said: str) -> None:
    with pytest.raises(ValueError) as raised:
        check_words(words)
    assert said in str(raised.value)


def test_options_of_hydra_pass() -> None:
    for words in (
        ["--cfg", "job"], ["-m", "seed=0,1"], ["--info"], ["--info", "all"], ["-cd", "x", "seed=1"], ["~data"],
        ["--config-dir=x"], ["+a=1", "++b=2"], ["--hydra-help"],
    ):  # fmt: skip
        check_words(words)


LIGHT = """
import sys
from d2v.cli import main
sys.argv = ["d2v", *sys.argv[1:]]
try:
    main.main()
finally:
    heavy = {"torch", "lightning", "numpy", "datasets", "wandb", "timm", "transformers", "scipy", "PIL", "d2v.data"}
    print("HEAVY", *sorted(heavy & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pretrain", "optim.lrr=1"], "unknown key 'optim.lrr'. Did you mean optim.lr?"),
        (["pretrain", "data.root=x"], "choose data=image_folder or data=imagenet."),
        (["pretrain", "experiment=speech_tiny", "data.root=x"], "choose data=audio_folder or data=librispeech."),
        (["pretrain", "experiment=text_tiny", "data.root=x"], "choose data=text_files."),
        (["pretrain", "epochs=3"], "trainer.max_steps=N"),
        (["evaluate", "vocab_size=3"], "It is a key of d2v tokenizer"),
        (["pretrain", "experiment=image_bas"], "Did you mean experiment=image_base"),
        (["pretrain", "model=data2vec2/image_tny"], "Did you mean model=data2vec2/image_tiny"),
        (["pretrain", "seed=a^b"], "'seed=\"a^b\"'"),
        (["pretrain", "seed=0,1"], "add -m"),
        (["pretrain", "data=null"], "'~data'"),
        (["pretrain", "optim=3"], "choose from adamw, muon"),
        (["pretrain", "+seed=1"], "without the plus"),
        (["pretrain", "~data.rot"], "unknown key 'data.rot'"),
        (["pretrain", "--seed=3"], "write seed=3"),
        (
            ["finetune", "checkpoint=x"],
            "choose task=...: one of audio_classification, audio_tagging, ctc, ctc_base, glue/cola",
        ),
        (["pretrain", "data=image_folder"], "needs data.root=VALUE"),
        (["export", "checkpoint=x"], "needs output=VALUE"),
        (["extract"], "needs checkpoint=VALUE and output=VALUE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_slips_are_answered_by_light_modules(words: list[str], said: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("d2v: error: ")
    assert said in done.stderr
    assert done.stdout == "HEAVY\n"


@pytest.mark.slow
def test_lightning_is_the_trainers_alone() -> None:
    """Of all commands, only those that train import it."""
    modules = [COMMAND for COMMAND in COMMANDS if COMMAND not in ("pretrain", "finetune")]
    program = (
        "import importlib, sys\nfrom d2v.cli.commands import module_of\n"
        f"for name in {modules}:\n    importlib.import_module(module_of(name))\n"
        "print('lightning' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"

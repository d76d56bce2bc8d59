"""The ``d2v`` command. Help is answered without importing anything heavy."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import re
import sys
from pathlib import Path

from d2v.version import __version__

COMMANDS = {
    "pretrain": "train an encoder by data2vec 2.0 or 1.0",
    "finetune": "train an encoder and a head on labels, and score them: ImageNet, GLUE, LibriSpeech",
    "evaluate": "probe a frozen encoder beside its inputs and itself untrained; score a fine-tuned one",
    "extract": "write features to .safetensors or .npz",
    "export": "write an encoder for d2v, transformers, ONNX or the authors' code",
    "import": "read a checkpoint of the authors' code or of Hugging Face's",
    "tokenizer": "train a byte-level BPE for text",
    "info": "show versions, hardware and what a checkpoint holds",
}

EXAMPLES = {
    "pretrain": [
        ("d2v pretrain", "the tiny recipe on the images that ship with d2v"),
        ("d2v pretrain experiment=image_base data=image_folder data.root=DIR", "ViT-B on your own images"),
        ("d2v pretrain experiment=speech_base data=audio_folder data.root=DIR", "on your own recordings"),
        ("d2v pretrain experiment=text_base data.root=DIR data.tokenizer=FILE", "on your own text files"),
        ("d2v pretrain trainer.max_steps=500 optim.lr=2e-3 seed=1", "override anything"),
        ("d2v pretrain -m seed=0,1,2", "several runs"),
        ("d2v pretrain resume=auto", "continue the newest run of this very command"),
        ("d2v pretrain init_from=PATH", "start a new run from a checkpoint's weights"),
        ("d2v pretrain callbacks=probe logger=wandb", "online kNN probe, metrics in wandb"),
        (
            "d2v pretrain launcher=slurm trainer.devices=8",
            "a Slurm job; seed=0,1,2 makes an array",
        ),
        ("d2v pretrain --cfg job", "print the configuration and stop"),
    ],
    "finetune": [
        ("d2v finetune task=imagenet data.root=DIR checkpoint=RUN", "ImageNet, with the released recipe"),
        ("d2v finetune task=image_classification data.root=DIR checkpoint=RUN epochs=50", "any folder of classes"),
        ("d2v finetune task=glue/cola data.root=GLUE checkpoint=RUN", "one task of GLUE"),
        ("d2v finetune task=glue_all data.root=GLUE checkpoint=RUN", "all of them, learning rates and seeds swept"),
        ("d2v finetune task=librispeech/10h data.root=DIR checkpoint=RUN", "letters by CTC, from ten hours of labels"),
        (
            "d2v finetune task=imagenet data.root=DIR checkpoint=RUN data.label_fraction=0.1",
            "a tenth of the labels",
        ),
        (
            "d2v finetune task=imagenet data.root=DIR checkpoint=null model=data2vec2/image_base",
            "from scratch",
        ),
        (
            "d2v finetune task=imagenet data.root=DIR checkpoint=RUN resume=auto",
            "go on",
        ),
    ],
    "evaluate": [
        ("d2v evaluate checkpoint=RUN", "linear and kNN probes on the run's own data"),
        ("d2v evaluate checkpoint=RUN probe=knn probe.layers=average", "kNN on the average of all layers"),
        ("d2v evaluate checkpoint=FINETUNED", "score what was fine-tuned, on its own evaluation sets"),
        ("d2v evaluate checkpoint=FINETUNED decoder=beam decoder.lm=FILE", "transcripts, with a language model"),
        ("d2v evaluate checkpoint=RUN data=image_folder data.root=DIR", "on other data (DIR/train, DIR/val)"),
    ],
    "tokenizer": [
        ("d2v tokenizer train files=DIR vocab_size=32768 output=tokenizer.json", "on .txt files, a document a line"),
        ("d2v pretrain experiment=text_base data.root=DIR data.tokenizer=tokenizer.json", "then use it"),
    ],
    "extract": [
        ("d2v extract checkpoint=RUN output=features.safetensors", "mean patch token of the last layer"),
        ("d2v extract checkpoint=RUN output=features.npz layers=all pool=cls split=val", "CLS token of every layer"),
    ],
    "export": [
        ("d2v export checkpoint=RUN output=DIR", "the student, for d2v.load_encoder(DIR)"),
        ("d2v export checkpoint=RUN output=DIR network=teacher", "its moving average"),
        ("d2v export checkpoint=RUN output=DIR format=huggingface", "for AutoModel.from_pretrained(DIR)"),
        ("d2v export checkpoint=RUN output=DIR format=onnx", "for onnxruntime, compared with PyTorch"),
        (
            "d2v export checkpoint=RUN output=DIR format=fairseq",
            "student, teacher and decoder as the authors' code has",
        ),
    ],
    "import": [
        ("d2v import base_libri.pt output=DIR", "the authors' checkpoint, without fairseq"),
        ("d2v import facebook/data2vec-audio-base output=DIR", "a model of the Hugging Face Hub, or a folder of one"),
        ("d2v finetune task=ctc checkpoint=base_libri.pt data.root=DIR", "or use it as it is, wherever checkpoint= is"),
    ],
    "info": [("d2v info", "versions and hardware"), ("d2v info checkpoint=RUN", "what a checkpoint holds")],
}

GROUPS = {
    "pretrain": [
        "model",
        "mask",
        "data",
        "optim",
        "schedule",
        "ema",
        "trainer",
        "callbacks",
        "logger",
        "debug",
        "launcher",
    ],
    "finetune": ["task", "model", "data", "optim", "schedule", "trainer", "logger", "decoder", "launcher"],
    "evaluate": ["probe", "data", "decoder"],
    "extract": ["data"],
    "export": [],
    "import": [],
    "tokenizer": [],
    "info": [],
}

# The word that follows a command's name.
ACTIONS = {"tokenizer": ("train",)}


def main() -> None:
    """Entry point of the console script."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(general_help())
        return
    if arguments[0] in ("-V", "--version", "version"):
        print(f"d2v {__version__}")
        return
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        sys.exit(f"d2v: unknown command {command!r}.{hint} Commands: {', '.join(COMMANDS)}.")
    if any(argument in ("-h", "--help") for argument in rest):
        print(command_help(command))
        return
    actions = ACTIONS.get(command, ())
    if actions and (not rest or rest[0] not in actions):
        given = f" {rest[0]!r}" if rest else ""
        sys.exit(f"d2v {command}: unknown action{given}. Write d2v {command} {' or '.join(actions)} [key=value ...].")
    rest = rest[len(actions[:1]) :]
    if command == "import" and rest and ("=" not in rest[0] or Path(rest[0]).exists()):
        rest[0] = f"checkpoint={_quoted(rest[0])}"
    # A waiting OpenMP thread that spins takes the core from whoever works: costly wherever cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Lightning starts a process for every further device by running sys.argv anew: it must name a file that can be run.
    sys.argv = [str(Path(__file__).with_name(f"{command}.py")), *rest]
    sys.modules["__main__"].__spec__ = None  # and after "python -m d2v.cli.main" it would start that module instead
    launch = importlib.import_module("d2v.cli.launch")
    sys.exit(launch.run(command))


def _quoted(text: str) -> str:
    """For Hydra's grammar: the text as it is, whatever is in it."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # no reference
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text) + "'"


def general_help() -> str:
    """What ``d2v --help`` prints."""
    lines = [f"d2v {__version__}: pretrain data2vec encoders", "", "usage: d2v COMMAND [key=value ...]", ""]
    lines += [f"  {name:10} {text}" for name, text in COMMANDS.items()]
    lines += ["", "d2v COMMAND --help lists its configuration and examples; d2v --version prints the version."]
    return "\n".join(lines)


def command_help(command: str) -> str:
    """What ``d2v COMMAND --help`` prints: examples, experiments, groups and their options."""
    action = f" {ACTIONS[command][0]}" if command in ACTIONS else ""
    lines = [
        f"d2v {command}: {COMMANDS[command]}",
        "",
        f"usage: d2v {command}{action} [key=value ...]",
        "",
        "examples:",
    ]
    lines += [f"  {example}\n      {text}" for example, text in EXAMPLES[command]]
    if command == "pretrain":
        lines += ["", "experiments (experiment=NAME):"]
        lines += [f"  {name:14} {_about(_conf() / 'experiment' / f'{name}.yaml')}" for name in options("experiment")]
    if GROUPS[command]:
        lines += ["", "configuration groups (GROUP=OPTION):"]
        lines += [f"  {group:14} {', '.join(options(group))}" for group in GROUPS[command]]
    lines += [
        "",
        f"d2v {command} --cfg job prints every key with its value; --hydra-help shows Hydra's own options (multirun, "
        "launchers, completion).",
    ]
    return "\n".join(lines)


def options(group: str) -> list[str]:
    """The options of a configuration group."""
    folder = _conf() / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("[!_]*.yaml"))


def _conf() -> Path:
    spec = importlib.util.find_spec("d2v.conf")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _about(path: Path) -> str:
    """An experiment's own words: its third line, after its command and its package."""
    return path.read_text().splitlines()[2].removeprefix("#").strip()


if __name__ == "__main__":
    main()

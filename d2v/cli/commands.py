"""Table of the commands, one row each, for help, completion and the entry point."""

from __future__ import annotations

import importlib.util
import keyword
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        about: one line for the general help.
        examples: pairs of a command line and its purpose.
        groups: configuration groups of the command.
        actions: words of which one follows the command's name; () for none.
        positional: key of a first word without "="; None if every word needs one.
        experiments: whether experiment=NAME chooses a recipe.
    """

    about: str
    examples: tuple[tuple[str, str], ...]
    groups: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    positional: str | None = None
    experiments: bool = False


COMMANDS = {
    "pretrain": Command(
        "train an encoder by data2vec 2.0 or 1.0",
        (
            ("d2v pretrain", "the tiny recipe on the images that ship with d2v"),
            ("d2v pretrain experiment=image_base data=image_folder data.root=DIR", "ViT-B on your own images"),
            ("d2v pretrain experiment=speech_base data=audio_folder data.root=DIR", "on your own recordings"),
            ("d2v pretrain experiment=text_base data.root=DIR data.tokenizer=FILE", "on your own text files"),
            ("d2v pretrain trainer.max_steps=500 optim.lr=2e-3 seed=1", "override anything"),
            ("d2v pretrain -m seed=0,1,2", "several runs"),
            ("d2v pretrain resume=auto", "continue the newest run of this very command"),
            ("d2v pretrain init_from=PATH", "start a new run from a checkpoint's weights"),
            ("d2v pretrain callbacks=probe logger=wandb", "online probes, metrics in wandb"),
            ("d2v pretrain launcher=slurm trainer.devices=8", "a Slurm job; seed=0,1,2 makes an array"),
            ("d2v pretrain --cfg job", "print the configuration and stop"),
        ),
        groups=(
            "model",
            "mask",
            "data",
            "optim",
            "schedule",
            "ema",
            "curriculum",
            "trainer",
            "callbacks",
            "logger",
            "debug",
            "launcher",
        ),
        experiments=True,
    ),
    "finetune": Command(
        "train an encoder and a head on labels, and score them: ImageNet, GLUE, LibriSpeech",
        (
            ("d2v finetune task=imagenet data.root=DIR checkpoint=RUN", "ImageNet, with the released recipe"),
            ("d2v finetune task=image_classification data.root=DIR checkpoint=RUN epochs=50", "any folder of classes"),
            ("d2v finetune task=glue/cola data.root=GLUE checkpoint=RUN", "one task of GLUE"),
            ("d2v finetune task=glue_all data.root=GLUE checkpoint=RUN", "all of them, learning rates and seeds swept"),
            (
                "d2v finetune task=librispeech/10h data.root=DIR checkpoint=RUN",
                "letters by CTC, from ten hours of labels",
            ),
            (
                "d2v finetune task=imagenet data.root=DIR checkpoint=RUN data.label_fraction=0.1",
                "a tenth of the labels",
            ),
            ("d2v finetune task=imagenet data.root=DIR checkpoint=null model=data2vec2/image_base", "from scratch"),
            ("d2v finetune task=imagenet data.root=DIR checkpoint=RUN resume=auto", "go on"),
        ),
        groups=(
            "task",
            "model",
            "data",
            "optim",
            "schedule",
            "trainer",
            "logger",
            "decoder",
            "launcher",
        ),
    ),
    "evaluate": Command(
        "probe a frozen encoder beside its inputs and itself untrained; score a fine-tuned one",
        (
            ("d2v evaluate checkpoint=RUN", "linear and kNN probes on the run's own data"),
            ("d2v evaluate checkpoint=RUN probe=knn probe.layers=average", "kNN on the average of all layers"),
            ("d2v evaluate 'checkpoint=[RUN_A,RUN_B]'", "several checkpoints in one table"),
            ("d2v evaluate checkpoint=FINETUNED", "score what was fine-tuned, on its own evaluation sets"),
            ("d2v evaluate checkpoint=FINETUNED decoder=beam decoder.lm=FILE", "transcripts, with a language model"),
            ("d2v evaluate checkpoint=RUN data=image_folder data.root=DIR", "on other data (DIR/train, DIR/val)"),
        ),
        groups=(
            "probe",
            "data",
            "decoder",
        ),
    ),
    "extract": Command(
        "write features to .safetensors or .npz",
        (
            ("d2v extract checkpoint=RUN output=features.safetensors", "mean patch token of the last layer"),
            (
                "d2v extract checkpoint=RUN output=features.npz layers=all pool=cls split=val",
                "CLS token of every layer",
            ),
        ),
        groups=("data",),
    ),
    "export": Command(
        "write an encoder for d2v, transformers, ONNX or the authors' code",
        (
            ("d2v export checkpoint=RUN output=DIR", "the student, for d2v.load_encoder(DIR)"),
            ("d2v export checkpoint=RUN output=DIR network=teacher", "its moving average"),
            ("d2v export checkpoint=RUN output=DIR format=huggingface", "for AutoModel.from_pretrained(DIR)"),
            ("d2v export checkpoint=RUN output=DIR format=onnx", "for onnxruntime, compared with PyTorch"),
            (
                "d2v export checkpoint=RUN output=DIR format=fairseq",
                "student, teacher and decoder as the authors' code has",
            ),
        ),
    ),
    "import": Command(
        "read a checkpoint of the authors' code or of Hugging Face's",
        (
            ("d2v import base_libri.pt output=DIR", "the authors' checkpoint, without fairseq"),
            (
                "d2v import facebook/data2vec-audio-base output=DIR",
                "a model of the Hugging Face Hub, or a folder of one",
            ),
            (
                "d2v finetune task=ctc_base checkpoint=base_libri.pt data.root=DIR",
                "or use it as it is, wherever checkpoint= is",
            ),
        ),
        positional="checkpoint",
    ),
    "tokenizer": Command(
        "train a byte-level BPE for text",
        (
            (
                "d2v tokenizer train files=DIR vocab_size=32768 output=tokenizer.json",
                "on .txt files, a document a line",
            ),
            ("d2v pretrain experiment=text_base data.root=DIR data.tokenizer=tokenizer.json", "then use it"),
        ),
        actions=("train",),
    ),
    "check": Command(
        "read a whole data set before training: sizes, formats, classes, mean and std, bad files",
        (
            ("d2v check data=image_folder data.root=DIR", "images"),
            ("d2v check data=audio_folder data.root=DIR report=bad.txt", "recordings; all bad files into a list"),
            ("d2v check data=text_files data.root=DIR data.tokenizer=FILE", "text"),
        ),
        groups=("data",),
    ),
    "runs": Command(
        "list runs: how far they are, how they ended, their loss and best score",
        (
            ("d2v runs", "those below outputs"),
            ("d2v runs output_dir=DIR", "those below another folder"),
            ("d2v evaluate checkpoint=latest", "the newest one, wherever checkpoint= or init_from= stands"),
        ),
    ),
    "info": Command(
        "show versions, hardware and what a checkpoint holds",
        (
            ("d2v info", "versions and hardware"),
            ("d2v info checkpoint=RUN", "what a checkpoint holds"),
        ),
    ),
}


def module_of(command: str) -> str:
    """Return the dotted name of a command's module, which holds a function with the same last name."""
    return f"d2v.cli.{command}_" if keyword.iskeyword(command) else f"d2v.cli.{command}"


def configuration_folder() -> Path:
    """Return the folder of the package d2v.conf."""
    spec = importlib.util.find_spec("d2v.conf")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@cache
def groups() -> frozenset[str]:
    """Return the names of the configuration groups."""
    return frozenset(path.name for path in configuration_folder().iterdir() if path.is_dir())


def options(group: str) -> list[str]:
    """Return the options of a configuration group."""
    folder = configuration_folder() / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("[!_]*.yaml"))

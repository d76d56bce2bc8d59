"""Keys of every command, with their types and ranges; the defaults are in conf/COMMAND.yaml only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from d2v.arguments import check_arguments, parameters, returned_by
from d2v.cli.commands import options
from d2v.cli.keys import argument_keys
from d2v.errors import naming_keys
from d2v.interop.build import build, check_node, check_settings, part_named
from d2v.values import (
    Count,
    Fraction,
    Length,
    Node,
    NodeOf,
    PathStr,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    PositiveSteps,
    Range,
    Rate,
    Seed,
    Steps,
    VocabSize,
)

S = TypeVar("S")

Auto = Literal["auto"]
Network = Literal["student", "teacher"]
Workers = Annotated[int, Range(0, 1024)]
Threads = Annotated[int, Range(1, 4096)]
BatchSize = Annotated[float, Range(1, 10**9)]  # seconds, or a whole number of samples: the data know
Callbacks = Mapping[str, Annotated[Any, NodeOf(("run_dir", "data"))] | None]
Schedule = Annotated[Any, NodeOf(defaults=("max_steps",))]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Settings of a command about the machine.

    Attributes:
        num_workers: number of data workers.
        num_threads: compute threads of this process.
    """

    num_workers: Auto | Workers
    num_threads: Auto | Threads


@dataclass(frozen=True, kw_only=True)
class Training(Machine):
    """Keys that pretraining and fine-tuning share; conf/pretrain.yaml explains them."""

    data: Node = None  # None to fine-tune a trained encoder, which says how they are read
    optim: Node
    schedule: Schedule
    trainer: Mapping[str, Any]
    callbacks: Callbacks
    logger: Callbacks
    seed: Seed
    global_batch_size: BatchSize
    micro_batch_size: BatchSize | None
    compile: bool
    activation_checkpointing: bool
    resume: PathStr | None
    resume_with_other_data: bool
    output_dir: PathStr
    name: str | None
    run_dir: PathStr

    def check(self) -> None:
        """Raise ValueError for unsupported settings of the trainer, and for a name that is a path."""
        if self.name is not None and (PurePath(self.name).is_absolute() or ".." in PurePath(self.name).parts):
            raise ValueError(
                f"name={self.name}: leads out of output_dir; give a plain name, and the folder by output_dir"
            )
        from d2v.lit.trainer import TrainerOptions, check_trainer  # only commands that train import Lightning

        with naming_keys({name: f"trainer.{name}" for name in (*parameters(TrainerOptions), *self.trainer)}):
            check_trainer(self.trainer)


@dataclass(frozen=True, kw_only=True)
class Pretrain(Training):
    """Keys of ``d2v pretrain``."""

    model: Node
    mask: Node = None
    ema: Node
    curriculum: Schedule | None = None
    init_from: PathStr | None
    init_samples: Count

    @property
    def masks(self) -> Any:
        """Node of the masks; None after ``~mask``, even if an experiment sets keys of it."""
        return self.mask if isinstance(self.mask, Mapping) and "_target_" in self.mask else None


def with_left_out(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration of pretraining with null for a group that was left out, so that a resumed run keeps it."""
    return {"mask": None, "curriculum": None} | config


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Settings of an encoder that may differ from those in pretraining."""

    drop_rate: Rate | None = None
    attn_drop_rate: Rate | None = None
    mlp_drop_rate: Rate | None = None
    post_mlp_drop_rate: Rate | None = None
    drop_path_rate: Rate | None = None
    layer_drop_rate: Rate | None = None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Several fine-tuning runs."""

    tasks: list[str] | None
    lrs: list[PositiveFloat] | None
    seeds: list[Seed] | None
    report: Literal["mean", "median"]


@dataclass(frozen=True, kw_only=True)
class Finetune(Training):
    """Keys of ``d2v finetune``; conf/finetune.yaml explains them."""

    model: Node = None
    task: Annotated[Any, NodeOf(("labels",))]
    task_name: str
    head: Annotated[Any, NodeOf(("embed_dim", "num_outputs"))]
    encoder: Encoder
    labels: Mapping[str, Any]
    feature_mask: Node
    decoder: Annotated[Any, NodeOf(("letters",))] = None
    checkpoint: PathStr | None
    network: Network
    train_frontend: bool
    freeze_steps: Steps
    ema_decay: Fraction | None
    label_seed: Seed | None
    label_fraction: PositiveFraction = 1.0
    epochs: Annotated[float, Range(0, 10**6, above=True)] | None
    min_steps_per_epoch: PositiveInt | None
    sweep: Sweep

    def check(self) -> None:
        """Raise ValueError for labels that data of this kind do not know, too."""
        super().check()
        target = None if self.data is None else self.data["_target_"]
        finetune = None if target is None else getattr(returned_by(part_named(target)), "finetune", None)
        if finetune is not None:
            filled = ("self", "seed", "label_fraction")
            check_arguments(finetune, self.labels, "labels", _check_users_node, filled=filled)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Settings of probes; conf/probe/all.yaml explains the keys."""

    knn: bool
    linear: bool
    ctc: bool
    layers: Literal["last", "average", "concat"] | Count
    pool: Literal["mean", "mean_std", "cls"]
    k: PositiveInt
    temperature: PositiveFloat
    c_grid: list[PositiveFloat]
    ctc_epochs: PositiveSteps


@dataclass(frozen=True, kw_only=True)
class Evaluate(Machine):
    """Keys of ``d2v evaluate``; conf/evaluate.yaml explains them."""

    probe: Probe
    data: Node = None
    decoder: Annotated[Any, NodeOf(("letters",))] = None
    checkpoint: PathStr | Annotated[list[PathStr], Length()]
    network: Network
    seed: Seed
    batch_size: Auto | PositiveInt
    precision: Literal["auto", "32-true", "bf16-mixed"]
    baselines: bool
    output_dir: PathStr
    name: str | None
    run_dir: PathStr


@dataclass(frozen=True, kw_only=True)
class Extract(Machine):
    """Keys of ``d2v extract``; conf/extract.yaml explains them."""

    data: Node = None
    checkpoint: PathStr
    output_dir: PathStr
    output: PathStr
    network: Network
    split: Literal["auto", "train", "val"]
    layers: Literal["last", "average", "concat", "all"] | Count
    pool: Literal["mean", "mean_std", "cls", "none"]
    batch_size: Auto | PositiveInt


@dataclass(frozen=True, kw_only=True)
class Export:
    """Keys of ``d2v export``; conf/export.yaml explains them."""

    checkpoint: PathStr
    output_dir: PathStr
    output: PathStr
    format: Literal["safetensors", "huggingface", "onnx", "fairseq"]
    network: Network


@dataclass(frozen=True, kw_only=True)
class Import:
    """Keys of ``d2v import``."""

    checkpoint: PathStr
    output_dir: PathStr
    output: PathStr
    network: Network


@dataclass(frozen=True, kw_only=True)
class Info:
    """Keys of ``d2v info``."""

    checkpoint: PathStr | None
    output_dir: PathStr


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Keys of ``d2v tokenizer train``."""

    files: PathStr
    output: PathStr
    vocab_size: VocabSize
    document: Literal["line", "file"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """Keys of ``d2v check``."""

    data: Node
    report: PathStr | None
    show: Count


def _check_users_node(value: Any, wanted: Any, key: str) -> None:
    check_node(value, wanted, key=key, trusted=True)


def plain(cfg: DictConfig, *, without: Iterable[str] = ()) -> dict[str, Any]:
    """Return a configuration as plain containers, with every reference resolved.

    Args:
        cfg: composed configuration.
        without: keys to leave out, because their references cannot be resolved yet.

    Raises:
        MissingMandatoryValue: a value is missing.
    """
    return {str(key): plain_value(cfg[key]) for key in cfg if key not in set(without)}


def check_modality(cfg: DictConfig) -> None:
    """Raise ValueError if data and model of a composed configuration are of different modalities.

    The model's references to the inputs of data could not be resolved.
    """
    target = OmegaConf.select(cfg, "data._target_")
    frontends = OmegaConf.select(cfg, "model.encoder.frontends")
    modality = None if target is None else getattr(returned_by(part_named(target)), "modality", None)
    if modality is None or frontends is None or modality in frontends:
        return
    raise ValueError(
        f"the data are {modality}, but the model reads {', '.join(frontends)}: choose both by an experiment, one of "
        f"{', '.join(options('experiment'))}, or set data=... and model=... to fit"
    )


def inputs_of(data: Any, node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the form of the inputs, which a checkpoint keeps: plain values, the content of a tokenizer among them.

    Args:
        data: a data set, which names the keys by ``input_keys``.
        node: configuration that it was built from.
    """
    inputs = {key: node[key] for key in getattr(data, "input_keys", ()) if key in node}
    return inputs | {key: value for key, value in data.assets().items() if key in inputs}


def plain_value(value: Any) -> Any:
    """Return a value of a configuration as plain containers, with every reference resolved."""
    is_config = OmegaConf.is_config(value)
    return OmegaConf.to_container(value, resolve=True, throw_on_missing=True) if is_config else value


def checked(schema: type[S], settings: Mapping[str, Any], key: str = "") -> S:
    """Return a composed configuration as a command's settings, after a check of all types and ranges.

    Raises:
        ValueError: a value is invalid; the message names the first such key, its value and valid values.
    """
    check_settings(schema, settings, key, trusted=True)
    known = parameters(schema)
    made = schema(
        **{
            name: known[name].annotation(**value) if is_dataclass(known[name].annotation) else value
            for name, value in settings.items()
        }
    )
    if isinstance(made, Training):
        made.check()
    return made


def build_each(nodes: Mapping[str, Any], key: str, given: Mapping[str, Any]) -> list[Any]:
    """Build the objects of several nodes, in order; null nodes are skipped."""
    return [build(node, given, key=f"{key}.{name}", trusted=True) for name, node in nodes.items() if node is not None]


def built(cfg: DictConfig, key: str, **given: Any) -> Any:
    """Build the object of a part of a composed configuration, for scripts and notebooks.

    Args:
        cfg: whole configuration.
        key: of the part, such as "model".
        **given: arguments in place of those that are null or missing.

    Raises:
        ValueError: an argument is invalid; the message names its key.
    """
    values: dict[str, Any] = plain_value(cfg[key])
    values = {name: value for name, value in values.items() if value is not None or name not in given}
    with naming_keys(argument_keys(cfg)):
        return build(values, given, key=key, trusted=True)


def build_schedule(node: Mapping[str, Any], max_steps: int, key: str = "schedule") -> Any:
    """Return a function of the optimizer step, over ``max_steps`` unless the node says how many."""
    given = {} if node.get("max_steps") is not None else {"max_steps": max_steps}
    plain_node = {name: value for name, value in node.items() if name not in given}
    return build(plain_node, given, key=key, trusted=True)


def is_given(key: str) -> bool:
    """Return whether the command line sets a key."""
    return key in {o.lstrip("+~").partition("=")[0] for o in HydraConfig.get().overrides.task}

"""Training and evaluation from Python: the configuration of a command by keyword arguments.

    run = d2v.pretrain(experiment="image_tiny", trainer={"max_steps": 200})

Keys, values and defaults are those of the command line. Choose a group's option by name (``data="image_folder"``), set
keys of a section by a mapping (``optim={"lr": 1e-3}``), or set any key by its full name in the first argument
(``{"data.root": DIR}``). Nothing heavy is imported before a function is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from d2v.nn.encoder import Encoder
    from d2v.runs.results import Row


@dataclass(frozen=True)
class Run:
    """Finished run: its folder, metrics, results and encoder.

    Attributes:
        folder: folder of the run, with configuration, metrics, results and checkpoints.
        checkpoint: file or folder from which ``encoder`` is read.
    """

    folder: Path
    checkpoint: Path

    @cached_property
    def metrics(self) -> dict[str, list[float | None]]:
        """Columns of ``metrics.csv`` by name, None where a metric was not logged; of an evaluation, its scores."""
        from d2v.runs.metrics import METRICS, read_metrics

        path = self.folder / METRICS
        if path.is_file():
            return read_metrics(path)
        names = dict.fromkeys(name for row in self.results for name in row.scores)
        return {name: [row.scores.get(name) for row in self.results] for name in names}

    @cached_property
    def results(self) -> list[Row]:
        """Rows of ``results.json``, one for each model and evaluation set; [] after pretraining."""
        from d2v.runs.results import read_results

        results = read_results(self.folder)
        return [] if results is None else list(results.rows)

    @cached_property
    def encoder(self) -> Encoder:
        """Student, or fine-tuned encoder, in eval mode."""
        from d2v.interop.checkpoints import load_encoder

        return load_encoder(self.checkpoint)


def pretrain(config: Mapping[str, Any] | None = None, /, **settings: Any) -> Run:
    """Pretrain an encoder, like ``d2v pretrain``.

    Args:
        config: settings by full key, such as ``{"data.root": DIR}``.
        settings: settings by group, section or key.

    Returns:
        The run: its folder, metrics and encoder.

    Raises:
        ValueError: a setting, the data or a checkpoint is invalid; the message is that of the command line.
    """
    from d2v.cli.python import call

    folder = call("pretrain", {**(config or {}), **settings})
    return Run(folder, folder)


def finetune(config: Mapping[str, Any] | None = None, /, **settings: Any) -> Run:
    """Train an encoder and a head on labels and score them, like ``d2v finetune``.

    Arguments, result and errors are those of :func:`pretrain`. Sweeps are for the command line only.
    """
    from d2v.cli.python import call

    folder = call("finetune", {**(config or {}), **settings})
    return Run(folder, folder)


def evaluate(config: Mapping[str, Any] | None = None, /, **settings: Any) -> Run:
    """Probe an encoder, or score a fine-tuned model, like ``d2v evaluate``.

    Arguments, result and errors are those of :func:`pretrain`; ``checkpoint`` is required.
    """
    from d2v.cli.python import call

    given = {**(config or {}), **settings}
    folder = call("evaluate", given)
    return Run(folder, Path(str(given["checkpoint"])))

"""Training and evaluation from Python: the configuration of a command by keyword arguments.

    run = d2v.pretrain(experiment="image_tiny", trainer={"max_steps": 200})

Keys, values and defaults are those of the command line: a group's option by its name (``data="image_folder"``), a
section by a mapping (``optim={"lr": 1e-3}``), a key of a group whose option is chosen by its full name in the first
argument (``{"data.root": DIR}``). Nothing heavy is imported before a function is called.
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
    """Result of a call: its folder, metrics and encoder.

    Attributes:
        folder: of the run: configuration, metrics, results, checkpoints.
        checkpoint: what ``encoder`` is read from.
    """

    folder: Path
    checkpoint: Path

    @cached_property
    def metrics(self) -> dict[str, list[float | None]]:
        """Columns of ``metrics.csv``, None where a metric was not logged; of an evaluation, those of its scores."""
        from d2v.runs.metrics import METRICS, read_metrics

        path = self.folder / METRICS
        if path.is_file():
            return read_metrics(path)
        names = dict.fromkeys(name for row in self.results for name in row.scores)
        return {name: [row.scores.get(name) for row in self.results] for name in names}

    @cached_property
    def results(self) -> list[Row]:
        """Rows of ``results.json``: scores by model and evaluation set; [] of pretraining."""
        from d2v.runs.results import read_results

        found = read_results(self.folder)
        return [] if found is None else list(found.rows)

    @cached_property
    def encoder(self) -> Encoder:
        """The student, or the fine-tuned encoder, in eval mode."""
        from d2v.interop.checkpoints import load_encoder

        return load_encoder(self.checkpoint)


def pretrain(config: Mapping[str, Any] | None = None, /, **settings: Any) -> Run:
    """Train an encoder, as ``d2v pretrain`` does.

    Args:
        config: settings by key.
        settings: more of them.

    Returns:
        The run: its folder, metrics and encoder.

    Raises:
        ValueError: a setting, the data or a checkpoint is wrong, in the words of the command line.
    """
    from d2v.cli.python import call

    folder = call("pretrain", {**(config or {}), **settings})
    return Run(folder, folder)


def finetune(config: Mapping[str, Any] | None = None, /, **settings: Any) -> Run:
    """Train an encoder and a head on labels and score them, as ``d2v finetune`` does.

    Arguments, result and errors are those of :func:`pretrain`. A sweep is for the command line.
    """
    from d2v.cli.python import call

    folder = call("finetune", {**(config or {}), **settings})
    return Run(folder, folder)


def evaluate(config: Mapping[str, Any] | None = None, /, **settings: Any) -> Run:
    """Probe an encoder, or score a fine-tuned model, as ``d2v evaluate`` does.

    Arguments, result and errors are those of :func:`pretrain`; ``checkpoint`` must be given.
    """
    from d2v.cli.python import call

    given = {**(config or {}), **settings}
    folder = call("evaluate", given)
    return Run(folder, Path(str(given["checkpoint"])))

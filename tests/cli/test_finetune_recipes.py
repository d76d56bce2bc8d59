"""Every published recipe for fine-tuning takes a step, on small encoders and files in the layouts that users have."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from d2v.runs.results import read_results

CONF = Path(__file__).parents[2] / "conf" / "task"
# Each task's folder, columns, labels by turns, and the columns of its test files.
GLUE = {
    "cola": ("CoLA", None, "gj04\t{y}\t\tthe {x} runs", ["0", "1"], "index\tsentence"),
    "sst2": ("SST-2", "sentence\tlabel", "the {x} runs\t{y}", ["0", "1"], "index\tsentence"),
    "mrpc": ("MRPC", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "{y}\t1\t2\tthe {x} runs\ta {x} runs", ["0", "1"],
             "index\t#1 ID\t#2 ID\t#1 String\t#2 String"),
    "stsb": ("STS-B", "index\tsentence1\tsentence2\tscore", "{i}\tthe {x} runs\ta {x} runs\t{y}", ["0.5", "4.25"],
             "index\tsentence1\tsentence2"),
    "qqp": ("QQP", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "{i}\t1\t2\tthe {x} runs\ta {x}\t{y}",
            ["0", "1"], "id\tquestion1\tquestion2"),
    "mnli": ("MNLI", "index\tsentence1\tsentence2\tgold_label", "{i}\tthe {x} runs\ta {x} runs\t{y}",
             ["entailment", "neutral", "contradiction"], "index\tsentence1\tsentence2"),
    "qnli": ("QNLI", "index\tquestion\tsentence\tlabel", "{i}\tthe {x} runs\ta {x} runs\t{y}",
             ["entailment", "not_entailment"], "index\tquestion\tsentence"),
    "rte": ("RTE", "index\tsentence1\tsentence2\tlabel", "{i}\tthe {x} runs\ta {x} runs\t{y}",
            ["entailment", "not_entailment"], "index\tsentence1\tsentence2"),
    "wnli": ("WNLI", "index\tsentence1\tsentence2\tlabel", "{i}\tthe {x} runs\ta {x} runs\t{y}", ["0", "1"],
             "index\tsentence1\tsentence2"),
}  # fmt: skip
SMALL = [
    "trainer.max_steps=1", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.log_every_n_steps=1",
    "num_threads=1", "global_batch_size=6",
]  # fmt: skip


def write_glue(root: Path) -> Path:
    """Six rows of training, development and test data of every task."""
    for folder, header, row, labels, test_header in GLUE.values():
        (root / folder).mkdir(parents=True)
        rows = [row.format(i=i, x=("cat", "dog")[i % 2], y=labels[i % len(labels)]) for i in range(6)]
        tests = ["\t".join([str(i), *["the cat runs"] * test_header.count("\t")]) for i in range(6)]
        kinds = ("_matched", "_mismatched") if folder == "MNLI" else ("",)
        for name in ("train", *(f"dev{kind}" for kind in kinds)):
            (root / folder / f"{name}.tsv").write_text("\n".join([*([header] if header else []), *rows, ""]))
        for kind in kinds:
            (root / folder / f"test{kind}.tsv").write_text("\n".join([test_header, *tests, ""]))
    return root


@pytest.fixture(scope="module")
def overrides_for(
    runs: ModuleType, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], list[str]]:
    """Of a task: a small pretrained encoder of its modality, and small data."""
    root = tmp_path_factory.mktemp("recipes")
    common = ["num_threads=1", "trainer.accelerator=cpu", "trainer.precision=32-true", "callbacks.health=null",
              "trainer.max_steps=1", "schedule.warmup_steps=1"]  # fmt: skip
    made: dict[str, list[str]] = {}

    def image() -> list[str]:
        run = runs.pretrain(root / "image", *runs.folder_data(images), "trainer.max_steps=1")
        return [*runs.folder_data(images)[1:], f"checkpoint={run}"]

    def speech() -> list[str]:
        for part in ("train-clean-100", "train-clean-360", "train-other-500", "dev-clean"):
            runs.librispeech(root / "speech", part=part)
        run = root / "speech-run"
        result = runs.d2v_command(
            "pretrain", f"hydra.run.dir={run}", "experiment=speech_tiny", *runs.SMALL["speech"], *common,
            "data=librispeech", f"data.root={root / 'speech'}", "data.train=train-clean-100", "data.val=null",
            "data.probe_train=null", "global_batch_size=12",
        )  # fmt: skip
        assert result.status in (0, None), result.err
        return [f"data.root={root / 'speech'}", f"checkpoint={run}", "feature_mask.channel_length=4", "freeze_steps=0"]

    def text() -> list[str]:
        run = root / "text-run"
        result = runs.d2v_command(
            "pretrain", f"hydra.run.dir={run}", "experiment=text_tiny", *runs.SMALL["text"], *common,
            "data=text_files", f"data.root={runs.text_file(root / 'corpus.txt')}", "data.vocab_size=300",
            f"data.cache={root / 'cache'}",
        )  # fmt: skip
        assert result.status in (0, None), result.err
        return [f"data.root={write_glue(root / 'glue')}", f"checkpoint={run}"]

    def overrides(task: str) -> list[str]:
        make = text if task.startswith("glue") else speech if task.startswith(("librispeech", "ctc")) else image
        if make.__name__ not in made:
            made[make.__name__] = make()
        return made[make.__name__]

    return overrides


TASKS = [
    str(path.relative_to(CONF).with_suffix(""))
    for path in sorted(CONF.rglob("*.yaml"))
    # glue_all is a sweep over the others; recipes for sounds take their steps in e2e/test_sounds.py
    if not path.name.startswith(("_", "audio_")) and path.stem != "glue_all"
]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_recipe_takes_a_step(
    runs: ModuleType, overrides_for: Callable[[str], list[str]], tmp_path: Path, task: str
) -> None:
    run = tmp_path / "run"
    result = runs.d2v_command("finetune", f"hydra.run.dir={run}", f"task={task}", *overrides_for(task), *SMALL)
    assert result.status in (0, None), result.err
    (row,) = runs.metrics(run)
    assert math.isfinite(float(row["train/loss"]))
    assert float(row["train/grad_norm"]) > 0
    results = read_results(run)
    assert results is not None
    assert results.row("val").metric in results.row("val").scores

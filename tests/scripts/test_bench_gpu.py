"""The benchmark of a GPU keeps its budget, names what failed or was left out, and runs on a CPU in short."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def parts() -> Any:
    return importlib.import_module("parts")


@pytest.fixture(scope="module")
def bench() -> Any:
    return importlib.import_module("gpu")


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def _part(parts: Any, name: str, code: str, at_least: float = 0.0, at_most: float = 60.0) -> Any:
    return parts.Part(name, lambda commands: {"said": commands.run(_python(code)).strip()}, at_least, at_most)


def test_a_part_that_fails_stops_no_other_and_what_does_not_fit_is_left_out(parts: Any) -> None:
    reported: list[list[str]] = []
    plan = [
        _part(parts, "good", "print('yes')"),
        _part(parts, "bad", "import sys; sys.exit('no such thing')"),
        _part(parts, "long", "print('never')", at_least=1000.0),
        _part(parts, "last", "print('also')"),
    ]
    outcomes = parts.run_parts(plan, 60.0, lambda them: reported.append([one.part for one in them]))
    assert [one.status for one in outcomes] == ["measured", "failed", "left out", "measured"]
    assert [one.result for one in outcomes] == [{"said": "yes"}, {}, {}, {"said": "also"}]
    assert "exit status 1" in outcomes[1].reason
    assert "no such thing" in outcomes[1].reason
    assert "needs 1000 s, of the budget of 60 s" in outcomes[2].reason
    assert reported == [["good"], ["good", "bad"], ["good", "bad", "long"], ["good", "bad", "long", "last"]]


def test_a_part_that_does_not_apply_is_left_out(parts: Any) -> None:
    def measure(commands: Any) -> Any:
        raise parts.LeftOutError("needs a GPU")

    (outcome,) = parts.run_parts([parts.Part("part", measure, 0.0, 1.0)], 60.0, lambda them: None)
    assert (outcome.status, outcome.reason) == ("left out", "needs a GPU")


@pytest.mark.parametrize(
    ("budget", "at_most", "status", "reason"),
    [(60.0, 1.0, "failed", "took longer than 1 s"), (1.0, 60.0, "left out", "the budget of 1 s ended")],
)
def test_a_part_is_stopped_with_its_children(
    parts: Any, tmp_path: Path, budget: float, at_most: float, status: str, reason: str
) -> None:
    pid = tmp_path / "pid"
    child = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(100)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    (outcome,) = parts.run_parts([_part(parts, "part", code, at_most=at_most)], budget, lambda them: None)
    assert outcome.status == status
    assert reason in outcome.reason
    if pid.exists():
        for _ in range(50):  # until the system has collected it
            if not _runs(int(pid.read_text())):
                break
            time.sleep(0.1)
        else:
            pytest.fail("the child of a stopped command still runs")


def test_a_benchmark_that_is_ended_ends_its_commands(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    child = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(100)"
    scripts = str(Path(importlib.import_module("parts").__file__ or "").parent)
    code = (
        f"import sys; sys.path.append({scripts!r}); import parts; parts.end_with_commands(); "
        f"parts.Commands().run([sys.executable, '-c', {child!r}])"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as process:
        for _ in range(600):
            if pid.exists() and pid.read_text():
                break
            time.sleep(0.1)
        process.terminate()
        assert process.wait() == 128 + signal.SIGTERM
    for _ in range(50):
        if not _runs(int(pid.read_text())):
            return
        time.sleep(0.1)
    pytest.fail("the command still runs")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_batch_is_halved_until_it_fits(bench: Any) -> None:
    from parts import CommandError

    class Full:
        tried: list[int]

        def __init__(self) -> None:
            self.tried = []

        def run(self, command: list[str], environment: dict[str, str]) -> str:
            self.tried.append(json.loads(command[-1])["batch"])
            if self.tried[-1] > 8:
                raise CommandError("exit status 1: step.py\ntorch.OutOfMemoryError: CUDA out of memory")
            return json.dumps({"batch": self.tried[-1]})

    commands = Full()
    assert bench.step(bench.Case("image_base", batch=32), commands) == {"batch": 8}
    assert commands.tried == [32, 16, 8]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("short", [True, False])
def test_every_recipe_of_the_plan_is_measured(bench: Any, tmp_path: Path, device: str, short: bool) -> None:
    from common import compose_recipe

    names = [part.name for part in bench.plan(device, short, tmp_path)]
    assert len(set(names)) == len(names)
    for recipe in bench.TINY if short else bench.RECIPES:
        assert f"step of {recipe}" in names
        assert (f"compiled step of {recipe}" in names) != short
        assert compose_recipe(recipe).model
    assert sum(name.startswith("loading") for name in names) == 3
    assert "tests marked gpu" in names


def test_the_report_compares_loader_and_step_and_names_what_failed(parts: Any) -> None:
    def spread(value: float) -> dict[str, float]:
        return {"median": value, "min": value, "max": value}

    step = {
        "recipe": "speech_base", "compiled": False, "batch": 4, "masks": 8, "inputs": [4, 1000],
        "seconds": {"step": spread(0.5)}, "flops_per_s": spread(2e12), "share_of_square": spread(0.25),
        "share_of_gemm": spread(0.5), "memory": {"peak": 3e9},
    }  # fmt: skip
    loaded = {
        "recipe": "speech_base", "data": "Clips", "workers": 2, "samples_per_s": {"2": spread(48.0)},
        "values_per_s": {"2": spread(12000.0)},
    }  # fmt: skip
    outcomes = [
        parts.Outcome("a", "measured", 1.0, result=step),
        parts.Outcome("b", "measured", 1.0, result=loaded),
        parts.Outcome("tests marked gpu", "failed", 1.0, "CommandError: exit status 1\nE  assert 0"),
        parts.Outcome("c", "left out", reason="needs 30 s"),
    ]
    facts = {"cpu": "CPU", "threads": 2, "gpu": None, "torch": "2", "revision": "abc", "platform": "Linux"}
    text = importlib.import_module("gpu_report").report(facts, "cpu", outcomes)
    squeezed = " ".join(text.split())
    assert "| speech_base | 4 x 8 | 500 | 500-500 | 8.0 | 2.00 | 25% | 50% | 3.00 |" in squeezed
    assert "| speech_base | Clips | 2 | 48 | 8 | 1.50 |" in squeezed  # 12,000 values over 4,000 in half a second
    assert (
        "## Failed - tests marked gpu: CommandError: exit status 1 E assert 0 ## Left out - c: needs 30 s" in squeezed
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_short_form_on_a_cpu(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["gpu.py", "--short", "--device", "cpu", "--budget", "550", "--output", str(tmp_path)]
    )
    assert bench.main() == 0
    content = json.loads((tmp_path / "gpu.json").read_text())
    status = {part["part"]: part["status"] for part in content["parts"]}
    assert status.pop("tests marked gpu") == "left out"
    assert set(status.values()) == {"measured"}
    text = (tmp_path / "gpu.md").read_text()
    for heading in ("Training steps", "Loading", "What short runs learn", "Left out"):
        assert f"## {heading}" in text
    assert "needs a GPU" in text


@pytest.mark.slow
def test_a_failure_is_in_the_files_and_in_the_exit_status(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(*_: Any) -> list[Any]:
        return [bench.Part("step of image_tiny", lambda commands: bench.step(case, commands), 0.0, 100.0)]

    case = bench.Case("image_tiny", batch=2, overrides=["model.encoder.embed_dim=30"])
    monkeypatch.setattr(bench, "plan", plan)
    monkeypatch.setattr("sys.argv", ["gpu.py", "--device", "cpu", "--output", str(tmp_path)])
    assert bench.main() == 1
    assert "model.encoder.embed_dim=30" in (tmp_path / "gpu.md").read_text()

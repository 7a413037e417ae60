"""The example programs in plain Python: what the comparisons with terra-run rest on."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = (
    "mlp", "dropblock", "dcgan", "resnet50", "sdpoint", "yolov3", "faster_rcnn",
    "gpt2", "bert_qa", "bert_cls", "music_transformer",
)  # fmt: skip


def run(program, *options):
    command = [sys.executable, str(ROOT / "programs" / f"{program}.py"), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("program", PROGRAMS)
def test_prints_and_writes_everything(program, tmp_path):
    timings, variables = tmp_path / "timings.json", tmp_path / "variables.npz"
    done = run(program, "--steps", 3, "--timings", timings, "--save", variables)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    losses = lines[lines.index("all losses:") + 1 : -1]
    assert [line.split()[0] for line in losses] == ["0", "1", "2"]
    assert all(np.isfinite(float(word)) for line in losses for word in line.split()[2::2])
    assert len(json.loads(timings.read_text())) == 3
    with np.load(variables) as saved:
        assert lines[-1].startswith(f"{len(saved.files)} variables, sha256 ")


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_same_seed_same_text(program):
    first, second, other = (run(program, "--steps", 60, "--seed", seed).stdout for seed in (1, 1, 2))
    assert first.splitlines()[-1].split()[1:3] == ["variables,", "sha256"]
    assert first == second
    assert first != other


def test_bad_option_is_a_usage_error():
    done = run("mlp", "--steps", 0)
    assert done.returncode == 2
    assert "--steps must be at least 1" in done.stderr

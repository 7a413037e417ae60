"""The example programs: what they leave, and that co-execution changes nothing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("mlp", "keras_mlp", "dropblock", "dcgan", "resnet50", "faster_rcnn", "gpt2")
"""The others take longer than these together: `make check` has them all."""
STEPS = 40


def run(program, *options):
    script = [str(ROOT / "programs" / f"{program}.py"), *map(str, options)]
    return subprocess.run([sys.executable, *script], capture_output=True, text=True, timeout=280)


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_check_at_tiny_scale(program, tmp_path):
    """Identical in every value that reached Python, and co-executed: what `make check` asks of longer runs."""
    found, script = tmp_path / "found.json", ROOT / "programs" / f"{program}.py"
    words = ["check", str(script), "--steps", str(STEPS), "--json", str(found)]
    done = subprocess.run(
        [sys.executable, "-m", "terra_cx", *words], capture_output=True, text=True, timeout=420
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = json.loads(found.read_text())["programs"]
    assert result["outcome"] == "identical"
    assert result["internal_errors"] == 0
    assert result["regions"]["co_executed"] >= STEPS // 4, result["fallbacks"]


def test_what_a_program_leaves(tmp_path):
    timings, variables = tmp_path / "timings.json", tmp_path / "variables.npz"
    done = run("mlp", "--steps", STEPS, "--timings", timings, "--save", variables)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    losses = lines[lines.index("all losses:") + 1 : -1]
    assert [line.split()[0] for line in losses] == [str(step) for step in range(STEPS)]
    assert all(np.isfinite(float(word)) for line in losses for word in line.split()[2::2])
    assert len(json.loads(timings.read_text())) == STEPS
    with np.load(variables) as saved:
        assert lines[-1].startswith(f"{len(saved.files)} variables, sha256 ")


def test_another_seed_is_another_text():
    assert run("mlp", "--steps", 5, "--seed", 1).stdout != run("mlp", "--steps", 5, "--seed", 2).stdout


def test_bad_option_is_a_usage_error():
    done = run("mlp", "--steps", 0)
    assert done.returncode == 2
    assert "--steps must be at least 1" in done.stderr

"""Runs the quick tests under every supported pair of Python and TensorFlow for which an interpreter is found.

Environments are made once under .matrix/ and renewed when pyproject.toml changes. Interpreters come from PATH
(python3.12) or from pyenv. Exit code: 0 if all pairs that ran passed, 1 if one failed, 2 if none was run.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = ROOT / ".matrix"
# TensorFlow 2.18 and 2.19 have no wheels for Python 3.13.
PAIRS = [
    (python, tensorflow)
    for python in ("3.11", "3.12", "3.13")
    for tensorflow in ("2.18", "2.19", "2.20", "2.21")
    if (python, tensorflow) not in {("3.13", "2.18"), ("3.13", "2.19")}
]


@dataclass(frozen=True)
class Outcome:
    state: str  # "passed", "failed" or "not run"
    detail: str
    seconds: float = 0.0


def is_python(executable, version):
    """Whether the executable runs and is that Python: a pyenv shim may stand on PATH and refuse to run."""
    code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([executable, "-c", code], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.strip() == version


def find_interpreter(version):
    """The path of an interpreter of that version ("3.12"), or None."""
    candidates = [shutil.which(f"python{version}")]
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    installed = root.glob(f"versions/{version}.*/bin/python{version}")
    candidates += sorted(
        installed, key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))], reverse=True
    )
    return next((str(path) for path in candidates if path and is_python(path, version)), None)


def prepare(interpreter, python, tensorflow):
    """Makes or renews the environment of a pair. Returns its interpreter; raises CalledProcessError."""
    folder = ENVIRONMENTS / f"python{python}-tensorflow{tensorflow}"
    executable = folder / "bin" / "python"
    stamp = folder / ".installed"
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return executable
    if not executable.exists():
        run([interpreter, "-m", "venv", str(folder)])
    pip = [str(executable), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, "-e", ".[dev]", f"tensorflow-cpu=={tensorflow}.*"])
    stamp.write_text(wanted)
    return executable


def run(command):
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def last_lines(text, count=1):
    return "\n".join([line for line in (text or "").splitlines() if line.strip()][-count:])


def test(python, tensorflow, pytest_arguments):
    """Runs the tests of one pair; the whole output is kept beside its environment."""
    interpreter = find_interpreter(python)
    if interpreter is None:
        return Outcome("not run", f"no interpreter python{python} on PATH or in pyenv")
    try:
        executable = prepare(interpreter, python, tensorflow)
    except subprocess.CalledProcessError as error:
        return Outcome("failed", f"cannot install: {last_lines(error.stdout)}")
    started = time.monotonic()
    command = [str(executable), "-m", "pytest", "-m", "not slow", "-p", "no:cacheprovider", *pytest_arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = time.monotonic() - started
    log = ENVIRONMENTS / f"python{python}-tensorflow{tensorflow}.log"
    log.write_text(done.stdout)
    summary = last_lines(done.stdout).strip("= ")
    if done.returncode:
        return Outcome("failed", f"{summary} ({log.relative_to(ROOT)})", seconds)
    return Outcome("passed", summary, seconds)


def chosen_pairs(names):
    known = {f"{python}:{tensorflow}": (python, tensorflow) for python, tensorflow in PAIRS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"unknown pair {unknown[0]!r}; known are {', '.join(known)}")
    return [known[name] for name in names] or PAIRS


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "pairs", nargs="*", metavar="PYTHON:TENSORFLOW", help="for instance 3.12:2.20; default all"
    )
    parser.add_argument("--pytest", metavar="ARGS", default="", help="more arguments for pytest")
    args = parser.parse_args()
    try:
        pairs = chosen_pairs(args.pairs)
    except ValueError as error:
        parser.error(str(error))

    console = Console()
    ENVIRONMENTS.mkdir(exist_ok=True)
    table = Table("Python", "TensorFlow", "result", "seconds", "detail")
    outcomes = []
    for python, tensorflow in pairs:
        with console.status(f"Python {python}, TensorFlow {tensorflow}"):
            outcome = test(python, tensorflow, args.pytest.split())
        outcomes.append(outcome)
        style = {"passed": "green", "failed": "red", "not run": "yellow"}[outcome.state]
        table.add_row(
            python, tensorflow, outcome.state, f"{outcome.seconds:.0f}", outcome.detail, style=style
        )
    console.print(table)
    states = [outcome.state for outcome in outcomes]
    if "failed" in states:
        return 1
    return 0 if "passed" in states else 2


if __name__ == "__main__":
    sys.exit(main())

"""`terra-cx explain`: what it shows of a file, what it does with a script."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from terra_cx import cli
from terra_cx.explain import output
from terra_cx.explain.advice import advise
from terra_cx.explain.annotate import pages
from terra_cx.explain.source import Source
from terra_cx.report.reading import read

EXAMPLE = Path(__file__).with_name("constructed.json")


def explain(*words, capsys):
    status = cli.main(["explain", *map(str, words)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_profile(capsys, tmp_path):
    status, out, err = explain(EXAMPLE, "--width", 100, "--json", tmp_path / "e.json", capsys=capsys)
    assert (status, err) == (0, "")
    assert (
        "train.py: 812 of 821 steps co-executed; a step takes 4.1 ms, in eager 9.9 ms (2.4x); overlap 50%"
        in out
    )
    assert "bound by Python, train.py:83: 34% of a step" in out
    assert "`float(loss)` at train.py:88 waited 1.1 s in 812 steps" in out
    assert "\x1b" not in out
    assert all(len(line) <= 100 for line in out.splitlines())
    row = next(
        line.split() for line in out.splitlines() if "loss = train_step(x)" in line and "`" not in line
    )
    assert row[:5] == ["24", "40", "0.80", "0.10", "84"]
    made = json.loads((tmp_path / "e.json").read_text())
    assert {f"`{key}`" for key in made} <= set(output.__doc__.replace(",", " ").split()) | {"`terra_cx`"}
    assert [each["kind"] for each in made["advice"]] == ["host", "fetch", "library"]
    assert made["lines"][-1]["waits"] == 812


@pytest.mark.parametrize("width", [40, 60, 200])
def test_it_is_as_wide_as_it_may_be(capsys, width):
    _, out, _ = explain(EXAMPLE, "--width", width, capsys=capsys)
    assert max(map(len, out.splitlines())) <= width
    assert "losses.append(" in out


def test_colour_only_on_a_terminal(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    run, source = read(EXAMPLE), Source()
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system="standard")
    output.show(console, run, advise(run, source), pages(run, source))
    assert "\x1b[" in stream.getvalue()


def test_source_around_the_lines_and_a_file_that_has_changed(tmp_path):
    text = EXAMPLE.read_text().replace("/home/me/train.py", str(tmp_path / "train.py"))
    (tmp_path / "run.json").write_text(text)
    lines = ["#"] * 90
    for number, words in (
        (80, "for batch in data:"),
        (83, "    x = augment(batch)"),
        (84, "    loss = train_step(x)"),
    ):
        lines[number - 1] = words
    lines[87] = "    losses.append(float(loss))"
    (tmp_path / "train.py").write_text("\n".join(lines))
    run = read(tmp_path / "run.json")
    (page,) = pages(run, Source())
    assert not page.stale
    assert [line.number for line in page.lines] == [*range(78, 91)]
    assert next(line.text for line in page.lines if line.number == 83) == "    x = augment(batch)"
    lines[82] = "    x = other(batch)"
    (tmp_path / "train.py").write_text("\n".join(lines))
    (page,) = pages(run, Source())
    assert page.stale
    assert [line.number for line in page.lines] == [80, 83, 84, 88]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["missing.py"], "missing.py: no such file"),
        (["missing.json"], "cannot read missing.json"),
        (["."], "is a folder without a profile.json"),
    ],
)
def test_bad_words(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = explain(*words, capsys=capsys)
    assert (status, out) == (2, "")
    assert err.startswith("terra-cx explain: ")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["train.py", "-m", "train"], ["-m", "train", "-c", "pass"], ["-m"]])
def test_exactly_one_program(words, capsys):
    with pytest.raises(SystemExit) as ended:
        explain(*words, capsys=capsys)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "usage: terra-cx explain" in said.err


def test_turned_off(capsys, tmp_path, monkeypatch):
    (tmp_path / "x.py").touch()
    monkeypatch.setenv("TERRA_DISABLE", "1")
    status, _, err = explain(tmp_path / "x.py", capsys=capsys)
    assert (status, "turned off" in err) == (2, True)


def test_the_file_cannot_be_written(capsys, tmp_path):
    status, out, err = explain(EXAMPLE, "--json", tmp_path / "no" / "e.json", capsys=capsys)
    assert status == 9
    assert "what to change" in out
    assert "cannot write" in err


PROGRAM = """
import sys
import numpy as np
import tensorflow as tf
print("the program speaks", sys.argv[1:], flush=True)
w = tf.Variable(tf.ones([16, 16]))
seen = []
for number in range(120):
    x = tf.constant(np.random.default_rng(number).normal(size=(8, 16)).astype("float32"))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(x @ w))
    w.assign_sub(0.01 * tape.gradient(loss, w))
    seen.append(float(loss))
    if number == 100:
        w.assign(tf.sin(w))
raise SystemExit(3)
"""


def started(tmp_path, program, *ours, **options):
    """`terra-cx explain` of a program, as a process."""
    (tmp_path / "train.py").write_text(program)
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TERRA_PACE": "overlapped"}
    boot = f"import sys; sys.path[0] = {str(Path(output.__file__).parents[2])!r}; from terra_cx.cli import main; "
    words = [sys.executable, "-c", boot + "sys.exit(main())", "explain", "--width", "120", *ours]
    return subprocess.Popen(
        words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )  # fmt: skip


def test_a_script(tmp_path):
    """It runs as under terra-run, is told although it fails, and keeps to the standard error."""
    (tmp_path / "random.py").write_text("raise SystemExit('the wrong module')")
    process = started(tmp_path, PROGRAM, "--json", "e.json", "train.py", "--", "-x", "1")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 1, err
    assert "the program speaks ['-x', '1']" in err
    assert "the program ended with status 3" in err
    assert "the program speaks" not in out
    assert "steps co-executed" in out
    assert "the step's end is known" in " ".join(out.split())
    made = json.loads((tmp_path / "e.json").read_text())
    ops = {line["text"]: (line["ops"] or 0) + (line["elided_ops"] or 0) for line in made["lines"]}
    assert ops["loss = tf.reduce_mean(tf.square(x @ w))"] > 2


@pytest.mark.parametrize("form", ["-m", "-c"])
def test_a_module_and_a_text(tmp_path, form):
    """Both with arguments; the lines of a text are shown although no file holds them."""
    process = started(tmp_path, PROGRAM, form, "train" if form == "-m" else PROGRAM, "--", "-x", "1")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 1, err
    assert "the program speaks ['-x', '1']" in err
    assert "the program ended with status 3" in err
    assert "steps co-executed" in out
    assert "loss = tf.reduce_mean(tf.square(x @ w))" in out


def test_ctrl_c_ends_the_program_and_explains_what_it_did(tmp_path):
    endless = PROGRAM.replace("range(120)", "range(10**9)")
    endless = endless.replace("number == 100:", "number == 200:\n        print('far', flush=True)")
    process = started(tmp_path, endless, "train.py", start_new_session=True)
    err = ""
    while "far" not in err:
        line = process.stderr.readline()
        assert line, err
        err += line
    os.killpg(process.pid, signal.SIGINT)
    out, rest = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "the program ended with status 130" in rest
    assert "steps co-executed" in out
    assert "`float(loss)` at train.py:13" in out


def test_a_program_that_leaves_nothing(tmp_path):
    process = started(tmp_path, "import os\nos._exit(7)\n", "train.py")
    out, err = process.communicate(timeout=200)
    assert (process.returncode, out) == (1, "")
    assert err.count("\n") == 1
    assert "train.py left no profile (exit status 7)" in err

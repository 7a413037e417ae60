"""`%%terra` in an IPython of this process: cells run as cells do, co-executed, with what they did below them."""

from __future__ import annotations

import json
import textwrap
import types
from xml.etree import ElementTree

import pytest
import tensorflow as tf
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from terra_cx import session as sessions
from terra_cx.notebook import TerraMagics

STEP = """
def step(w, number):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(tf.matmul(w, w) - tf.fill([3, 3], 0.01 * number)))
    w.assign_sub(0.1 * tape.gradient(loss, w))
    return loss
"""
LOOP = """
w = tf.Variable(tf.ones([3, 3]))
losses = []
for number in range(80):
    losses.append(float(step(w, number)))
"""


@pytest.fixture(scope="module")
def shell():
    made = InteractiveShell.instance()
    made.run_cell("%load_ext terra_cx")
    yield made
    InteractiveShell.clear_instance()


@pytest.fixture
def run(shell):
    """Run a cell in a fresh namespace; gives what it showed."""
    shell.reset(new_session=False)
    shell.user_ns["tf"] = tf
    TerraMagics.last = None

    def run(cell):
        with capture_output() as shown:
            run.result = shell.run_cell(cell)
        assert sessions.current() is None
        return shown

    run.names = shell.user_ns
    return run


def shown_as(shown, kind):
    return [output.data[kind] for output in shown.outputs if kind in output.data]


def test_a_cell_is_co_executed_and_shown(run):
    run(STEP + LOOP)
    expected = run.names["losses"], run.names["w"].numpy().tobytes()
    shown = run("%%terra --pace overlapped\n" + STEP + LOOP)
    assert run.result.success
    assert (run.names["losses"], run.names["w"].numpy().tobytes()) == expected
    record = TerraMagics.last.record
    assert record["regions"]["co_executed"] > 40
    assert record["internal_errors"] == 0
    (text,) = shown_as(shown, "text/plain")
    assert text.startswith(f"terra-cx  {record['regions']['co_executed']} of ")
    (page,) = shown_as(shown, "text/html")
    picture = ElementTree.fromstring(page[page.index("<svg") :])
    names = {element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {"Python", "graph", "compiled block"} <= names
    assert shown.stdout == ""


def test_functions_of_earlier_cells_have_probes_while_the_cell_runs(run):
    run(STEP)
    run(f"class Trainer:\n    def fit(self):\n{textwrap.indent(LOOP, ' ' * 8)}\n        return losses")
    code = run.names["Trainer"].fit.__code__
    run("expected = Trainer().fit()")
    run("%%terra --pace overlapped\ngot = Trainer().fit()")
    assert run.names["got"] == run.names["expected"]
    assert TerraMagics.last.record["regions"]["co_executed"] > 40
    assert run.names["Trainer"].fit.__code__ is code


def test_lines_are_those_of_cells(run):
    late = LOOP.replace("    losses", "    tf.sin(w) if number == 60 else None\n    losses")
    shown = run("%%terra --pace overlapped\n" + STEP + late)
    assert "fallback  In[1]:10  new-op, 1 time" in shown_as(shown, "text/plain")[0]
    first = TerraMagics.last.record["fallbacks"][0]
    assert (first["line"], first["detail"]) == ("In[1]:10", "Sin where ReadVariableOp (In[1]:3) is known")


def test_a_cell_is_a_cell(run):
    shown = run("%%terra\nx = !echo hello\nprint('said', x[0])\nx[0] + '!'")
    assert shown.stdout.startswith("said hello\n")
    assert run.result.result == "hello!"
    assert "no training step found" in shown_as(shown, "text/plain")[0]
    run("%%terra -q\nx = 3;")
    assert run.names["x"] == 3
    assert run.result.result is None
    assert run("%%terra -q\nx").outputs == [] or run.result.result == 3


def test_errors_are_the_cells(run):
    shown = run("%%terra -q\nfor number in range(3):\n    1 / (1 - number)")
    assert isinstance(run.result.error_in_exec, ZeroDivisionError)
    assert "1 / (1 - number)" in shown.stdout
    run("%%terra -q\ndef f(:")
    assert isinstance(run.result.error_in_exec or run.result.error_before_exec, SyntaxError)
    failing = LOOP.replace("    losses", "    tf.gather(w, 9) if number == 60 else None\n    losses")
    run("%%terra -q --pace overlapped\n" + STEP + failing)
    assert isinstance(run.result.error_in_exec, tf.errors.InvalidArgumentError)
    assert len(run.names["losses"]) == 60


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--pase turns", "unknown option --pase; did you mean --pace?"),
        ("--pace slow", "--pace must be one of"),
        ("fast", "only options may follow %%terra"),
        ("--report no/such/r.json", "cannot write no/such/r.json"),
        ("--profile 'x", "No closing quotation"),
    ],
)
def test_wrong_words(run, line, words):
    shown = run(f"%%terra {line}\ny = 1")
    assert words in shown.stdout + shown.stderr
    assert "y" not in run.names
    assert "Traceback" not in shown.stdout


def test_files(run, tmp_path):
    run(f"%%terra -q --report {tmp_path / 'r.json'} --profile {tmp_path / 'p'}\n" + STEP + LOOP)
    assert json.loads((tmp_path / "r.json").read_text())["command"] == ["%%terra"]
    assert json.loads((tmp_path / "p" / "profile.json").read_text())["kind"] == "terra-cx profile"


def test_turned_off(run, monkeypatch):
    monkeypatch.setenv("TERRA_DISABLE", "1")
    shown = run("%%terra\n" + STEP + LOOP)
    assert len(run.names["losses"]) == 80
    assert (TerraMagics.last, shown.outputs) == (None, [])


def test_a_session_that_is_started_already(run):
    import terra_cx

    with terra_cx.co_execute(), capture_output() as shown:
        run.names["x"] = 0
        InteractiveShell.instance().run_cell("%%terra\nx = 1")
    assert "a session is started already" in shown.stdout + shown.stderr
    assert run.names["x"] == 0


def test_what_cannot_be_shown_is_no_error_of_the_cell(run, monkeypatch):
    monkeypatch.setattr("terra_cx.notebook._picture", lambda session: 1 / 0)
    shown = run("%%terra\nx = 5")
    assert run.result.success
    assert run.names["x"] == 5
    assert "could not show what the cell did (division by zero)" in shown.stderr


def test_importing_the_package_imports_no_ipython():
    import terra_cx

    assert isinstance(terra_cx.load_ipython_extension, types.FunctionType)
    assert "IPython" not in vars(terra_cx)

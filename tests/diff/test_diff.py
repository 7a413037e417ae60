"""`terra-cx diff`: what is compared, what is judged, how it exits."""

import copy
import json
from pathlib import Path

import pytest

from terra_cx import cli
from terra_cx.diff import output
from terra_cx.diff.compare import Measure, compare
from terra_cx.report.reading import read

EXAMPLE = Path(__file__).parents[1] / "explain" / "constructed.json"


@pytest.fixture
def runs(tmp_path):
    """Two profiles: the example, and one that a function has changed."""

    def made(change=lambda data: None, base=None):
        before = json.loads(EXAMPLE.read_text()) if base is None else base
        after = copy.deepcopy(before)
        change(after)
        paths = tmp_path / "a.json", tmp_path / "b.json"
        for path, data in zip(paths, (before, after), strict=True):
            path.write_text(json.dumps(data))
        return paths

    return made


def slower_augmentation(data):
    """Two milliseconds more of Python at a line that has moved."""
    anchor = data["anchors"][0]
    anchor["seconds"]["co_executed"] += 812 * 0.002
    anchor["parts_ms"]["host"] = 3.5
    line = anchor["lines"][0]
    assert line["text"] == "x = augment(batch)"
    line["parts_ms"]["host"] = 3.5
    line["line"] = "/home/me/train.py:81"


def diff(*words, capsys):
    status = cli.main(["diff", *map(str, words)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_same_run_twice(runs, capsys):
    status, out, err = diff(*runs(), capsys=capsys)
    assert (status, err) == (0, "")
    assert "nothing is slower by more than 10%" in out
    assert "what takes more" not in out
    assert "note" not in out


def test_slower_and_why(runs, capsys, tmp_path):
    status, out, _ = diff(*runs(slower_augmentation), "--json", tmp_path / "d.json", capsys=capsys)
    assert status == 1
    assert "slower by more than 10%: step" in out
    assert "+2 ms a step train.py:81 `x = augment(batch)` takes 3.9 ms of Python" in out
    assert "\x1b" not in out
    made = json.loads((tmp_path / "d.json").read_text())
    assert (made["slower"], made["exit_status"], made["threshold"]) == (["step"], 1, 0.1)
    assert set(made) <= {key.strip("`") for key in output.__doc__.replace(",", " ").split()}
    (cause,) = made["causes"]
    assert cause["step_ms"] == pytest.approx(2.0)
    assert cause["seconds"] == pytest.approx(2.0 * 812 / 1000)


def test_the_threshold(runs, capsys):
    paths = runs(slower_augmentation)
    assert diff(*paths, "--threshold", "50%", capsys=capsys)[0] == 0
    assert diff(*paths, "--threshold", "40%", capsys=capsys)[0] == 1
    assert diff(*reversed(paths), capsys=capsys)[0] == 0
    with pytest.raises(SystemExit) as caught:
        diff(*paths, "--threshold", "0.4", capsys=capsys)
    assert caught.value.code == 2


def changed(**paths):
    """A change of single values, by their way in the file with double underscores between."""

    def change(data):
        for path, value in paths.items():
            *way, last = (int(key) if key.isdigit() else key for key in path.split("__"))
            at = data
            for key in way:
                at = at[key]
            at[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "slower"),
    [
        (changed(totals__compile_seconds=0.6), ["compiling"]),
        (changed(totals__compile_seconds=0.5), []),  # not a hundredth of the run
        (changed(totals__trace_seconds=1.0), ["tracing"]),
        (changed(anchors__0__fallbacks__0__seconds=1.0), ["fallbacks"]),
        (changed(totals__fetch_wait_seconds=9.0), []),  # shown; the step time has it
        (changed(anchors__0__step_ms__eager=20.0), []),
        (changed(anchors__0__seconds__co_executed=3.6), []),
        (changed(anchors__0__seconds__co_executed=3.8), ["step"]),
        (changed(anchors__0__step_ms__co=9.0), []),  # the median, where the mean is known
    ],
)
def test_what_is_judged(runs, change, slower):
    found = compare(*map(read, runs(change)))
    assert [measure.name for measure in found.slower(0.1)] == slower


def test_causes(runs):
    def change(data):
        anchor = data["anchors"][0]
        lines = anchor["lines"]
        lines[2]["parts_ms"]["fetch"] = 2.3
        lines[1]["elided_ops"], lines[1]["parts_ms"]["library"] = 10.0, 1.4
        lines.append({**copy.deepcopy(lines[0]), "line": "/home/me/train.py:90", "text": "log(x)"})
        anchor["fallbacks"][0].update(count=90, seconds=0.9)

    found = compare(*map(read, runs(change)))
    told = [cause.what for cause in found.causes]
    assert "`log(x)` takes 1.9 ms of Python in a step, and is new" in told
    assert "`losses.append(float(loss))` waits 2.3 ms a step, 1.3 ms before" in told
    assert (
        "`loss = train_step(x)` takes 1.8 ms of Python in a step, 0.8 ms before; 30 ops less are elided"
        in told
    )
    assert any(words.startswith("diverged 90 times, 1 before (new-shape)") for words in told)
    assert found.causes[0].seconds == max(cause.seconds for cause in found.causes)


def test_a_longer_run_may_fall_back_more_often(runs):
    def change(data):
        data["anchors"][0]["fallbacks"][0].update(count=2, seconds=0.024)
        data["anchors"][0]["regions"]["co_executed"] *= 3

    assert compare(*map(read, runs(change))).causes == ()


def test_circumstances(runs, capsys):
    def change(data):
        anchor = data["anchors"][0]
        data.update(tensorflow="2.20.0", command=["train.py", "--epochs", "4"])
        anchor.update(given_up="diverges: 12 of the last 20")
        anchor["step_ms"]["eager"] = 15.0
        call = {
            "call": "Layer.__call__",
            "of": "Mine",
            "line": "?",
            "ops": 0,
            "elided": 0,
            "refused": "it prints",
        }
        anchor["elisions"]["calls"] += [call, call]

    _, out, _ = diff(*runs(change), capsys=capsys)
    for words in (
        "tensorflow: 2.21.0 before, 2.20.0 after",
        "arguments: --epochs 3 before, --epochs 4 after",
        "the loop at train.py:80 runs in plain eager now: diverges",
        "an eager step takes 52% more as well: the machine was busier",
        "Mine.__call__ is not elided: it prints",
    ):
        assert words in " ".join(out.split())
    assert out.count("Mine.__call__") == 1


def test_reports(runs, capsys):
    anchor = {"line": "/home/me/train.py:3", "state": "co-executing", "given_up": None, "live_tapes": None}
    base = {
        "version": 1, "terra_cx": "0.1.0", "python": "3.11.2", "tensorflow": "2.21.0", "mode": "co", "command": [],
        "regions": {"total": 100, "co_executed": 90, "traced": 4, "eager": 6}, "step_ms": {"eager": 4.0, "co": 2.0},
        "overlap": 0.5, "fallbacks": [], "anchors": [anchor], "internal_errors": 0, "runner": {},
    }  # fmt: skip
    assert diff(*runs(base=base), capsys=capsys)[0] == 0
    status, out, _ = diff(*runs(changed(step_ms__co=3.0), base=base), capsys=capsys)
    assert (status, "+50%" in out) == (1, True)
    paths = runs(changed(step_ms__co=None), base=base)
    status, out, err = diff(*paths, capsys=capsys)
    assert (status, out) == (2, "")
    assert "have no co-executed step in common" in err
    _, out, _ = diff(paths[0], EXAMPLE, capsys=capsys)
    assert "one is a report" in out


def test_bad_input(runs, capsys, tmp_path):
    good, _ = runs()
    status, out, err = diff(good, tmp_path / "missing.json", capsys=capsys)
    assert (status, out) == (2, "")
    assert err.startswith("terra-cx diff: cannot read ")
    status, _, err = diff(good, good, "--json", tmp_path / "no" / "d.json", capsys=capsys)
    assert (status, "cannot write" in err) == (9, True)


def test_a_measure_that_is_not_known():
    assert Measure("x", None, 2.0, "ms", judged=True).change is None
    assert not Measure("x", None, 2.0, "ms", judged=True).is_slower(0.1)
    assert Measure("x", 0.0, 2.0, "s", judged=True, floor=1.0).is_slower(0.1)

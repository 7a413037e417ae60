"""Whatever stands in a file, explaining and comparing end with an answer or with one clear line."""

import copy
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from terra_cx.diff import output as difference
from terra_cx.diff.compare import compare
from terra_cx.explain import output
from terra_cx.explain.advice import advise
from terra_cx.explain.annotate import pages
from terra_cx.explain.source import Source
from terra_cx.report.files import as_json
from terra_cx.report.reading import FileError, read

EXAMPLE = Path(__file__).with_name("constructed.json")
TEXT = EXAMPLE.read_text()
GOOD = read(EXAMPLE)
INSTEAD = (None, "x", -1, 1e300, [None], {"a": 1})


def everything(path):
    """All that the two commands do with a file."""
    run, source = read(path), Source()
    console = Console(file=io.StringIO(), width=60)
    advice, shown = advise(run, source), pages(run, source)
    output.show(console, run, advice, shown)
    as_json(output.record(run, advice, shown))
    for before, after in ((GOOD, run), (run, GOOD)):
        found = compare(before, after)
        difference.show(console, found, 0.1)
        as_json(difference.record(found, before, after, 0.1, 0))


def refusal(path):
    """What is said of a file that is refused; None if it was taken."""
    try:
        everything(path)
    except FileError as error:
        return str(error)
    return None


def places(value, way=()):
    """The ways to all values in a file."""
    members = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, inner in members:
        yield (*way, key)
        yield from places(inner, (*way, key))


@pytest.mark.parametrize("key", json.loads(TEXT))
def test_a_value_that_is_something_else(tmp_path, key):
    whole = json.loads(TEXT)
    path = tmp_path / "run.json"
    for number, way in enumerate(way for way in places(whole) if way[0] == key):
        for instead in INSTEAD[number % 2 :: 2]:  # every other one: thousands of files take their time
            damaged = copy.deepcopy(whole)
            at = damaged
            for step in way[:-1]:
                at = at[step]
            at[way[-1]] = instead
            path.write_text(json.dumps(damaged))
            said = refusal(path)
            assert said is None or (str(path) in said and "\n" not in said)


def test_a_value_that_is_missing(tmp_path):
    whole = json.loads(TEXT)
    path = tmp_path / "run.json"
    for way in [way for way in places(whole) if isinstance(way[-1], str)]:
        damaged = copy.deepcopy(whole)
        at = damaged
        for step in way[:-1]:
            at = at[step]
        del at[way[-1]]
        path.write_text(json.dumps(damaged))
        said = refusal(path)
        assert said is None or str(path) in said


def test_a_file_that_is_cut_off_anywhere(tmp_path):
    path = tmp_path / "run.json"
    for length in range(0, len(TEXT.rstrip()) - 1, 7):
        path.write_text(TEXT[:length])
        with pytest.raises(FileError, match=r"is empty|ends in the middle"):
            read(path)

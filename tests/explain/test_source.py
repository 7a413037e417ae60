"""The program's text."""

import pytest

from terra_cx.explain.source import Source, place, short


def test_places():
    assert place("/a/b:c.py:12") == ("/a/b:c.py", 12)
    assert place("?") == ("?", 0)
    assert short("/a/train.py:3") == "train.py:3"


@pytest.mark.parametrize(
    ("text", "reader"),
    [
        ("history.append(float(loss))", "float(loss)"),
        ("print(f'{loss.numpy():.3f}')", "loss.numpy()"),
        ("x = np.mean(t)", "np.mean(t)"),
        ("x = np.mean(t.numpy())", "t.numpy()"),
        ("if tf.reduce_any(x):", None),
        ("print(loss)", "print(loss)"),
        ("a, b = float(x), float(y)", None),
        ("x +", None),
        ("", None),
    ],
)
def test_what_reads(text, reader):
    assert Source().reader("/nowhere.py:3", text) == reader


def test_a_file(tmp_path):
    file = tmp_path / "train.py"
    file.write_text("# coding: latin-1\nif loss.numpy() > 1:\n    x = 'é'\n", encoding="latin-1")
    source = Source()
    assert source.text(f"{file}:3") == "x = 'é'"
    assert source.text(f"{file}:9") is None
    assert source.lines(str(tmp_path / "missing.py")) is None
    assert source.reader(f"{file}:2", "if loss.numpy() > 1:") == "loss.numpy()"
    assert source.decides(f"{file}:2", "if loss.numpy() > 1:")
    assert not source.decides(f"{file}:3", "x = 'é'")
    # In the run it was something else, and that is what is told.
    assert not source.is_as_run(f"{file}:2", "y = float(x)")
    assert source.reader(f"{file}:2", "y = float(x)") == "float(x)"
    assert not source.decides(f"{file}:2", "y = float(x)")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"# coding: nonsense\n", b"x = (\n"])
def test_a_file_that_is_odd(tmp_path, content):
    file = tmp_path / "odd.py"
    file.write_bytes(content)
    assert Source().reader(f"{file}:1", "float(x)") == "float(x)"

"""Which files of a folder are programs."""

import pytest

from terra_cx.check.programs import NoProgramError, find, listed

HELPER = "import argparse\nLIMIT = 3\ndef parse():\n    print('no')\nclass A: pass\n"
GUARD = "def main(): ...\nif __name__ == '__main__':\n    main()\n"


@pytest.fixture
def folder(tmp_path):
    def write(**sources):
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source)
        return tmp_path

    return write


def found(path):
    return [each.name for each in find(path)]


def test_a_file_is_a_program_whatever_it_holds(folder):
    path = folder(common=HELPER) / "common.py"
    assert find(path) == [path]


def test_guards_and_statements_that_act(folder):
    path = folder(
        common=HELPER,
        guarded=GUARD,
        other_way_round="if '__main__' == __name__: pass",
        loop="for i in range(3): pass",
        call="import common\ncommon.parse()",
        within="with open('x') as file: pass",
        quiet='"""Only a text."""\nX = len("abc")\ntry:\n    import y\nexcept ImportError:\n    y = None',
        version="if __name__ == 'main': pass",
    )
    assert found(path) == ["call.py", "guarded.py", "loop.py", "other_way_round.py", "within.py"]


@pytest.mark.parametrize(
    "line", ["import tools", "import tools.sub", "from tools import x", "from . import tools"]
)
def test_what_the_others_import_is_a_helper_although_it_acts(folder, line):
    path = folder(tools="print('loaded')", program=f"{line}\nprint(1)")
    assert found(path) == ["program.py"]


def test_a_guard_makes_a_program_of_a_helper(folder):
    assert found(folder(tools=GUARD, program="import tools\nprint(1)")) == ["program.py", "tools.py"]


def test_tests_and_packaging_are_no_programs(folder):
    path = folder(conftest="print(1)", setup="print(1)", test_x="print(1)", __init__="print(1)", a="print(1)")
    assert found(path) == ["a.py"]


def test_a_source_that_does_not_compile_is_run_to_say_so(folder):
    assert found(folder(broken="def f(:\n", nul="\0")) == ["broken.py", "nul.py"]


def test_a_folder_with_main_is_the_program(folder):
    path = folder(__main__="pass", other=GUARD)
    assert find(path) == [path]


def test_folders_inside_are_not_searched(folder, tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "a.py").write_text(GUARD)
    assert found(folder(b=GUARD)) == ["b.py"]


def test_no_program(folder, tmp_path):
    with pytest.raises(NoProgramError, match="no such file or folder"):
        find(tmp_path / "missing")
    with pytest.raises(NoProgramError, match="no program in this folder"):
        find(folder(common=HELPER))
    with pytest.raises(NoProgramError, match="neither a file nor a folder"):
        find(type(tmp_path)("/dev/null"))


def test_programs_are_listed_once_named_from_the_working_directory(folder, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for place in ("here/a.py", "b.py"):
        (tmp_path / place).write_text(GUARD)
    found = listed([tmp_path / "here", tmp_path / "here" / "a.py", tmp_path / "b.py"])
    assert [each.name for each in found] == ["a.py", str(tmp_path / "b.py")]
    assert not any(each.problem for each in found)


def test_a_path_without_a_program_is_listed_with_its_problem(folder, tmp_path):
    path = folder(a=GUARD) / "a.py"
    missing, present = listed([tmp_path / "missing", path])
    assert "no such file or folder" in missing.problem
    assert present.script == path
    assert not present.problem

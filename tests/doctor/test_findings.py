"""What a doctor makes of facts: each thing that can be wrong, and its remedy."""

import dataclasses
import tomllib
from pathlib import Path

import pytest

from terra_cx.doctor import findings
from terra_cx.doctor.facts import Facts, gather
from terra_cx.doctor.findings import State, examine

FACTS = Facts(
    terra_cx="0.1.0", place="/here", python=(3, 11, 7), implementation="CPython", free_threaded=False,
    executable="/bin/python", system="Linux", machine="x86_64", processor="a processor", cpus=4, quota=None,
    nvidia=False, variables={}, settings={}, setting_error=None,
)  # fmt: skip
TEST = {
    "error": None, "steps": 120, "co_executed": 100, "values": 122, "different": 0, "internal_errors": 0,
    "given_up": None, "eager_ms": 1.25, "co_ms": 0.5, "seconds": 0.4,
}  # fmt: skip
GPU = {"name": "/physical_device:GPU:0", "type": "GPU", "detail": "A GPU"}
CHILD = {
    "tensorflow": "2.21.0", "keras": "3.15.1", "numpy": "2.3.5", "error": None, "import_seconds": 2.0,
    "devices": [{"name": "/physical_device:CPU:0", "type": "CPU", "detail": ""}], "cuda": False,
    "threads": {"intra": 0, "inter": 0}, "self_test": TEST,
}  # fmt: skip


def finding(name, facts=None, child=None, ending="exit status 0", **test):
    """The finding of a name, with some facts changed."""
    left = None if child is None and ending != "exit status 0" else {**CHILD, **(child or {})}
    if test:
        left["self_test"] = {**TEST, **test}
    found = examine(dataclasses.replace(FACTS, **(facts or {})), left, ending)
    return next(each for each in found if each.name == name)


def test_all_well():
    found = examine(FACTS, CHILD, "exit status 0")
    assert {each.state for each in found} == {State.OK}
    assert not any(each.remedy for each in found)
    assert [each.name for each in found] == [
        "python", "terra-cx", "system", "cpu", "settings", "tensorflow", "keras", "numpy", "gpu", "threads",
        "self-test",
    ]  # fmt: skip
    assert found[-1].text == (
        "100 of 120 steps co-executed, all 122 values are eager's to the last bit; "
        "a step takes 0.5 ms, in eager 1.2 ms (0.4 s)"
    )


@pytest.mark.parametrize(
    ("name", "facts", "child", "text", "remedy"),
    [
        ("python", {"python": (3, 10, 1)}, {}, "3.10.1 (CPython), /bin/python is not supported", "3.11 to 3.13"),
        ("python", {"python": (3, 14, 0)}, {}, "not supported", "use CPython 3.11 to 3.13"),
        ("python", {"implementation": "PyPy"}, {}, "is not CPython", "use CPython"),
        ("python", {"free_threaded": True}, {}, "free-threaded", "a build with the GIL"),
        ("system", {"system": "Darwin"}, {}, "Darwin on x86_64 is not supported", "use Linux"),
        ("settings", {"setting_error": "unknown key 'x'"}, {}, "unknown key 'x'", "refuses to start"),
        ("tensorflow", {}, {"error": "ModuleNotFoundError: x", "missing": True}, "is not installed for /bin/python",
         "pip install"),
        ("tensorflow", {}, {"error": "ImportError: libcuda\nmore"}, "cannot be imported: ImportError: libcuda",
         "fresh environment"),
        ("tensorflow", {}, {"tensorflow": "2.17.1"}, "2.18 to 2.21 are supported", "pip install"),
        ("tensorflow", {}, {"tensorflow": "2.22.0"}, "nothing is promised", ">=2.18,<2.22"),
        ("tensorflow", {}, {"tensorflow": None}, "something else goes by this name", "pip install"),
        ("self-test", {}, {"self_test": None}, "the process ended in it (exit status 0)", "report it"),
        ("self-test", {}, {"self_test": {"error": "ValueError: x", "seconds": 1}}, "failed: ValueError: x", "report"),
    ],
)  # fmt: skip
def test_problems(name, facts, child, text, remedy):
    found = finding(name, facts, child)
    assert found.state is State.PROBLEM
    assert text in found.text
    assert remedy in found.remedy


@pytest.mark.parametrize(
    ("name", "facts", "child", "text", "remedy"),
    [
        ("cpu", {"cpus": 1}, {}, "1 to be used", "cannot overlap"),
        ("cpu", {"quota": 1.5, "cpus": 64}, {}, "is given the time of 1.5", "TF_NUM_INTRAOP_THREADS=2"),
        ("settings", {"settings": {"disable": "True"}}, {}, "turned off", "unset TERRA_DISABLE"),
        ("tensorflow", {}, {"tensorflow": "2.21.0-rc1"}, "only releases", "pip install"),
        ("keras", {}, {"keras": None}, "not to be had", ""),
        ("gpu", {"nvidia": True}, {}, "built without support", "and-cuda"),
        ("gpu", {"nvidia": True}, {"cuda": True}, "does not see it", "and-cuda"),
        ("gpu", {"nvidia": True, "variables": {"CUDA_VISIBLE_DEVICES": "-1"}}, {}, "hidden", "unset"),
        ("threads", {}, {"threads": {"intra": 8, "inter": 0}}, "more than there are processors", "at most 4"),
    ],
)  # fmt: skip
def test_notes(name, facts, child, text, remedy):
    found = finding(name, facts, child)
    assert found.state is State.NOTE
    assert text in found.text
    assert remedy in found.remedy


def test_what_is_shown():
    assert (
        finding("gpu", child={"devices": [GPU, {**GPU, "detail": ""}]}).text
        == "2: A GPU, /physical_device:GPU:0"
    )
    assert finding("threads").text == "4 (automatic) within an op, 4 (automatic) between ops"
    assert finding("settings", {"settings": {"run_ahead": "8"}}).text == "run-ahead = 8"
    legacy = finding("keras", {"variables": {"TF_USE_LEGACY_KERAS": "1"}}, {"keras": "2.18.0"})
    assert legacy.text == "2.18.0 (TF_USE_LEGACY_KERAS is set)"
    assert finding("environment", {"variables": {"OMP_NUM_THREADS": "2"}}).text == "OMP_NUM_THREADS=2"


@pytest.mark.parametrize(
    ("changes", "text", "remedy"),
    [
        (
            {"co_executed": 0, "given_up": "unsettled: x"},
            "none of 120 steps was co-executed (unsettled: x)",
            "report",
        ),
        ({"different": 3}, "3 of 122 values differ from eager", "do not use terra-cx here"),
        ({"internal_errors": 2}, "2 errors inside terra-cx", "report"),
    ],
)
def test_self_test(changes, text, remedy):
    found = finding("self-test", **changes)
    assert (found.state, found.text) == (State.PROBLEM, text)
    assert remedy in found.remedy


def test_the_import_ended_the_process():
    found = finding("tensorflow", ending="killed by SIGILL")
    assert (found.state, "no AVX" in found.remedy) == (State.PROBLEM, True)
    found = finding("tensorflow", ending="did not end within 5 s")
    assert "did not end within 5 s" in found.text


def test_versions_are_those_of_the_package():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (oldest, newest), (tf_oldest, tf_newest) = findings.PYTHONS, findings.TENSORFLOWS
    assert project["requires-python"] == f">=3.{oldest[1]},<3.{newest[1] + 1}"
    assert project["optional-dependencies"]["tf"] == [f"tensorflow>=2.{tf_oldest[1]},<2.{tf_newest[1] + 1}"]


def test_gathered(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("TERRA_RUN_AHEAD", "7")
    monkeypatch.setenv("TERRA_PACE", "")
    facts = gather()
    assert (facts.variables["OMP_NUM_THREADS"], facts.settings, facts.setting_error) == (
        "3",
        {"run_ahead": "7"},
        None,
    )
    monkeypatch.setenv("TERRA_RUN_AHEAD", "x")
    assert "TERRA_RUN_AHEAD" in gather().setting_error

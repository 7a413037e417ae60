"""What the facts mean: a finding for each, with a remedy where something is wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from terra_cx.doctor.facts import Facts

__all__ = ["PYTHONS", "TENSORFLOWS", "Finding", "State", "examine", "judge_child", "judge_facts"]

PYTHONS = (3, 11), (3, 13)
"""The oldest and the newest Python that is supported."""
TENSORFLOWS = (2, 18), (2, 21)
"""The oldest and the newest TensorFlow. pyproject.toml says the same of both (tests/doctor)."""

_INSTALL = 'python -m pip install "tensorflow-cpu>=2.18,<2.22" (or tensorflow, for a GPU)'
_REPORT = "please report it, with the file that `terra-cx doctor --json FILE` writes"


class State(Enum):
    """How things are: well; worth knowing; a problem that keeps terra-cx from working, or from being trusted."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, in words; `remedy` is empty where nothing needs to be done."""

    name: str
    state: State
    text: str
    remedy: str = ""


def examine(facts: Facts, child: dict[str, Any] | None, ending: str) -> list[Finding]:
    """All findings, in the order in which they are shown.

    Args:
        facts: about this process.
        child: what `doctor.child` left, None if it left nothing.
        ending: how the child ended, in words.
    """
    return [*judge_facts(facts), *judge_child(facts, child, ending)]


def judge_facts(facts: Facts) -> list[Finding]:
    """What needs no TensorFlow: Python, terra-cx, the machine, settings."""
    return [
        _python(facts),
        Finding("terra-cx", State.OK, f"{facts.terra_cx} in {facts.place}"),
        _system(facts),
        _processors(facts),
        _settings(facts),
    ]


def judge_child(facts: Facts, child: dict[str, Any] | None, ending: str) -> list[Finding]:
    """What needs TensorFlow: its version, Keras, NumPy, devices, threads, the self-test."""
    if child is None:
        remedy = "run `python -c 'import tensorflow'` and mend what it says"
        if "SIGILL" in ending:
            remedy = "this TensorFlow was built for a newer processor; install one built for this (no AVX)"
        return [Finding("tensorflow", State.PROBLEM, f"importing it ended the process ({ending})", remedy)]
    numpy = Finding("numpy", State.OK, str(child["numpy"]))
    if child["error"] is not None:
        return [_not_imported(facts, child), *([numpy] if child["numpy"] else [])]
    return [
        _tensorflow(child),
        _keras(facts, child),
        numpy,
        _gpu(facts, child),
        _threads(facts, child),
        *_variables(facts),
        _self_test(child["self_test"], ending),
    ]


def _python(facts: Facts) -> Finding:
    version = ".".join(map(str, facts.python))
    text = f"{version} ({facts.implementation}), {facts.executable}"
    oldest, newest = (".".join(map(str, each)) for each in PYTHONS)
    remedy = f"use CPython {oldest} to {newest}"
    if facts.implementation != "CPython":
        return Finding("python", State.PROBLEM, f"{text} is not CPython", remedy)
    if facts.free_threaded:
        text += " is free-threaded, which is refused: liveness is judged by reference counts"
        return Finding(
            "python", State.PROBLEM, text, f"use a build with the GIL: python{oldest}, not a 't' one"
        )
    if not PYTHONS[0] <= facts.python[:2] <= PYTHONS[1]:
        return Finding("python", State.PROBLEM, f"{text} is not supported", remedy)
    return Finding("python", State.OK, text)


def _system(facts: Facts) -> Finding:
    text = f"{facts.system} on {facts.machine}"
    if facts.system != "Linux":
        return Finding("system", State.PROBLEM, f"{text} is not supported", "use Linux, or a Linux container")
    return Finding("system", State.OK, text)


def _processors(facts: Facts) -> Finding:
    text = f"{facts.processor}, {facts.cpus} to be used"
    if facts.quota is not None and facts.quota < facts.cpus:
        number = max(1, round(facts.quota))
        return Finding(
            "cpu",
            State.NOTE,
            f"{text}, but the container is given the time of {facts.quota:g}",
            f"TensorFlow starts a thread for each it sees: set TF_NUM_INTRAOP_THREADS={number} and "
            f"TF_NUM_INTEROP_THREADS={number}",
        )
    if facts.cpus == 1:
        return Finding(
            "cpu",
            State.NOTE,
            text,
            "with one processor Python and graph cannot overlap; what is gained is the time of libraries' Python",
        )
    return Finding("cpu", State.OK, text)


def _settings(facts: Facts) -> Finding:
    if facts.setting_error is not None:
        return Finding(
            "settings", State.PROBLEM, facts.setting_error, "terra-run refuses to start until it is mended"
        )
    if "disable" in facts.settings:
        return Finding("settings", State.NOTE, "terra-cx is turned off here", "unset TERRA_DISABLE")
    text = ", ".join(f"{name.replace('_', '-')} = {value}" for name, value in facts.settings.items())
    return Finding("settings", State.OK, text or "all as by default")


def _not_imported(facts: Facts, child: dict[str, Any]) -> Finding:
    if child.get("missing"):
        return Finding("tensorflow", State.PROBLEM, f"is not installed for {facts.executable}", _INSTALL)
    first = str(child["error"]).strip().splitlines()[0]
    return Finding(
        "tensorflow",
        State.PROBLEM,
        f"cannot be imported: {first:.300}",
        f"mend the installation, in a fresh environment perhaps: {_INSTALL}",
    )


def _tensorflow(child: dict[str, Any]) -> Finding:
    version = str(child["tensorflow"])
    built = "for GPUs" if child["cuda"] else "for CPUs only"
    text = f"{version}, built {built}, imported in {child['import_seconds']:.1f} s"
    oldest, newest = (".".join(map(str, each)) for each in TENSORFLOWS)
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        return Finding("tensorflow", State.PROBLEM, f"{text}: something else goes by this name", _INSTALL)
    if not TENSORFLOWS[0] <= (int(found[1]), int(found[2])) <= TENSORFLOWS[1]:
        return Finding(
            "tensorflow",
            State.PROBLEM,
            f"{text}; {oldest} to {newest} are supported, with others nothing is promised",
            _INSTALL,
        )
    if "dev" in version or "rc" in version:
        return Finding("tensorflow", State.NOTE, f"{text}; only releases are tested", _INSTALL)
    return Finding("tensorflow", State.OK, text)


def _keras(facts: Facts, child: dict[str, Any]) -> Finding:
    version = child["keras"]
    if version is None:
        return Finding("keras", State.NOTE, "is not to be had; TensorFlow alone is co-executed all the same")
    legacy = version.startswith("2.") and "TF_USE_LEGACY_KERAS" in facts.variables
    return Finding("keras", State.OK, version + (" (TF_USE_LEGACY_KERAS is set)" if legacy else ""))


def _gpu(facts: Facts, child: dict[str, Any]) -> Finding:
    gpus = [device for device in child["devices"] if device["type"] == "GPU"]
    if gpus:
        names = ", ".join(device["detail"] or device["name"] for device in gpus)
        return Finding("gpu", State.OK, f"{len(gpus)}: {names}")
    if facts.nvidia and facts.variables.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Finding("gpu", State.NOTE, "hidden by CUDA_VISIBLE_DEVICES", "unset it to use the GPU")
    if facts.nvidia:
        what = "does not see it" if child["cuda"] else "was built without support for it"
        remedy = 'python -m pip install "tensorflow[and-cuda]>=2.18,<2.22"'
        return Finding("gpu", State.NOTE, f"there is one, but this TensorFlow {what}", remedy)
    return Finding("gpu", State.OK, "none")


def _threads(facts: Facts, child: dict[str, Any]) -> Finding:
    intra, inter = child["threads"]["intra"], child["threads"]["inter"]
    text = f"{intra or f'{facts.cpus} (automatic)'} within an op, {inter or f'{facts.cpus} (automatic)'} between ops"
    most = max(intra, inter)
    if most > facts.cpus:
        remedy = f"set TF_NUM_INTRAOP_THREADS and TF_NUM_INTEROP_THREADS to at most {facts.cpus}"
        return Finding("threads", State.NOTE, f"{text}: more than there are processors", remedy)
    return Finding("threads", State.OK, text)


def _variables(facts: Facts) -> list[Finding]:
    if not facts.variables:
        return []
    text = ", ".join(f"{name}={value}" for name, value in facts.variables.items())
    return [Finding("environment", State.OK, text)]


def _self_test(test: dict[str, Any] | None, ending: str) -> Finding:
    if test is None:
        return Finding("self-test", State.PROBLEM, f"the process ended in it ({ending})", _REPORT)
    if test["error"] is not None:
        return Finding("self-test", State.PROBLEM, f"failed: {test['error']:.300}", _REPORT)
    steps, values = test["steps"], test["values"]
    if test["different"]:
        text = f"{test['different']} of {values} values differ from eager"
        return Finding("self-test", State.PROBLEM, text, f"do not use terra-cx here, and {_REPORT}")
    if test["internal_errors"]:
        return Finding(
            "self-test", State.PROBLEM, f"{test['internal_errors']} errors inside terra-cx", _REPORT
        )
    if not test["co_executed"]:
        why = f" ({test['given_up']})" if test["given_up"] else ""
        return Finding("self-test", State.PROBLEM, f"none of {steps} steps was co-executed{why}", _REPORT)
    text = (
        f"{test['co_executed']} of {steps} steps co-executed, all {values} values are eager's to the last bit"
    )
    if test["eager_ms"] and test["co_ms"]:
        text += f"; a step takes {test['co_ms']:.2g} ms, in eager {test['eager_ms']:.2g} ms"
    return Finding("self-test", State.OK, f"{text} ({test['seconds']:.1f} s)")

"""A check as JUnit XML, the form in which CI systems show test results.

A program is a test case. What is wrong with the co-executed run is a *failure*; what kept it from being judged is an
*error*. The element and attribute names are those that Jenkins, GitLab, and the reporters for GitHub Actions read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from terra_cx.check.verdict import Outcome, Verdict

__all__ = ["text"]

_ERRORS = frozenset({Outcome.FAILED, Outcome.NONDETERMINISTIC, Outcome.UNREADABLE})
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def text(verdicts: Sequence[Verdict]) -> str:
    """The XML document."""
    failures = sum(v.outcome not in _ERRORS and v.outcome.code != 0 for v in verdicts)
    errors = sum(v.outcome in _ERRORS for v in verdicts)
    figures = {
        "name": "terra-cx check",
        "tests": str(len(verdicts)),
        "failures": str(failures),
        "errors": str(errors),
        "time": f"{sum(v.seconds for v in verdicts):.3f}",
    }
    root = ElementTree.Element("testsuites", figures)
    suite = ElementTree.SubElement(root, "testsuite", {**figures, "skipped": "0"})
    for verdict in verdicts:
        _case(suite, verdict)
    ElementTree.indent(root)
    return ElementTree.tostring(root, "unicode", xml_declaration=True) + "\n"


def _case(suite: ElementTree.Element, verdict: Verdict) -> None:
    attributes = {
        "classname": "terra-cx.check",
        "name": verdict.name,
        "file": str(verdict.script),
        "time": f"{verdict.seconds:.3f}",
    }
    case = ElementTree.SubElement(suite, "testcase", attributes)
    if verdict.outcome.code:
        kind = "error" if verdict.outcome in _ERRORS else "failure"
        told = {"type": verdict.outcome.word, "message": _legal(verdict.detail)}
        element = ElementTree.SubElement(case, kind, told)
        lines = [f"{each.what}: {each}" for each in verdict.differences]
        element.text = _legal("\n".join([*lines, verdict.stderr] if verdict.stderr else lines))
    ElementTree.SubElement(case, "system-out").text = _legal("\n".join(_facts(verdict)))


def _facts(verdict: Verdict) -> list[str]:
    facts = [f"{name}: {count}" for name, count in verdict.regions.items()]
    facts = [f"regions, {fact}" for fact in facts]
    facts += [f"fallback, {f['line']}: {f['reason']}, {f['count']} times" for f in verdict.fallbacks]
    if verdict.speed.ratio is not None:
        facts.append(
            f"step: {verdict.speed.co_ms:.3f} ms co-executed, {verdict.speed.eager_ms:.3f} ms in eager, "
            f"{1 / verdict.speed.ratio:.2f}x"
        )
    return facts + verdict.notes


def _legal(words: str) -> str:
    """Without the control characters that XML cannot hold."""
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", words)

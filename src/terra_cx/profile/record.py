"""The profile as JSON: what `docs/design/profile.md` describes, made of what a `Profiler` has seen.

`report.reading` reads it.
"""

from __future__ import annotations

import linecache
from typing import TYPE_CHECKING, Any

from terra_cx.profile.events import FETCH, UNKNOWN, BlockRunSlice, Window
from terra_cx.profile.metrics import Level, Metrics, measure

if TYPE_CHECKING:
    from terra_cx.profile.profiler import AnchorProfile, Profiler
    from terra_cx.report.record import Record

__all__ = ["KIND", "VERSION", "build"]

KIND = "terra-cx profile"
VERSION = 1


def build(
    report: Record, profiler: Profiler | None, machine: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """The profile of a run.

    Args:
        report: the run's record, as `report.record` describes it.
        profiler: what it has seen; None if the program never got as far as a step.
        machine: the processor's name, how many CPUs may be used, the names of GPUs.
        seconds: from the session's start to its end.
    """
    anchors = list(profiler.anchors.values()) if profiler is not None else []
    spent = [sum(profile.nanoseconds.values()) for profile in anchors]
    problems = list(profiler.problems) if profiler is not None else []
    if not anchors:
        problems.append("no training step was found, so there is nothing to show")
    elif not any(profile.window() for profile in anchors):
        problems.append("too few steps were co-executed to look at any of them in detail")
    return {
        "kind": KIND,
        "version": VERSION,
        **{key: report[key] for key in ("terra_cx", "python", "tensorflow")},
        "machine": machine,
        **{key: report[key] for key in ("mode", "command")},
        "seconds": round(seconds, 6),
        "problems": problems,
        "internal_errors": report["internal_errors"],
        "totals": _totals(profiler),
        "main": spent.index(max(spent)) if spent else None,
        "anchors": [_anchor(profile) for profile in anchors],
    }


def source(line: str) -> str:
    """The text of a line of the program's, stripped; empty if it cannot be read."""
    file, _, number = line.rpartition(":")
    return linecache.getline(file, int(number)).strip() if number.isdigit() else ""


def _totals(profiler: Profiler | None) -> dict[str, Any]:
    conductor = profiler.conductor if profiler is not None else None
    anchors = profiler.anchors.values() if profiler is not None else ()
    waits = [each for profile in anchors for each in profile.waits.items()]
    fetches = [count for (_, why, _, _), count in waits if why == FETCH]
    others = [count for (_, why, _, _), count in waits if why != FETCH]
    statistics = conductor.runner.statistics if conductor is not None else None
    path = conductor.runner.path.statistics() if conductor is not None else None
    fallbacks = [one for profile in anchors for one in profile.anchor.fallbacks.values()]
    return {
        "trace_seconds": sum(profile.nanoseconds["traced"] for profile in anchors) / 1e9,
        "compile_seconds": statistics.compile_seconds if statistics is not None else 0.0,
        "fallback_seconds": sum(one.seconds for one in fallbacks),
        "fetch_wait_seconds": sum(count.nanoseconds for count in fetches) / 1e9,
        "fetch_waits": sum(count.count for count in fetches),
        "other_wait_seconds": sum(count.nanoseconds for count in others) / 1e9,
        "other_waits": sum(count.count for count in others),
        "graph_busy_seconds": statistics.busy if statistics is not None else 0.0,
        "path_wait_seconds": path.receive_wait if path is not None else 0.0,
        "runs": {
            "sent": path.sent if path is not None else 0,
            "compiled": statistics.compiled_runs if statistics is not None else 0,
            "eager": statistics.eager_runs if statistics is not None else 0,
            "variants": statistics.variants if statistics is not None else 0,
            "mismatches": statistics.mismatches if statistics is not None else 0,
        },
        "max_depth": path.max_depth if path is not None else 0,
    }


def _anchor(profile: AnchorProfile) -> dict[str, Any]:
    anchor, window = profile.anchor, profile.window()
    measured = measure(window) if window is not None else None
    eager, co = anchor.step_ms()
    known = anchor.as_dict()
    fallbacks = [
        {
            "reason": str(f.reason),
            "line": f.line,
            "detail": f.detail,
            "count": f.count,
            "seconds": f.seconds,
            "differences": f.as_dict()["differences"],
        }
        for f in anchor.fallbacks.values()
    ]
    kinds = ("co_executed", "diverged", "traced", "eager")
    return {
        "line": anchor.line,
        "text": source(anchor.line),
        **{
            key: known[key]
            for key in (
                "state",
                "given_up",
                "live_tapes",
                "manner",
                "manner_ms",
                "nodes",
                "blocks",
                "elisions",
            )
        },
        "regions": {kind: profile.regions[kind] for kind in kinds},
        "seconds": {kind: profile.nanoseconds[kind] / 1e9 for kind in kinds},
        "step_ms": {"eager": eager, "co": co},
        "fallbacks": fallbacks,
        "window": _window(window) if window is not None and measured is not None else None,
        "metrics": _metrics(measured, eager) if measured is not None else None,
        "parts_ms": measured.parts_ms if measured is not None else None,
        "lines": _lines(profile, measured, fallbacks),
        "runs": _runs(window) if window is not None and measured is not None else [],
    }


def _window(window: Window) -> dict[str, Any]:
    kinds = {lane.kind for lane in window.lanes}
    steps = window.steps()
    return {
        "first": window.first,
        "steps": len(steps),
        "seconds": sum(step.end - step.start for step in steps) / 1e9,
        "events": len(window.ops) + len(window.waits) + len(window.runs),
        "samples": len(window.samples),
        "truncated": window.truncated,
        "device": "gpu" if "gpu" in kinds else "cpu" if kinds else None,
    }


def _level(level: Level) -> dict[str, Any]:
    return {"mean": level.mean, "max": level.max}


def _metrics(measured: Metrics, eager: float | None) -> dict[str, Any]:
    device, bound = measured.device, measured.bound_by
    return {
        "step_ms": measured.step_ms,
        "eager_step_ms": eager,
        "python_busy_ms": measured.python_busy_ms,
        "graph_busy_ms": measured.graph_busy_ms,
        "overlap": measured.overlap,
        "python_alone_ms": measured.python_alone_ms,
        "fetch_wait_ms": measured.fetch_wait_ms,
        "graph_wait_ms": measured.graph_wait_ms,
        "feed_wait_ms": measured.feed_wait_ms,
        "path_wait_ms": measured.path_wait_ms,
        "queue_depth": _level(measured.queue_depth),
        "run_ahead": _level(measured.run_ahead),
        "ops_per_step": measured.ops_per_step,
        "elided_ops_per_step": measured.elided_ops_per_step,
        "elided_share": measured.elided_share,
        "runs_per_step": measured.runs_per_step,
        "device": device
        and {
            "kind": device.kind,
            "busy_ms": device.busy_ms,
            "idle_ms": device.idle_ms,
            "host_wait_ms": device.host_wait_ms,
            "kernel_wait_ms": device.kernel_wait_ms,
            "overlap": device.overlap,
            "lanes": [{"name": name, "busy_ms": busy} for name, busy in device.lanes.items()],
        },
        "bound_by": {"what": bound.what, "line": bound.line or UNKNOWN, "share": bound.share},
    }


def _lines(
    profile: AnchorProfile, measured: Metrics | None, fallbacks: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Every line of the program's that anything is known of, those first that take most of a step."""
    parts = measured.lines if measured is not None else {}
    ops = measured.ops if measured is not None else {}
    waited = [line for line, *_ in profile.waits]
    names = dict.fromkeys([*parts, *ops, *waited, *(each["line"] for each in fallbacks)])
    found = []
    for line in names:
        waits = [(key, count) for key, count in profile.waits.items() if key[0] == line]
        issued, elided = ops.get(line, (0.0, 0.0))
        found.append(
            {
                "line": line,
                "text": source(line),
                "ops": issued,
                "elided_ops": elided,
                "parts_ms": parts.get(line, {}),
                "waits": sum(count.count for _, count in waits),
                "wait_seconds": sum(count.nanoseconds for _, count in waits) / 1e9,
                "fetches": [
                    {"op": op, "line": of, "count": count.count, "seconds": count.nanoseconds / 1e9}
                    for (_, why, op, of), count in waits
                    if why == FETCH
                ],
                "fallbacks": [
                    {key: f[key] for key in ("reason", "detail", "count", "seconds")}
                    for f in fallbacks
                    if f["line"] == line
                ],
            }
        )
    found.sort(key=lambda one: -sum(one["parts_ms"].values()))
    return found


def _runs(window: Window) -> list[dict[str, Any]]:
    """The blocks of a window, by what they were and how they ran, in the order of a step."""
    groups: dict[tuple[Any, ...], list[BlockRunSlice]] = {}
    for run in window.runs:
        groups.setdefault((run.key[0], run.line, run.last_line, run.ops, run.how, run.ends), []).append(run)
    steps = len(window.steps())
    found = []
    for (_, line, last, ops, how, ends), runs in groups.items():
        spent = sum(run.end - run.start for run in runs) / 1e6
        found.append(
            {
                "line": line,
                "last_line": last,
                "ops": ops,
                "per_step": len(runs) / steps,
                "mean_ms": spent / len(runs),
                "ms_per_step": spent / steps,
                "how": how,
                "ends": ends,
            }
        )
    return found

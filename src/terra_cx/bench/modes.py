"""The modes in which a program is timed."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MODES", "USUAL", "Mode"]


@dataclass(frozen=True, slots=True)
class Mode:
    """How a program is run.

    `session` is the mode of terra-cx, `eager` for none. `wrap` is what its step function becomes: `function` or `xla`,
    or empty. `level` is the level of optimization of blocks. `asynchronous` turns on TensorFlow's own
    asynchronous eager execution.
    """

    name: str
    help: str
    session: str = "eager"
    wrap: str = ""
    asynchronous: bool = False
    level: str = "exact"


MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode("eager", "plain TensorFlow"),
        Mode("function", "the step function in tf.function", wrap="function"),
        Mode("xla", "the step function in tf.function(jit_compile=True)", wrap="xla"),
        Mode("async", "TensorFlow's own asynchronous eager execution", asynchronous=True),
        Mode("lazy", "terra-run --mode lazy: the graph without the overlap", session="lazy"),
        Mode("co", "terra-run", session="co"),
        Mode("co-graph", "terra-run --level graph", session="co", level="graph"),
        Mode("co-xla", "terra-run --level xla", session="co", level="xla"),
        Mode("co-auto", "terra-run --level auto", session="co", level="auto"),
    )
}

USUAL = [mode for mode in MODES.values() if mode.level == "exact"]
"""The modes that are timed if none are named."""

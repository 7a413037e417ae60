"""The modes in which a program is timed."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MODES", "Mode"]


@dataclass(frozen=True, slots=True)
class Mode:
    """How a program is run.

    `session` is the mode of terra-cx, `eager` for none. `wrap` is what its step function becomes: `function` or `xla`,
    or empty. `asynchronous` turns on TensorFlow's own asynchronous eager execution.
    """

    name: str
    help: str
    session: str = "eager"
    wrap: str = ""
    asynchronous: bool = False


MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode("eager", "plain TensorFlow"),
        Mode("function", "the step function in tf.function", wrap="function"),
        Mode("xla", "the step function in tf.function(jit_compile=True)", wrap="xla"),
        Mode("async", "TensorFlow's own asynchronous eager execution", asynchronous=True),
        Mode("lazy", "terra-run --mode lazy: the graph without the overlap", session="lazy"),
        Mode("co", "terra-run", session="co"),
    )
}

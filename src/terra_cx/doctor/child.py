"""The part of the examination that imports TensorFlow: a process of its own, because the import may kill it.

What it finds is written to `end.json` in the job's folder (`check.runs.Runner`), once when TensorFlow is imported and
again when the self-test is over, so that a crash of the second part leaves the first:

| key | value |
| --- | --- |
| `tensorflow`, `keras`, `numpy` | versions, null if it cannot be imported |
| `error` | why TensorFlow cannot be imported, null if it can; `missing` is true if there is none |
| `devices` | list of `{name, type, detail}` |
| `cuda` | whether this TensorFlow was built for GPUs |
| `threads` | `{intra, inter}`, 0 where TensorFlow decides itself |
| `import_seconds` | how long the import took |
| `self_test` | see `_self_test`; null if it did not come to that |
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import terra_cx
from terra_cx.config import PREFIX
from terra_cx.report import files

__all__ = ["STEPS", "main"]

STEPS = 120


def main() -> None:
    """Import TensorFlow, test, write; the first word is the folder."""
    folder = Path(sys.argv[1])
    # The test must not depend on the user's settings: they are judged by themselves.
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]
    os.chdir(folder)
    begin = time.perf_counter()
    found: dict[str, Any] = {"tensorflow": None, "keras": None, "numpy": _version("numpy"), "error": None}
    try:
        import tensorflow
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is what we are here to tell
        missing = isinstance(error, ModuleNotFoundError) and error.name == "tensorflow"
        found.update(error=f"{type(error).__name__}: {error}", missing=missing)
        _write(folder, found)
        return
    found["import_seconds"] = time.perf_counter() - begin
    found.update(_environment(tensorflow), self_test=None)
    _write(folder, found)
    found["self_test"] = _self_test(tensorflow)
    _write(folder, found)


def _write(folder: Path, found: dict[str, Any]) -> None:
    files.write_text(folder / "end.json", json.dumps(found))


def _version(name: str) -> str | None:
    try:
        module = __import__(name)
    except Exception:  # noqa: BLE001  # TensorFlow's own import will say what is wrong with it
        return None
    return str(getattr(module, "__version__", "")) or None


def _environment(tf: Any) -> dict[str, Any]:
    devices = []
    for device in tf.config.list_physical_devices():
        details = tf.config.experimental.get_device_details(device) if device.device_type == "GPU" else {}
        devices.append(
            {"name": device.name, "type": device.device_type, "detail": str(details.get("device_name", ""))}
        )
    return {
        "tensorflow": getattr(tf, "__version__", None),
        "keras": str(getattr(tf.keras, "__version__", "")) or None,
        "devices": devices,
        "cuda": bool(tf.test.is_built_with_cuda()),
        "threads": {
            "intra": tf.config.threading.get_intra_op_parallelism_threads(),
            "inter": tf.config.threading.get_inter_op_parallelism_threads(),
        },
    }


def _self_test(tf: Any) -> dict[str, Any]:
    """Train a few steps in eager and co-executed, and compare every loss and weight bit for bit.

    | key | value |
    | --- | --- |
    | `error` | why it could not be done, null if it was |
    | `steps`, `co_executed` | how many there were |
    | `values`, `different` | how many values were compared, and how many of them differ |
    | `internal_errors`, `given_up` | of terra-cx; why the loop was given up, or null |
    | `eager_ms`, `co_ms` | milliseconds of a step, null if not known |
    | `seconds` | of the whole test |
    """
    begin = time.perf_counter()
    try:
        expected = _train(tf)
        # Overlapped, because the pace would rightly find that so small a step does not pay on some machines.
        co_executed = terra_cx.co_execute(pace="overlapped", quiet=True)(_train)
        got = co_executed(tf)
        report = co_executed.last_session.report()  # type: ignore[attr-defined]
    except Exception as error:  # noqa: BLE001  # told as what the test has found
        return {"error": f"{type(error).__name__}: {error}", "seconds": time.perf_counter() - begin}
    return {
        "error": None,
        "steps": STEPS,
        "co_executed": report["regions"]["co_executed"],
        "values": len(expected),
        "different": sum(one != other for one, other in zip(expected, got, strict=True)),
        "internal_errors": report["internal_errors"],
        "given_up": next((a["given_up"] for a in report["anchors"] if a["given_up"]), None),
        "eager_ms": report["step_ms"]["eager"],
        "co_ms": report["step_ms"]["co"],
        "seconds": time.perf_counter() - begin,
    }


def _train(tf: Any) -> list[bytes]:
    """A step with what most have: matrix products, a gradient, random numbers, momentum, a value read now and then.

    Returns:
        The bits of every loss, and of the weights at the end.
    """
    tf.random.set_seed(7)
    weights = [
        tf.Variable(tf.random.normal([16, 32], seed=1)),
        tf.Variable(tf.random.normal([32, 1], seed=2)),
    ]
    speeds = [tf.Variable(tf.zeros_like(weight)) for weight in weights]
    losses = []
    for step in range(STEPS):
        x = tf.random.normal([24, 16], seed=3)
        with tf.GradientTape() as tape:
            hidden = tf.nn.relu(x @ weights[0])
            loss = tf.reduce_mean(tf.square(hidden @ weights[1] - tf.reduce_sum(x, 1, keepdims=True)))
        for weight, speed, gradient in zip(weights, speeds, tape.gradient(loss, weights), strict=True):
            speed.assign(0.9 * speed - 0.001 * gradient)
            weight.assign_add(speed)
        losses.append(loss.numpy() if step % 3 == 0 else loss)
    values = [*losses, *weights]
    return [(value if hasattr(value, "tobytes") else value.numpy()).tobytes() for value in values]

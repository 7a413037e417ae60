"""terra-cx: runs unmodified eager TensorFlow programs by imperative-symbolic co-execution.

Most people use the command ``terra-run train.py``. The same from Python::

    import terra_cx

    @terra_cx.co_execute()
    def train():
        for batch in data:      # found by itself, as with terra-run
            step(batch)

    with terra_cx.co_execute():
        for batch in data:
            terra_cx.region()   # marks where a step begins: code that already runs cannot be given probes
            step(batch)

Importing this package does not import TensorFlow.
"""

from __future__ import annotations

from typing import Any

from terra_cx.api import co_execute, region

__all__ = ["__version__", "co_execute", "load_ipython_extension", "region"]

__version__ = "0.1.0"


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext terra_cx` in IPython or a notebook: the cell magic `%%terra` (docs/notebook.md)."""
    from terra_cx.notebook import TerraMagics

    shell.register_magics(TerraMagics)

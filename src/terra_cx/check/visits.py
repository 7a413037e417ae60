"""When steps begin: the clock that both modes share, and the probes that plain eager execution gets for it.

A step is what lies between two visits of the anchor that the co-executed run found. There the conductor tells of its
regions; in an eager run `Probes` gives the program the same probes, and listens to that one anchor. So both times
are taken at the same instruction of the program, whatever the program is.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from types import CodeType

from terra_cx.observe import names
from terra_cx.observe.anchors import AnchorTable, instrument
from terra_cx.observe.importer import UserCode
from terra_cx.observe.inplace import InPlace
from terra_cx.observe.originals import Originals

__all__ = ["Clock", "Probes"]

_KEPT = 4096


@dataclass(slots=True)
class Clock:
    """Visits of one place: how many, and when the last of them (4096 unless `times` is another) were, in seconds."""

    count: int = 0
    times: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))

    def visit(self) -> None:
        """The place is visited now."""
        self.count += 1
        self.times.append(time.perf_counter())

    def laps(self) -> list[float]:
        """Seconds of each step in the second half of the run, so far as they are kept."""
        times = list(self.times)
        half = max(self.count // 2, self.count - len(times))
        times = times[half - (self.count - len(times)) :]
        return [after - before for before, after in itertools.pairwise(times)]


class Probes:
    """Probes in a program that is not co-executed.

    Args:
        anchor: `file:line` of the anchor to listen to.
        clock: is told of each visit outside of open tapes (a loop under a tape is no step).
    """

    def __init__(self, anchor: str, clock: Clock) -> None:
        self._anchor = anchor
        self._clock = clock
        self._table = AnchorTable()
        self._user = UserCode()
        self._thread = threading.get_ident()
        self._id: int | None = None
        self._others: set[int] = set()

    def install(self) -> None:
        """Mark the program's modules that are imported from now on."""
        names.keep_until_exit()
        names.put(self._probe)
        self._user.install(self._table)
        InPlace(self._table, self._user).adapt()
        Originals(self._table, self._user).adapt()

    def instrument(self, code: CodeType) -> CodeType:
        """The code of ``__main__`` with probes."""
        self._user.add(code.co_filename)
        probed = instrument(code, self._table)
        self._user.add_code(probed)
        return probed

    def _probe(self, anchor_id: int) -> None:
        if anchor_id != self._id:
            if self._id is not None or anchor_id in self._others:
                return
            anchor = self._table[anchor_id]
            if f"{anchor.filename}:{anchor.line}" != self._anchor:
                self._others.add(anchor_id)
                return
            self._id = anchor_id
        if threading.get_ident() == self._thread and _no_tape_is_open():
            self._clock.visit()


def _no_tape_is_open() -> bool:
    # Asked for, not imported: the program may not have imported TensorFlow yet.
    native = sys.modules.get("terra_cx.tf.native")
    return native is None or bool(native.REAL["TFE_Py_TapeSetIsEmpty"]())

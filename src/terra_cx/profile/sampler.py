"""The sampler: a thread that looks now and then where the owner thread is.

What Python does between two ops leaves no event. The sampler tells which line it is at, and whether the program, a
library that it calls, or TensorFlow's Python is at work there. It needs the interpreter for some ten microseconds each
time, and has to ask for it: at a period of 2 ms that is about one percent.

Because it has to ask, it comes late where Python holds the interpreter, and then often finds what comes next. A native
call that lets go of it (a sleep, a large NumPy operation, a read of a file) therefore gets some tenths of a millisecond
of what is before and after it. (Taking the moment when a sample was due instead of that when it was taken makes it
worse: on a busy machine the sampler itself comes late.)
"""

from __future__ import annotations

import dis
import os
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType

from terra_cx.profile.events import UNKNOWN, Sample

__all__ = ["Places", "Sampler"]

_PERIOD = 2e-3
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LIBRARIES = tuple(
    f"{os.sep}{name}{os.sep}"
    for name in ("tensorflow", "keras", "tf_keras", "tensorflow_probability", "sonnet")
)
_WAITING = os.path.join(_OURS, "run", "handover.py"), os.path.join(_OURS, "run", "channels.py")
_MOST_CODES = 4096


class Places:
    """Says what a thread is at.

    Args:
        owns: tells the program's code.
    """

    def __init__(self, owns: Callable[[CodeType], bool]) -> None:
        self._owns = owns
        # By id, because comparing code objects takes microseconds; the objects are kept, so that ids stay theirs.
        self._codes: dict[int, tuple[CodeType, frozenset[int]]] = {}
        self._others: dict[int, CodeType] = {}
        """Code that is not the program's: a wait asks of ten frames, and the graph runner waits for the interpreter."""

    def of(self, frame: FrameType) -> tuple[str, str]:
        """What a thread with this innermost frame is at: user, host, library, terra or wait; and the program's line.

        ``user`` is the program's own bytecode; ``host`` a native function or another package that it calls;
        ``library`` TensorFlow or Keras, and whatever these call.
        """
        part = ""
        at: FrameType | None = frame
        while at is not None:
            code = at.f_code
            name = code.co_filename
            if self._owns(code):
                own = at is frame and not self._in_native_code(code, at.f_lasti)
                return part or ("user" if own else "host"), f"{name}:{at.f_lineno}"
            if not part:
                if name.startswith(_OURS):
                    part = "wait" if name in _WAITING and code.co_name in ("wait", "_wait") else "terra"
                elif any(library in name for library in _LIBRARIES):
                    part = "library"
            at = at.f_back
        return part or "host", UNKNOWN

    def line(self, frame: FrameType | None) -> str:
        """``file:line`` of the innermost frame of the program's."""
        others = self._others
        while frame is not None:
            code = frame.f_code
            if id(code) not in others:
                if self._owns(code):
                    return f"{code.co_filename}:{frame.f_lineno}"
                if len(others) >= _MOST_CODES:
                    others.clear()
                others[id(code)] = code
            frame = frame.f_back
        return UNKNOWN

    def _in_native_code(self, code: CodeType, offset: int) -> bool:
        """Whether a frame stands at an instruction that calls native code.

        Threads change hands where bytecode jumps back or a function is entered, after calls, and inside native code
        that lets go of the interpreter. So whatever else an instruction is, it was in native code.
        """
        known = self._codes.get(id(code))
        if known is None:
            if len(self._codes) >= _MOST_CODES:
                self._codes.clear()
            known = self._codes[id(code)] = (
                code,
                frozenset(
                    instruction.offset
                    for instruction in dis.get_instructions(code)
                    if instruction.opname == "RESUME" or "BACKWARD" in instruction.opname
                ),
            )
        return offset not in known[1]


class Sampler:
    """Samples one thread between `start` and `stop`.

    Args:
        thread: its identifier.
        places: says where it is.
        clock: nanoseconds.
        most: samples that are kept; then it ends by itself.
    """

    def __init__(self, thread: int, places: Places, clock: Callable[[], int], most: int = 20_000) -> None:
        self.samples: list[Sample] = []
        self.error: str | None = None
        """Why it ended before its time, if it failed."""
        self._watched = thread
        self._places = places
        self._clock = clock
        self._most = most
        self._over = threading.Lock()
        self._thread = threading.Thread(target=self._main, name="terra-cx sampler", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._over.acquire()
        self._thread.start()

    def stop(self) -> list[Sample]:
        """End; what was seen."""
        if self._over.locked():
            self._over.release()
        if self._thread.ident is not None:
            self._thread.join()
        return self.samples

    def _main(self) -> None:
        try:
            self._sample()
        except Exception as error:  # noqa: BLE001  # what was seen so far is what there is
            self.error = f"{type(error).__name__}: {error}"

    def _sample(self) -> None:
        while not self._over.acquire(timeout=_PERIOD) and len(self.samples) < self._most:
            frame = sys._current_frames().get(self._watched)
            if frame is None:
                return
            found = self._places.of(frame)
            del frame  # or it would keep alive what the program lets go of
            self.samples.append(Sample(self._clock(), *found))

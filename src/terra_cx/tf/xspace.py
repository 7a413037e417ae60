"""TensorFlow's own profiler: a session of it, and its result, the XSpace, in plain terms.

One session at a time is possible in a process. The program's own comes first: while ours is open, a program that opens
one gets it, and ours is given up.

Source: ``tensorflow/python/profiler/profiler_v2.py``, ``xplane.proto``. A plane is a device or the host, a line a
stream or a thread; an event's time is its line's ``timestamp_ns`` plus its ``offset_ps``. On what clock is nobody's
promise (nanoseconds since the session's start, in 2.21), so `DeviceSession.mark` puts events of our own into it whose
time is known.
"""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["MARK", "DeviceSession", "Event", "Track", "tracks"]

MARK = "terra-cx clock "
"""Name of the events of `DeviceSession.mark`, before their number."""


class DeviceSession:
    """A session of TensorFlow's profiler. Every method may be called at any time; only `start` tells of failures."""

    def __init__(self) -> None:
        from tensorflow.python.profiler.internal import _pywrap_profiler, _pywrap_traceme

        self._profiler: Any = _pywrap_profiler
        self._traceme: Any = _pywrap_traceme
        self._real: Any = None
        self._session: Any = None
        self._folder: str | None = None
        self.error: str | None = None
        """What TensorFlow said when it could not be ended in good order."""

    def start(self) -> None:
        """Begin to record what devices do.

        Raises:
            Exception: another session is open; TensorFlow's own error.
        """
        folder = tempfile.mkdtemp(prefix="terra-cx-")
        session = self._profiler.ProfilerSession()
        try:
            session.start(folder, {})  # its defaults are what we want; 2.21 warns of each level that is given
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._session, self._folder = session, folder
        self._real = real = self._profiler.ProfilerSession

        def of_the_program(*args: Any) -> Any:
            self.give_up()
            return real(*args)

        self._profiler.ProfilerSession = of_the_program

    def mark(self, number: int, clock: Callable[[], int]) -> int:
        """Put an event of no duration into the record; its time on ``clock``, as far as that can be told."""
        before = clock()
        event = self._traceme.TraceMe(MARK + str(number))
        event.Stop()
        return (before + clock()) // 2

    def stop(self) -> bytes | None:
        """End it; the XSpace as it is serialised, None if there is none (the program has taken over)."""
        session, folder = self._session, self._folder
        self._close()
        if session is None or folder is None:
            return None
        try:
            session.export_to_tb()
            for path in glob.glob(os.path.join(folder, "**", "*.xplane.pb"), recursive=True):
                with open(path, "rb") as file:
                    return file.read()
        except Exception as error:  # noqa: BLE001  # no device lanes then
            self.error = f"{type(error).__name__}: {error}"
            return None
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return None

    def give_up(self) -> None:
        """End it and forget what it saw."""
        session, folder = self._session, self._folder
        self._close()
        if session is not None:
            try:
                session.stop()
            except Exception as error:  # noqa: BLE001  # nobody needs it any more
                self.error = f"{type(error).__name__}: {error}"
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def _close(self) -> None:
        if self._real is not None:
            self._profiler.ProfilerSession = self._real
        self._session = self._folder = self._real = None


@dataclass(slots=True)
class Event:
    """Something on a track: nanoseconds on the session's clock."""

    start: int
    end: int
    name: str


@dataclass(slots=True)
class Track:
    """A line of a plane, with its events in order."""

    plane: str
    name: str
    events: list[Event]


def tracks(data: bytes) -> Iterator[Track]:
    """The lines of all planes of a serialised XSpace.

    Raises:
        Exception: the data is no XSpace, or this TensorFlow has no reader for it.
    """
    space = _xplane().XSpace()
    space.ParseFromString(data)
    for plane in space.planes:
        names = {key: metadata.name for key, metadata in plane.event_metadata.items()}
        for line in plane.lines:
            events = []
            for event in line.events:
                start = line.timestamp_ns + event.offset_ps // 1000
                events.append(
                    Event(start, start + event.duration_ps // 1000, names.get(event.metadata_id, "?"))
                )
            events.sort(key=lambda event: (event.start, -event.end))
            yield Track(plane.name, line.display_name or line.name, events)


def _xplane() -> Any:
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    return xplane_pb2

"""Device lanes: which events of TensorFlow's XSpace are work of a device, on our clock.

GPU streams hold what ran on the GPU, kernels and copies. On the host, a kernel's event is named ``name:Op``; but
kernels that TensorFlow holds for cheap have none, nor has any in the single-threaded executor, and what Eigen's threads
do for a large kernel has no name. The threads of all pools tell when they begin and end a piece of work, though.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from statistics import median

from terra_cx.profile.events import DeviceLane, Kernel
from terra_cx.tf.xspace import MARK, Event, Track

__all__ = ["clock_offset", "device_lanes"]

_GPU = re.compile(r"/device:GPU:(\d+)")
_STREAM = re.compile(r"Stream #?(\d+)")
_KERNEL = re.compile(r"[^:\s]*:[A-Za-z_]\w*")
_BEGIN, _END = "ThreadpoolListener::StartRegion", "ThreadpoolListener::StopRegion"


def device_lanes(tracks: Iterable[Track], marks: Mapping[int, int]) -> list[DeviceLane]:
    """The lanes of a session's tracks.

    Args:
        tracks: from `tf.xspace.tracks`.
        marks: the times of the marks on our clock, by the number in their name.

    Raises:
        ValueError: none of the marks is there, so nobody can tell when anything was.
    """
    known = list(tracks)
    offset = clock_offset(known, marks)
    lanes = []
    threads = 0
    for track in known:
        gpu = _GPU.search(track.plane)
        if gpu is not None:
            stream = _STREAM.match(track.name)
            if stream is None:
                continue  # made of the streams' events: steps, modules, name scopes
            name, kind, events = f"GPU {gpu[1]} {track.name}", "gpu", track.events
        else:
            name, kind, events = f"CPU thread {threads + 1}", "cpu", _of_thread(track)
            threads += bool(events)
        if events:
            lanes.append(
                DeviceLane(name, kind, [Kernel(e.start + offset, e.end + offset, e.name) for e in events])
            )
    return lanes


def clock_offset(tracks: Iterable[Track], marks: Mapping[int, int]) -> int:
    """What to add to the session's nanoseconds to get ours: the median over the marks.

    Raises:
        ValueError: none of the marks is there.
    """
    offsets = [
        marks[number] - (event.start + event.end) // 2
        for track in tracks
        for event in track.events
        if event.name.startswith(MARK) and (number := _number(event.name)) in marks
    ]
    if not offsets:
        raise ValueError("TensorFlow's profiler has recorded none of the marks that its clock is read from")
    return int(median(offsets))


def _number(name: str) -> int:
    text = name.removeprefix(MARK)
    return int(text) if text.isdigit() else -1


def _of_thread(track: Track) -> list[Event]:
    """What a thread computed: kernels by name; pieces of work in which none is named, as a whole."""
    name = "part of a kernel" if "Eigen" in track.name else "ops"
    found: list[Event] = []
    begin, named = None, 0
    for event in track.events:
        if _KERNEL.fullmatch(event.name):
            found.append(event)
            named += 1
        elif event.name == _BEGIN:
            begin, named = event.start, 0
        elif event.name == _END and begin is not None:
            if not named:
                found.append(Event(begin, event.start, name))
            begin = None
    found.sort(key=lambda event: (event.start, -event.end))
    return found

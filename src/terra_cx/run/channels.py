"""Channels: the blocking, bounded, closable conduits between skeleton and graph runner.

Guarantees:

* ``send`` blocks while the channel is full, ``receive`` while it is empty; both end with a *named* error when the
  channel is closed or broken, never by hanging. ``Closed`` means an orderly end, ``Broken`` that the other side died.
* Waits use plain locks, which the main thread's signal handlers interrupt (Ctrl-C works while waiting).
* One lock guards the state; it is never held while waiting or while user code runs.
* A wait that lasts longer than the watchdog's limit calls ``on_stall`` once and goes on waiting.

Feeds ride on the path channel's messages (a block run carries its inputs): a wake-up per block instead of two. A
separate feed queue was considered and has nothing to offer, since a block is dispatched only when all its feeds exist.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from operator import methodcaller
from typing import Generic, TypeVar

from terra_cx.errors import TerraError

__all__ = ["Broken", "Channel", "ChannelError", "Closed", "Statistics", "WouldBlock"]

T = TypeVar("T")


class ChannelError(TerraError):
    """Base of the channel errors; the message names the channel."""


class Closed(ChannelError):
    """The channel was closed in an orderly way."""


class Broken(ChannelError):
    """The other side of the channel died; ``__cause__`` holds its error if there was one."""


class WouldBlock(ChannelError):
    """A non-blocking call would have had to wait."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot of a channel: messages so far, current and largest depth, seconds each side has waited."""

    name: str
    capacity: int
    sent: int
    received: int
    depth: int
    max_depth: int
    send_wait: float
    receive_wait: float
    closed: bool


class _Waiters:
    """The threads that wait on one side of a channel, in the order in which they came; used under the channel's lock.

    Each waits on a ticket, a lock of its own. A ticket is taken out and released in one call of native code: a signal
    handler that raised between the two would leave a thread that nobody ever wakes.
    """

    def __init__(self) -> None:
        self._tickets: deque[threading.Lock] = deque()
        self._woken = map(methodcaller("release"), iter(self._tickets.popleft, None))

    def __len__(self) -> int:
        return len(self._tickets)

    def join(self) -> threading.Lock:
        """A new ticket, at the end."""
        ticket = threading.Lock()
        ticket.acquire()
        self._tickets.append(ticket)
        return ticket

    def wake(self) -> None:
        """Wake the first, if anybody waits."""
        if self._tickets:
            next(self._woken)

    def leave(self, ticket: threading.Lock) -> None:
        """Its thread does not wait any more: give the ticket back, or pass a wake-up on that was already its own."""
        if ticket in self._tickets:
            self._tickets.remove(ticket)
        else:
            self.wake()


class Channel(Generic[T]):
    """A bounded queue between two threads; see the module's guarantees."""

    def __init__(
        self,
        name: str,
        capacity: int,
        watchdog: float | None = None,
        on_stall: Callable[[str], None] | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"channel {name!r}: capacity must be at least 1, not {capacity}")
        self.name = name
        self.capacity = capacity
        self._items: deque[T] = deque()
        self._lock = threading.Lock()
        self._senders = _Waiters()
        self._receivers = _Waiters()
        self._error: ChannelError | None = None
        self._sent = self._received = self._max_depth = 0
        self._send_wait = self._receive_wait = 0.0
        self._watchdog = watchdog
        self._on_stall = on_stall

    def send(self, item: T, *, block: bool = True) -> None:
        """Append ``item``.

        Raises:
            Closed: the channel was closed.
            Broken: the receiver died.
            WouldBlock: the channel is full and ``block`` is false.
        """
        while True:
            with self._lock:
                if self._error is not None:
                    raise self._error
                if len(self._items) < self.capacity:
                    self._max_depth = max(self._max_depth, len(self._items) + 1)
                    self._receivers.wake()
                    # Last: where the program's stack is full, or Ctrl-C comes, it was not sent.
                    self._sent += 1
                    self._items.append(item)
                    return
                if not block:
                    raise WouldBlock(f"channel {self.name!r} is full ({self.capacity})")
                ticket = self._senders.join()
            self._send_wait += self._wait(ticket, self._senders, "send to")

    def receive(self, *, block: bool = True) -> T:
        """Take the oldest item; items sent before a close are still delivered.

        Raises:
            Closed: the channel was closed and is empty.
            Broken: the sender died.
            WouldBlock: the channel is empty and ``block`` is false.
        """
        while True:
            with self._lock:
                if self._items and not isinstance(self._error, Broken):
                    item = self._items.popleft()
                    self._received += 1
                    self._senders.wake()
                    return item
                if self._error is not None:
                    raise self._error
                if not block:
                    raise WouldBlock(f"channel {self.name!r} is empty")
                ticket = self._receivers.join()
            self._receive_wait += self._wait(ticket, self._receivers, "receive from")

    @property
    def depth(self) -> int:
        """Items sent and not received."""
        return len(self._items)

    def close(self) -> None:
        """End the channel in an orderly way; waiting senders fail, receivers drain what is left first."""
        self._end(Closed(f"channel {self.name!r} is closed"))

    def break_(self, cause: BaseException | None = None) -> None:
        """End the channel because one side died; everybody waiting fails with `Broken`."""
        error = Broken(f"channel {self.name!r} is broken: the other side died")
        error.__cause__ = cause
        self._end(error)

    def _end(self, error: ChannelError) -> None:
        with self._lock:
            if self._error is None or isinstance(error, Broken):
                self._error = error
            for waiters in (self._senders, self._receivers):
                while waiters:
                    waiters.wake()

    def statistics(self) -> Statistics:
        """A snapshot of the counters."""
        with self._lock:
            return Statistics(
                self.name,
                self.capacity,
                self._sent,
                self._received,
                len(self._items),
                self._max_depth,
                self._send_wait,
                self._receive_wait,
                self._error is not None,
            )

    def _wait(self, ticket: threading.Lock, waiters: _Waiters, what: str) -> float:
        start = time.perf_counter()
        try:
            if self._watchdog is None:
                ticket.acquire()
            elif not ticket.acquire(timeout=self._watchdog):
                if self._on_stall is not None:
                    self._on_stall(f"{what} channel {self.name!r}")
                ticket.acquire()
        except BaseException:
            with self._lock:  # Ctrl-C while waiting
                waiters.leave(ticket)
            raise
        return time.perf_counter() - start

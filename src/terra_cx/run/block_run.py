"""One execution of one block: its inputs, its slots, and how far Python has validated it."""

from __future__ import annotations

import threading
from enum import IntEnum
from typing import Any, Protocol

from terra_cx.compile.blocks import Block
from terra_cx.tf.slots import Slot

__all__ = ["BlockRun", "Draw", "Frozen", "State"]


class State(IntEnum):
    """The life of a block run."""

    OPEN = 0
    """Python is still validating it."""
    SENT = 1
    """It was handed to the graph runner."""
    DONE = 2
    """Its live slots are filled."""
    FAILED = 3
    """One of its ops failed; slots before that op are filled, the others hold the error."""
    DROPPED = 4
    """It never ran, because an earlier run failed."""


class Frozen(Exception):
    """The run was handed over while an op was being validated for it; the op has to be validated anew."""


class Draw:
    """A stateful random op as Python asked for it: run by the graph runner as its own eager op.

    ``made`` is what it returned where it was queued natively (`run.in_flight`), and nothing before.
    """

    __slots__ = ("args", "form", "made", "name", "op", "step")

    def __init__(self, step: Any, op: str, form: str, name: str | None, args: Any) -> None:
        self.step = step
        self.op = op
        self.form = form
        self.name = name
        self.args = args
        self.made: Any = None

    @property
    def tensor(self) -> Any:
        """The one tensor that was ``made``; it may be still to come."""
        return self.made[0] if type(self.made) is list else self.made


class Fetcher(Protocol):
    """Who knows how to get a slot filled: the skeleton."""

    def fetch(self, slot: Slot) -> None:
        """Return when the slot holds a value or an error."""


class BlockRun:
    """See the module's page.

    ``keep`` is set while a tape may need the run, ``over`` when its region has ended. ``params`` holds a
    `Slot` (made by an earlier run) or a real tensor per parameter, ``slots`` a slot per flat output (None where
    Python got a real tensor, or has not come that far), ``draws`` the stateful random ops by their first flat
    output, ``pos`` the number of validated steps, ``start`` the region's position of its first op.

    ``pos`` decides what has been issued: what stands in slots and draws beyond it was never committed. A run that
    is ``frozen`` stays as it is, because it is being handed over, by the owner thread, by another one, or by an op
    inside the hook; ``outputs`` is None until its plan is made. ``queued`` holds what came of queuing it natively
    (`tf.native_queue.NativeQueue.put`), and nothing before and once it is done.
    """

    __slots__ = (
        "block",
        "draws",
        "error",
        "fetcher",
        "frozen",
        "keep",
        "outputs",
        "over",
        "params",
        "pos",
        "queued",
        "region",
        "slots",
        "start",
        "state",
        "waiters",
    )

    def __init__(self, block: Block, fetcher: Fetcher, start: int, region: int) -> None:
        self.block = block
        self.fetcher = fetcher
        self.start = start
        self.region = region
        self.params: list[Any] = [None] * len(block.params)
        self.slots: list[Slot | None] = [None] * block.flat
        self.draws: dict[int, Draw] = {}
        self.pos = 0
        self.state = State.OPEN
        self.frozen = False
        self.keep = False
        self.over = False
        self.outputs: frozenset[int] | None = None
        self.queued: list[Any] = []
        self.error: BaseException | None = None
        self.waiters: list[threading.Lock] = []

    def fetch(self, slot: Slot) -> None:
        """`Slot.resolve` asks here."""
        self.fetcher.fetch(slot)

    @property
    def complete(self) -> bool:
        """Whether Python has validated all of it."""
        return self.pos == len(self.block.steps)

    @property
    def position(self) -> int:
        """The region's position after the last validated op."""
        # `complete`, without the call: asked for with every event of a tape.
        block, pos = self.block, self.pos
        steps = block.steps
        return self.start + (block.positions if pos == len(steps) else steps[pos].position)

    def finish(self, state: State) -> None:
        """The runner is done with it: wake who waits, let go of what nobody needs."""
        self.state = state
        self.release()
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter.release()

    def region_over(self) -> None:
        """Its region ended; recovery will not ask for its inputs any more unless a tape keeps it."""
        self.over = True
        self.release()

    def release(self) -> None:
        """Let go of inputs and slots once the run is done, its region over, and no tape needs it.

        Called by the runner and by the owner thread, whichever comes last finds all conditions true; doing it
        twice does no harm.
        """
        if self.keep or not self.over or self.state <= State.SENT:
            return
        slots, self.slots, self.params, self.draws = self.slots, [], [], {}
        for slot in slots:
            if slot is not None:
                slot.run = None

    def fail(self, error: BaseException, state: State = State.FAILED) -> None:
        """Give every unfilled slot the error."""
        self.error = error
        for slot in self.slots:
            if slot is not None and slot.value is None:
                slot.error = error
        self.finish(state)

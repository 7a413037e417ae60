"""Slots: the cell that a placeholder and the runtime share for one value.

Liveness is judged on slots, never on placeholders: the runtime's tables hold slots, the placeholder holds its slot, so
a slot referenced by the runtime alone has no placeholder left that Python could reach, not even through a weakref
(asking the placeholder's own reference count would need a reference to it, and a weakref could then revive it).
"""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Filler", "Slot", "Spec", "fits"]


class Filler(Protocol):
    """Who will fill a slot: a block run."""

    def fetch(self, slot: Slot) -> None:
        """Return when ``slot`` holds a value or an error."""


class Spec:
    """Dtype (``DataType`` enum) and shape of a tensor; ``shape`` is None when only the value can tell it.

    ``device`` is where the op leaves the tensor; None: there is only one device, or only the value can tell.

    The specs of the TraceGraph's nodes, and of the parameters of blocks, may have dimensions that are None: sizes that
    differ from step to step. Those of slots never have.
    """

    __slots__ = ("device", "dtype", "shape", "tensor_shape")

    def __init__(self, dtype: int, shape: tuple[Any, ...] | None, device: str | None = None) -> None:
        self.dtype = dtype
        self.shape = shape
        self.device = device
        self.tensor_shape: Any = None

    def key(self) -> tuple[int, tuple[Any, ...] | None]:
        """A hashable form."""
        return self.dtype, self.shape

    @property
    def open(self) -> bool:
        """Whether a dimension is any."""
        return self.shape is not None and None in self.shape

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Whether a shape is this one, but for dimensions that may be any."""
        mine = self.shape
        return mine is not None and fits(mine, shape)

    def __repr__(self) -> str:
        return f"Spec({self.dtype}, {self.shape})"


def fits(pattern: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    """Whether a shape is as in a pattern, whose None may be any size."""
    return len(pattern) == len(shape) and all(
        size is None or size == given for size, given in zip(pattern, shape, strict=True)
    )


class Slot:
    """One output of one executed op: empty, then a value or an error for ever.

    ``run`` is the block run that will fill the slot, ``index`` the output's number in it. ``position`` numbers the ops
    of a region. A value may be *replaced* by a bit-identical tensor when a tape is rebuilt (see `run.fallback`).
    ``uid`` is the number by which tapes know the tensor, once somebody has asked for it. ``pending`` is a tensor that
    is still to come, of a run that may yet fail; only other runs are given it (`run.in_flight`).
    """

    __slots__ = ("error", "index", "pending", "run", "spec", "uid", "value")

    def __init__(self, spec: Spec, run: Filler | None, index: int) -> None:
        self.spec = spec
        self.run = run
        self.index = index
        self.value: Any = None
        self.pending: Any = None
        self.error: BaseException | None = None
        self.uid: int | None = None

    def replace(self, value: Any) -> None:
        """Hold ``value`` from now on, which has the same bits; tapes know it by its own number."""
        self.value = value
        self.uid = None

    def resolve(self) -> Any:
        """The value, waiting for it if need be.

        Raises:
            BaseException: the error of the op that should have filled the slot.
        """
        value = self.value
        if value is not None:
            return value
        run = self.run  # which another thread may let go of, once the slot is filled
        if self.error is None and run is not None:
            run.fetch(self)
        if self.value is None:
            if self.error is None:
                raise RuntimeError("terra-cx: a slot was judged dead and then read; please report this")
            raise self.error
        return self.value

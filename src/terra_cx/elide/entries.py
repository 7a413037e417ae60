"""Entries: the library calls that may be elided, and the hooks in their places.

An entry is a method or property of a class of Keras's. While a session lasts, a hook stands in its place and asks the
handler that is in charge of the dispatch boundary, which runs it as it is, notes what it did, or elides it. A method
that the program has put there, before or after, stays.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any

from terra_cx.elide.versions import Versions
from terra_cx.tf import native
from terra_cx.tf.boundary import Boundary

__all__ = ["Entries", "Entry"]

OPAQUE = frozenset(
    {"_inbound_nodes", "_outbound_nodes", "_tracker", "tracker", "_value", "_lock", "entry_layer"}
)
"""Attributes of Keras's objects that calls of them do not look into: where a symbolic call has been made, what keeps
lists of the same variables, TensorFlow's variable in Keras's (it is its handle, which ops are checked by)."""
_LAYER = ("__call__", "variables", "trainable_variables", "non_trainable_variables", "weights", "trainable_weights",
          "non_trainable_weights", "losses")  # fmt: skip
_METRIC = ("update_state", "result", "reset_state", "__call__")
_OPTIMIZER = ("apply", "apply_gradients", "_clip_gradients", "_backend_update_step")
_LEGACY_OPTIMIZER = ("apply_gradients", "_clip_gradients", "_internal_apply_gradients")
"""The inner ones are for a schedule of the program's: it runs between them, and the call around them is refused."""
_SKIPPED_SETTINGS = frozenset({"name_scope_stack", "object_name_uids", "current_call_ctx", "autocast_scope"})


class Entry:
    """One method or property.

    Args:
        owner: the class.
        attribute: its name there.
    """

    def __init__(self, owner: type, attribute: str) -> None:
        self._owner = owner
        self._attribute = attribute
        self._was: Any = vars(owner)[attribute]
        self._hook: Any = None
        self.own: Any = self._was.fget if isinstance(self._was, property) else self._was
        """What runs without us; called with the receiver and the arguments."""
        self.name = f"{owner.__name__}.{attribute}"
        self.runs_receiver = attribute == "__call__"
        """Whether it runs methods that the receiver's class is there to define."""

    def put(self, boundary: Boundary) -> None:
        """Put the hook in place."""
        if vars(self._owner).get(self._attribute) is not self._was:
            return

        @functools.wraps(self.own)
        def hook(*args: Any, **kwargs: Any) -> Any:
            return boundary.handler.library_call(self, args, kwargs)

        was = self._was
        self._hook = property(hook, was.fset, was.fdel, was.__doc__) if isinstance(was, property) else hook
        setattr(self._owner, self._attribute, self._hook)

    def take_back(self) -> None:
        """Restore what was there, unless the program has put something of its own in place."""
        if self._hook is not None and vars(self._owner).get(self._attribute) is self._hook:
            setattr(self._owner, self._attribute, self._was)
            self._hook = None


class _Same:
    """Equal to another one that holds the very same object: an `id` would be given to another object in time."""

    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.held is other.held


class Entries:
    """The entries of the libraries that the program has imported."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._libraries: set[str] = set()
        self._state: Any = None
        self._legacy: Any = None
        self._noted: tuple[Any, Any, Any] = (None, None, None)
        """Keras's settings of a thread when noted last: where, with which strategy, what `ambient` makes of them."""
        self._written = Versions()
        """Of these settings."""

    def put(self, boundary: Boundary) -> None:
        """Put the hooks in place that are not yet; to be called again, since programs import libraries late."""
        for library, entries in (("keras", _of_keras), ("tf_keras", _of_legacy_keras)):
            if library in sys.modules and library not in self._libraries:
                found = list(entries())
                for entry in found:
                    entry.put(boundary)
                self._entries += found
                self._libraries.add(library)
                self._state = sys.modules.get("keras.src.backend.common.global_state")
                self._legacy = sys.modules.get("tf_keras.src.engine.base_layer_utils")

    def take_back(self) -> None:
        """Restore the libraries."""
        for entry in self._entries:
            entry.take_back()
        self._entries = []
        self._libraries.clear()

    def ambient(self) -> Any:
        """The settings of this thread that Keras's calls depend on, as a value to compare.

        Of the call that is in progress around it, what is passed on (``training``), not whose call it is.
        """
        legacy = None if self._legacy is None else self._settings_of_legacy_keras()
        return self._settings_of_keras(), legacy, native.device_scope()

    def _settings_of_legacy_keras(self) -> Any:
        call = getattr(self._legacy._call_context, "call_context", None)
        return _Same(native.strategy()), None if call is None or not call.in_call else (
            call.training,
            call.saving,
            call.frozen,
        )

    def _settings_of_keras(self) -> Any:
        if self._state is None:
            return None
        settings = vars(self._state.GLOBAL_STATE_TRACKER)
        others = vars(self._state.GLOBAL_SETTINGS_TRACKER)
        strategy = native.strategy()
        here, with_strategy, found = self._noted
        if here is not settings:
            self._written = Versions(dicts=(settings, others))
        if self._written.stand() and with_strategy is strategy:
            return found
        call, scope = settings.get("current_call_ctx"), settings.get("autocast_scope")
        found = (
            None if call is None else [(k, v) for k, v in vars(call).items() if k != "entry_layer"],
            None if scope is None else scope.dtype,
            _Same(strategy),
            [(k, _Same(v)) for k, v in settings.items() if k not in _SKIPPED_SETTINGS and v is not None],
            [(k, _Same(v)) for k, v in others.items()],
        )
        if call is scope is None:  # what these hold is not told by versions
            self._written.accept()
            self._noted = settings, strategy, found
        return found


def _of_keras() -> Iterator[Entry]:
    keras = sys.modules["keras"]
    if not hasattr(keras, "src") or "keras.src.backend.common.global_state" not in sys.modules:
        return  # Keras 2, or something else of the name
    if keras.backend.backend() != "tensorflow":
        return
    metrics = [cls for cls in vars(keras.metrics).values() if isinstance(cls, type)]
    wanted: list[tuple[type, tuple[str, ...]]] = [
        (keras.layers.Layer, _LAYER),
        (keras.losses.Loss, ("__call__",)),
        (keras.optimizers.Optimizer, _OPTIMIZER),
        *((cls, _METRIC) for cls in metrics if issubclass(cls, keras.metrics.Metric)),
    ]
    yield from _entries_of(wanted)


def _entries_of(wanted: list[tuple[type, tuple[str, ...]]]) -> Iterator[Entry]:
    """The methods of these names, each where it is defined."""
    found: set[tuple[type, str]] = set()
    for cls, names in wanted:
        for name in names:
            owner = next((base for base in cls.__mro__ if name in vars(base)), object)
            if owner is not object and (owner, name) not in found:
                found.add((owner, name))
                yield Entry(owner, name)


def _of_legacy_keras() -> Iterator[Entry]:
    keras = sys.modules["tf_keras"]
    layer = keras.layers.Layer
    optimizers = [cls for cls in vars(keras.optimizers).values() if isinstance(cls, type)]
    metrics = [cls for cls in vars(keras.metrics).values() if isinstance(cls, type)]
    wanted: list[tuple[type, tuple[str, ...]]] = [
        (keras.Model, _LAYER),
        (layer, _LAYER),
        (keras.losses.Loss, ("__call__",)),
        *((cls, _LEGACY_OPTIMIZER) for cls in optimizers if hasattr(cls, "apply_gradients")),
        *((cls, _METRIC) for cls in metrics if issubclass(cls, keras.metrics.Metric)),
    ]
    yield from _entries_of(wanted)

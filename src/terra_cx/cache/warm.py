"""The cache of one session: which anchors it knows, the journals of the active ones, and their way to the disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType
from typing import Any

from terra_cx.cache import keys
from terra_cx.cache.codes import Codes
from terra_cx.cache.journal import Journal
from terra_cx.cache.store import Store
from terra_cx.compile.blocks import Block
from terra_cx.config import Options
from terra_cx.observe.anchors import AnchorTable
from terra_cx.trace.tracegraph import TraceGraph

__all__ = ["Kept", "WarmStart"]

_FIRST_SAVE, _GROWTH = 64, 8
"""Co-executed regions after which something new is saved, and how many times as many until the next time. A program
that is killed has then lost little, and one that goes on learning does not write all the time."""


class Kept:
    """What the cache holds, or will hold, of one anchor.

    Args:
        name: of its entry.
        journal: what it learns.
        pace: the manner of its regions as measured before, if it was.
        live_tapes: why its gradients are taken op by op, if they are.
        relaxed: why its blocks are for tensors of all sizes, if they are.
    """

    def __init__(
        self,
        name: str,
        journal: Journal,
        pace: str | None = None,
        live_tapes: str | None = None,
        relaxed: str | None = None,
    ) -> None:
        self.name = name
        self.journal = journal
        self.pace = pace
        self.live_tapes = live_tapes
        self.relaxed = relaxed
        self.started: str | None = None
        """How the entry was taken up, in words for the report."""
        self._next_save = _FIRST_SAVE

    def due(self, regions: int) -> bool:
        """Whether something new should be saved, after so many co-executed regions."""
        if regions < self._next_save:
            return False
        self._next_save = max(self._next_save, regions) * _GROWTH
        return self.journal.changed


class WarmStart:
    """See the module's page.

    Args:
        options: the run's settings; ``cache`` is set.
        table: the anchors.
        tell: given a line for the user.
    """

    def __init__(self, options: Options, table: AnchorTable, tell: Callable[[str], None]) -> None:
        assert options.cache is not None
        self._options = options
        self._codes = Codes(table)
        # Absolute, because the program may change its directory.
        folder = Path(options.cache).absolute()
        self.store = Store(folder, options.cache_limit << 20, options.cache_readonly, tell)
        self._around: dict[str, Any] | None = None
        self._asked: dict[int, str | None] = {}
        self.loaded = self.saved = 0

    def knows(self, anchor_id: int, code: CodeType) -> bool:
        """Whether there is an entry for an anchor; ``code`` is what its probe stands in. TensorFlow is imported."""
        name = self._asked.get(anchor_id, "")
        if name == "":
            name = self._asked[anchor_id] = self._name(anchor_id, code)
        return name is not None and self.store.has(name)

    def _name(self, anchor_id: int, code: CodeType) -> str | None:
        place = self._codes.place(anchor_id, code)
        return None if place is None else keys.name_of(self._environment(), place)

    def _environment(self) -> dict[str, Any]:
        if self._around is None:
            self._around = keys.environment(self._options)
        return self._around

    def opened(self, anchor_id: int) -> Kept | None:
        """What there is of an anchor that becomes active; None if nothing can be kept of it."""
        code = self._codes.of_anchor(anchor_id)
        name = self._name(anchor_id, code) if code is not None else None
        if name is None:
            return None
        stored = self._entry(name) if self.store.has(name) else None
        if stored is None:
            return Kept(name, Journal(self._codes))
        same = stored["pace"] is not None and stored["pace"][1] == keys.pace_key(self._options)
        return Kept(
            name,
            Journal(self._codes, stored["journal"]),
            stored["pace"][0] if same else None,
            stored["live_tapes"],
            stored["relaxed"],
        )

    def _entry(self, name: str) -> dict[str, Any] | None:
        content = self.store.load(name)
        if content is None:
            return None
        try:
            entry: dict[str, Any] = json.loads(content)
            if entry["environment"] != self._environment():
                raise ValueError("it is of another environment")
            if not entry["journal"]["traces"] or len(entry["pace"] or (0, 0)) != 2:
                raise ValueError("it holds nothing")
            _ = entry["live_tapes"], entry["relaxed"]
        except (LookupError, TypeError, ValueError) as error:
            self.store.unusable(name, f"{type(error).__name__}: {error}")
            return None
        self.loaded += 1
        return entry

    def unusable(self, kept: Kept, why: str) -> None:
        """An entry that was read cannot be used."""
        self.loaded -= 1
        self.store.unusable(kept.name, why)

    def unfit(self, kept: Kept, why: str) -> None:
        """An entry that was read is of the program as it was, or when it did something else."""
        self.loaded -= 1
        kept.started = f"no: {why}"

    def save(self, kept: Kept, graph: TraceGraph, blocks: Iterable[Block], about: dict[str, Any]) -> None:
        """Write what an anchor has learned, if that is something.

        Args:
            kept: where it goes.
            graph: its TraceGraph.
            blocks: those that it has been cut into.
            about: `line`, `pace` (None where it was not measured), `live_tapes` and `relaxed` of the anchor.
        """
        journal = kept.journal
        if self.store.readonly or journal.empty or not journal.changed:
            return
        entry = {
            "environment": self._environment(),
            "line": about["line"],
            "journal": journal.stored(graph, blocks),
            "pace": None if about["pace"] is None else [about["pace"], keys.pace_key(self._options)],
            "live_tapes": about["live_tapes"],
            "relaxed": about["relaxed"],
        }
        journal.changed = False
        self.saved += self.store.save(kept.name, json.dumps(entry, separators=(",", ":")).encode())

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        return {
            "folder": str(self.store.folder),
            "readonly": self.store.readonly,
            "loaded": self.loaded,
            "saved": self.saved,
            "problems": self.store.problems,
        }

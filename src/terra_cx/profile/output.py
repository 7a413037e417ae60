"""The three files of a profile: claimed before the program starts, written when it has ended."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from terra_cx.errors import UsageError
from terra_cx.machine import cpus, processor
from terra_cx.report import files

if TYPE_CHECKING:
    from terra_cx.report.record import Record
    from terra_cx.session import Session

__all__ = ["NAMES", "Claim", "claim", "texts"]

NAMES = ("profile.json", "trace.json", "profile.html")


@dataclass(frozen=True, slots=True)
class Claim:
    """Where the files go: absolute paths, wherever the program will have changed to."""

    places: dict[str, Path]

    def write(self, texts: dict[str, str]) -> None:
        """Write each file whole or not at all.

        Raises:
            OSError: a file could not be written; those before it were.
        """
        for name, text in texts.items():
            files.write_text(self.places[name], text)


def claim(directory: Path, mode: str) -> Claim:
    """Find out, before the program starts, whether a profile can be written; makes the directory.

    Args:
        directory: for the files.
        mode: of the run.

    Raises:
        UsageError: it cannot, or there would be nothing in it; the message says what to do.
    """
    if mode == "eager":
        raise UsageError(
            "a profile shows co-execution, which mode eager has none of; leave one of the two out"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UsageError(f"cannot write a profile into {directory}: not a directory; name another") from None
    except OSError as error:
        raise UsageError(
            f"cannot write a profile into {directory}: {error.strerror}; name another directory"
        ) from None
    try:
        import jinja2  # noqa: F401  # the page is made from a template; better missed now than at the end
    except ImportError:
        raise UsageError(
            "a profile's page is made with jinja2, which is missing; pip install jinja2"
        ) from None
    return Claim({name: files.claim(directory / name) for name in NAMES})


def texts(session: Session, report: Record) -> dict[str, str]:
    """The texts of the files by name, once the session is closed."""
    from terra_cx.profile import chrome_trace, page, record

    profile = record.build(report, session.profiler, machine(), session.seconds)
    windows = [] if session.profiler is None else session.profiler.windows()
    return {
        "profile.json": json.dumps(profile, indent=1, allow_nan=False) + "\n",
        "trace.json": json.dumps(chrome_trace.build(windows, profile), separators=(",", ":")) + "\n",
        "profile.html": page.render(profile, windows),
    }


def machine() -> dict[str, object]:
    """What the program ran on."""
    tensorflow = sys.modules.get("tensorflow")
    gpus: list[str] = []
    if tensorflow is not None and hasattr(tensorflow, "config"):
        for device in tensorflow.config.list_physical_devices("GPU"):
            details = tensorflow.config.experimental.get_device_details(device)
            gpus.append(str(details.get("device_name", device.name)))
    return {"processor": processor(), "cpus": cpus(), "gpus": gpus}

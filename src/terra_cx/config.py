"""What can be set, and where it is read from.

A setting is a field of `Options`. Its value comes from the first of these that has it: the command line,
the environment (`TERRA_RUN_AHEAD=8`), the nearest `pyproject.toml` upward from the working directory with a
`[tool.terra-cx]` table (`run-ahead = 8`), the default. Every source goes through the same reader, so that a
value means the same everywhere, and a name that no setting has is an error that says so: a misspelt setting
that is silently ignored costs its user more than the message does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from terra_cx.errors import ConfigError

Mode = Literal["eager", "trace", "lazy", "co"]
PaceName = Literal["measured", "overlapped", "turns"]
LevelName = Literal["exact", "graph", "xla", "auto"]

TABLE = "tool.terra-cx"
PREFIX = "TERRA_"

# Read straight from the environment by whoever prints tracebacks; no setting, because it must also work
# when the settings themselves cannot be read.
TRACEBACK_VARIABLE = "TERRA_TRACEBACK"

_ON = {"1", "true", "yes", "on"}
_OFF = {"0", "false", "no", "off"}


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else ""
    if word in _ON or word in _OFF:
        return word in _ON
    raise ValueError("true or false")


def _one_of(names: object) -> Callable[[object], object]:
    known = get_args(names)

    def read(value: object) -> object:
        if value in known:
            return value
        raise ValueError("one of " + ", ".join(known))

    return read


def _whole(minimum: int) -> Callable[[object], int]:
    wanted = f"a whole number of at least {minimum}"

    def read(value: object) -> int:
        # bool is an int: `run-ahead = true` is a mistake, not 1.
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(wanted)
        try:
            number = int(value)
        except ValueError:
            raise ValueError(wanted) from None
        if number < minimum:
            raise ValueError(wanted)
        return number

    return read


def _seconds(value: object) -> float:
    wanted = "a number of seconds above 0"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(wanted)
    try:
        number = float(value)
    except ValueError:
        raise ValueError(wanted) from None
    if not number > 0:  # also refuses nan
        raise ValueError(wanted)
    return number


def _path(what: str) -> Callable[[object], Path]:
    def read(value: object) -> Path:
        if not isinstance(value, str | Path) or not str(value):
            raise ValueError(f"the name of a {what}")
        return Path(value)

    return read


@dataclass(frozen=True, slots=True)
class Options:
    """All settings of one run; immutable. `SETTINGS` says what each means and which values it takes."""

    mode: Mode = "co"
    quiet: bool = False
    report: Path | None = None
    profile: Path | None = None
    run_ahead: int = 4
    pace: PaceName = "measured"
    level: LevelName = "exact"
    warmup: int = 1
    watchdog: float = 60.0
    sync_errors: bool = False
    no_elide: bool = False
    disable: bool = False
    max_nodes: int = 20000
    cache: Path | None = None
    cache_readonly: bool = False
    cache_limit: int = 1024


@dataclass(frozen=True, slots=True)
class Setting:
    """A field of `Options` as its sources see it.

    `reader` turns a string or a TOML value into the field's type, or raises ValueError with what it wants
    instead. `metavar` is empty for a switch, which takes no value on the command line.
    """

    name: str
    reader: Callable[[object], object]
    help: str
    metavar: str = ""

    @property
    def key(self) -> str:
        """Its spelling on the command line and in pyproject.toml: `run-ahead`."""
        return self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Its spelling in the environment: `TERRA_RUN_AHEAD`."""
        return PREFIX + self.name.upper()

    def read(self, value: object, origin: str) -> object:
        """Return `value`, a string or a TOML value, as the field's type.

        Raises:
            ConfigError: the value cannot be used; the message starts with `origin`.
        """
        try:
            return self.reader(value)
        except ValueError as wanted:
            raise ConfigError(f"{origin} must be {wanted}, not {value!r}") from None


_MODES = (
    "co: graph and Python side by side; lazy: the graph runs only when a value is read; "
    "trace: record, execute eagerly; eager: plain TensorFlow"
)

_PACES = (
    "measured: a loop's steps run overlapped, in turns or in eager, whichever was fastest; "
    "overlapped or turns: always so"
)

_LEVELS = (
    "exact: eager's numbers, bit for bit; graph: TensorFlow's graph optimizations; xla: compiled by XLA; "
    "auto: whichever of them is fastest, block by block"
)

SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("mode", _one_of(Mode), _MODES, "MODE"),
        Setting("quiet", _flag, "no summary on stderr at the end, and no progress on a terminal"),
        Setting("report", _path("file"), "write what the summary is made from to FILE, as JSON", "FILE"),
        Setting("profile", _path("directory"), "write a page, a timeline and numbers into DIR", "DIR"),
        Setting("run_ahead", _whole(1), "regions that Python may be ahead of the graph", "N"),
        Setting("pace", _one_of(PaceName), _PACES, "PACE"),
        Setting("level", _one_of(LevelName), _LEVELS, "LEVEL"),
        Setting("warmup", _whole(1), "traced regions that must bring nothing new before compiling", "N"),
        Setting("watchdog", _seconds, "a wait this long prints what both threads are doing", "SECONDS"),
        Setting("sync_errors", _flag, "let no step start before the last one can no longer fail"),
        Setting("no_elide", _flag, "run the Python of all library calls"),
        Setting("disable", _flag, "turn everything off"),
        Setting("max_nodes", _whole(1), "bound on the nodes of one loop's TraceGraph", "N"),
        Setting(
            "cache", _path("directory"), "keep in DIR what is learned, and begin with what is there", "DIR"
        ),
        Setting("cache_readonly", _flag, "write nothing into the cache"),
        Setting("cache_limit", _whole(1), "most megabytes that the cache may take", "MB"),
    )
}


def load(
    command_line: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Options:
    """Return the options that hold for a run.

    Args:
        command_line: values by field name, already given by the caller; they win over every other source.
        environ: the environment (default: the process's).
        directory: where the search for `pyproject.toml` starts (default: the working directory).

    Raises:
        ConfigError: an unknown name, a value that cannot be used, or a pyproject.toml that cannot be read.
    """
    environ = os.environ if environ is None else environ
    given = command_line or {}
    disable = SETTINGS["disable"]
    if environ.get(disable.variable) and disable.read(environ[disable.variable], disable.variable):
        # Off means off: no other setting, good or bad, may then get in the program's way.
        return Options(disable=True)
    values: dict[str, object] = {}
    values.update(_from_pyproject(Path.cwd() if directory is None else directory))
    values.update(_from_environment(environ))
    for name, value in given.items():
        if name not in SETTINGS:
            raise ConfigError(_unknown(f"setting {name!r}", name, list(SETTINGS)))
        values[name] = SETTINGS[name].read(value, "--" + SETTINGS[name].key)
    return Options(**values)  # type: ignore[arg-type]  # each value came out of its own field's reader


def _from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    by_variable = {setting.variable: setting for setting in SETTINGS.values()}
    values = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable == TRACEBACK_VARIABLE:
            continue
        if variable not in by_variable:
            raise ConfigError(_unknown(f"environment variable {variable}", variable, list(by_variable)))
        if text:  # an empty variable is the shell's way of saying "not set"
            setting = by_variable[variable]
            values[setting.name] = setting.read(text, variable)
    return values


def _from_pyproject(directory: Path) -> dict[str, object]:
    for folder in (directory, *directory.parents):
        table = _read_table(folder / "pyproject.toml")
        if table is not None:
            return _from_table(table, folder / "pyproject.toml")
    return {}


def _from_table(table: Mapping[str, object], file: Path) -> dict[str, object]:
    by_key = {setting.key: setting for setting in SETTINGS.values()}
    values = {}
    for key, value in table.items():
        setting = by_key.get(key) or SETTINGS.get(key)  # run_ahead is taken as well as run-ahead
        if setting is None:
            raise ConfigError(_unknown(f"key {key!r} in [{TABLE}] of {file}", key, list(by_key)))
        read = setting.read(value, f"{setting.key} in [{TABLE}] of {file}")
        # A file named in a file is meant relative to that file, wherever the program is started from.
        values[setting.name] = file.parent / read if isinstance(read, Path) else read
    return values


def _read_table(file: Path) -> Mapping[str, object] | None:
    """The `[tool.terra-cx]` table of `file`; None where there is no such file or table."""
    try:
        text = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be read: {error.strerror}; TERRA_DISABLE=1 runs without it"
        ) from None
    # Most projects never mention us: then the file need not be parsed, nor even be valid.
    if b"terra-cx" not in text:
        return None
    import tomllib  # 15 ms that only a project with such a table pays

    try:
        tool = tomllib.loads(text.decode()).get("tool", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from None
    table = tool.get("terra-cx") if isinstance(tool, dict) else None
    if table is not None and not isinstance(table, dict):
        raise ConfigError(f"terra-cx in [tool] of {file} must be a table: write [{TABLE}]")
    return table


def _unknown(what: str, name: str, known: list[str]) -> str:
    """The text for a name that does not exist, with the nearest one that does."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    return f"unknown {what}; " + (f"did you mean {near[0]}?" if near else "known: " + ", ".join(known))

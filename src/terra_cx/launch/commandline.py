"""The command line of `terra-run`: our options, then the program, then the program's own arguments.

Our options stop at the first word that is not one, at `--`, or with `-m` and `-c`, exactly as python's do;
everything behind belongs to the program and is not looked at. This is parsed by hand because argparse
cannot promise that: its REMAINDER takes a `--` away from the program's arguments in some of the supported
Python versions and not in others.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from terra_cx.config import SETTINGS, Options
from terra_cx.errors import UsageError
from terra_cx.launch.program import Target


@dataclass(frozen=True, slots=True)
class Option:
    """An option; `metavar` is empty for one without a value, `short` for one without a letter."""

    name: str
    help: str
    metavar: str = ""
    short: str = ""


@dataclass(slots=True)
class CommandLine:
    """A command line taken apart.

    `settings` holds values for `terra_cx.config.load`, `others` those of options that are no settings (by
    name). `target` is None when help or the version is asked for.
    """

    target: Target | None = None
    settings: dict[str, object] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    safe_path: bool = False
    help: bool = False
    version: bool = False


_SWITCHES = (
    Option("safe-path", "do not put the program's directory first on sys.path, as python -P", short="P"),
    Option("help", "show this text", short="h"),
    Option("version", "show the version", short="V"),
)
_SHORT = {"quiet": "q"}


def setting_options() -> tuple[Option, ...]:
    """The options made from the settings; `disable` is left out, since a run is disabled from outside."""
    defaults = Options()
    options = []
    for setting in SETTINGS.values():
        if setting.name != "disable":
            default = getattr(defaults, setting.name) if setting.metavar else None
            text = setting.help + (f" (default: {default})" if default is not None else "")
            options.append(Option(setting.key, text, setting.metavar, _SHORT.get(setting.name, "")))
    return tuple(options)


def parse(words: Sequence[str], command: str = "terra-run", extra: Sequence[Option] = ()) -> CommandLine:
    """Take the words after the command's name apart.

    Args:
        words: the command line without the command itself.
        command: its name, for messages.
        extra: further options with a value, which end up in `others`.

    Raises:
        UsageError: an unknown option, a missing value, or no program.
    """
    line = CommandLine()
    options = (*setting_options(), *extra, *_SWITCHES)
    by_long = {o.name: o for o in options}
    by_short = {o.short: o for o in options if o.short}
    position = 0

    def value_of(option: str, attached: str | None) -> str:
        nonlocal position
        if attached is not None:
            return attached
        if position == len(words):
            raise UsageError(f"{option} needs a value; see {command} --help")
        position += 1
        return words[position - 1]

    while position < len(words):
        word = words[position]
        if word == "--":
            position += 1
            break
        if word == "-" or not word.startswith("-"):
            break
        position += 1
        if word.startswith("--"):
            name, equals, text = word[2:].partition("=")
            attached = text if equals else None
            option = by_long.get(name)
            if option is not None and option.metavar:
                _record(line, option, value_of(word, attached))
            elif option is not None and attached is None:
                _record(line, option, True)
            elif name.startswith("no-") and name[3:] in by_long and attached is None and _is_switch(name[3:]):
                _record(line, by_long[name[3:]], False)
            else:
                raise UsageError(_unknown(word, list(by_long), command))
            continue
        for index, letter in enumerate(word[1:], start=2):
            if letter in "mc":
                # The rest of this word, or the next word, is the program; all else is its arguments, as for
                # python.
                what = value_of("-" + letter, word[index:] or None)
                line.target = Target("module" if letter == "m" else "code", what, tuple(words[position:]))
                return line
            if letter not in by_short:
                raise UsageError(_unknown("-" + letter, [], command))
            _record(line, by_short[letter], True)
    if line.help or line.version:
        return line
    if position == len(words):
        raise UsageError(f"no program given; {command} script.py, or see {command} --help")
    if words[position] == "-":
        raise UsageError("a program on the standard input cannot be run; put it into a file")
    line.target = Target("script", words[position], tuple(words[position + 1 :]))
    return line


def _is_switch(name: str) -> bool:
    setting = SETTINGS.get(name.replace("-", "_"))
    return setting is not None and not setting.metavar


def _record(line: CommandLine, option: Option, value: str | bool) -> None:
    field_name = option.name.replace("-", "_")
    if field_name in SETTINGS:
        line.settings[field_name] = value
    elif option in _SWITCHES:
        setattr(line, field_name, value)
    else:
        line.others[field_name] = str(value)


def _unknown(word: str, known: list[str], command: str) -> str:
    near = difflib.get_close_matches(word.lstrip("-").partition("=")[0], known, n=1)
    hint = f"did you mean --{near[0]}?" if near else f"see {command} --help"
    return f"unknown option {word}; {hint}"


def help_text(command: str = "terra-run", extra: Sequence[Option] = ()) -> str:
    """The text of `--help`, ending in a newline."""
    lines = [
        f"usage: {command} [options] script.py | directory | archive.zip [arguments]",
        f"       {command} [options] -m module [arguments]",
        f"       {command} [options] -c code [arguments]",
        "",
        "Runs an eager TensorFlow program as python would, with its tensor operations in a compiled graph.",
        "",
        "options:",
    ]
    for option in (*setting_options(), *extra, *_SWITCHES):
        spelled = (f"-{option.short}, " if option.short else "    ") + f"--{option.name}"
        spelled += f" {option.metavar}" if option.metavar else ""
        text = textwrap.wrap(option.help, 110 - 28)
        lines.append(f"  {spelled:<24}  {text[0]}")
        lines += [" " * 28 + more for more in text[1:]]
    lines += [
        "",
        "Each option can also be set as TERRA_<NAME> in the environment or as a key of [tool.terra-cx] in",
        "pyproject.toml. A switch is turned off with --no-<name>. TERRA_DISABLE=1 turns terra-cx off;",
        "TERRA_TRACEBACK=full leaves its own frames in tracebacks.",
    ]
    return "\n".join(lines) + "\n"

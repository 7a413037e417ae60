"""The exceptions that terra-cx raises in its own name.

A user's program never has to catch these: what its operations raise under terra-cx is what TensorFlow
raises. They reach a user where terra-cx itself is asked for something: on the command line, in the
configuration, through the Python API.
"""

from __future__ import annotations

from typing import ClassVar


class TerraError(Exception):
    """Base of every exception of terra-cx.

    `exit_code` is the status with which a command of ours ends when nobody catches the exception. The
    message is one line: what is wrong, then what to do about it.
    """

    exit_code: ClassVar[int] = 1


class UsageError(TerraError):
    """The command line asks for something that cannot be done; nothing has been started or written."""

    exit_code: ClassVar[int] = 2


class ConfigError(UsageError):
    """A setting has an unknown name or a value that cannot be used; the message says where it was found."""


class InternalError(TerraError):
    """terra-cx found itself in a state that its own rules exclude.

    Never the program's fault and never shown to it as an exception: whoever meets one falls back to eager
    execution, says so once and counts it.
    """

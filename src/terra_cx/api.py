"""The Python interface: `co_execute` and `region`."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from terra_cx.profile.output import Claim
    from terra_cx.session import Session

__all__ = ["co_execute", "region"]

P = ParamSpec("P")
R = TypeVar("R")


class co_execute:  # noqa: N801  # reads as the function it is used as
    """Co-execute what runs inside: a context manager, and a decorator.

    As a decorator the function, the functions defined in it, and those that it can name in its module or in its
    closure get anchor probes, so the step loop is found by itself. As a context manager the code inside already
    runs and cannot be given probes: modules imported inside get them, and `region` marks a step. Nor can it be
    seen which `try` an op stands in, so there every op that may fail is waited for (`sync_errors`).

    Args:
        settings: any setting of `terra_cx.config.Options`, by name; those not given come from the environment
            and pyproject.toml.

    Raises:
        ConfigError: an unknown setting or a bad value.
        TerraError: a session is started already.
    """

    def __init__(self, **settings: object) -> None:
        self._settings = settings
        self._session: Session | None = None
        self._probed = False
        self._profile: Claim | None = None
        self._process = 0

    def __enter__(self) -> Session:
        from terra_cx import config
        from terra_cx.session import Session

        options = config.load(self._settings)
        if not self._probed:
            options = dataclasses.replace(options, sync_errors=True)
        asked = options.mode != "eager" or "profile" in self._settings
        if options.profile is not None and asked and not options.disable:
            from terra_cx.profile.output import claim

            self._profile = claim(options.profile, options.mode)
            self._process = os.getpid()
        session = Session(options)
        if options.disable or options.mode == "eager":
            return session
        session.start()
        self._session = session
        return session

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        try:
            session.finish()
        finally:
            session.close()
            if self._profile is not None and os.getpid() == self._process:  # not in a forked child
                self._write_profile(session, self._profile)

    @staticmethod
    def _write_profile(session: Session, profile: Claim) -> None:
        """A profile that cannot be written is told, and is no error of the program's."""
        from terra_cx.profile.output import texts

        try:
            profile.write(texts(session, session.report()))
        except Exception as error:  # noqa: BLE001
            sys.stderr.write(
                f"terra-cx: could not write its profile ({error}); the program is not affected\n"
            )

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate ``function``; each call is a session of its own."""
        if not isinstance(function, types.FunctionType):
            raise TypeError(f"co_execute decorates functions, not {type(function).__name__}")

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            manager = co_execute(**self._settings)
            manager._probed = True
            with manager as session:
                run.last_session = session  # type: ignore[attr-defined]
                if not session.started:  # switched off: nobody would answer the probes
                    return function(*args, **kwargs)  # type: ignore[no-any-return]
                session.inplace.plant_around(function)
                probed = types.FunctionType(
                    session.instrument(function.__code__),
                    function.__globals__,
                    function.__name__,
                    function.__defaults__,
                    function.__closure__,
                )
                probed.__kwdefaults__ = function.__kwdefaults__
                return probed(*args, **kwargs)  # type: ignore[no-any-return]

        return run


def region() -> None:
    """Mark the place of the call as the beginning of a step; without a session it does nothing."""
    module = sys.modules.get("terra_cx.session")
    session = module.current() if module is not None else None
    if session is not None:
        session.region(sys._getframe(1))

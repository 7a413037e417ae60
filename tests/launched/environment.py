"""Prints, as JSON, all that a program can see of how it was started; run under python and terra-run."""

import atexit
import builtins
import inspect
import json
import multiprocessing
import os
import pickle
import re
import signal
import sys
import threading
import traceback

import __main__


class Thing:
    def __init__(self, value):
        self.value = value


def where_am_i():
    return {
        "name": __name__,
        "argv": sys.argv,
        "path": sys.path,
        "file": globals().get("__file__"),
        "terra_cx": sorted(name for name in sys.modules if name.startswith("terra_cx")),
        "pid_differs": os.getpid() != os.getppid(),
    }


def outcome(function):
    try:
        return function()
    except Exception as error:
        return [type(error).__name__, str(error)]


def plain(value):
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def fail():
    try:
        {}["missing"]
    except KeyError as error:
        raise ValueError("a message") from error


def failure():
    try:
        fail()
    except ValueError:
        return traceback.format_exc()


def main():
    spec = __spec__
    namespace = {name: plain(value) for name, value in globals().items() if name.startswith("__")}
    seen = {
        "argv": sys.argv,
        "path": sys.path,
        "cwd": os.getcwd(),
        "globals": list(globals()),
        "values": namespace,
        "spec": spec and {name: plain(getattr(spec, name)) for name in dir(spec) if name[:2] != "__"},
        "builtins_is_module": __builtins__ is builtins,
        "main_is_here": vars(__main__) is globals() and __main__ is sys.modules["__main__"],
        "main_type": plain(type(__main__)),
        "main_repr": plain(__main__),
        "flags": [str(flag) for flag in sys.flags],
        "options": [sys.warnoptions, plain(sys._xoptions), sys.dont_write_bytecode],
        "prefix": [sys.executable, sys.prefix, sys.base_prefix],
        "hooks": [sys.excepthook is sys.__excepthook__, sys.displayhook is sys.__displayhook__],
        "trace": [sys.gettrace(), sys.getprofile(), threading.gettrace(), sys.getrecursionlimit()],
        "switch_interval": sys.getswitchinterval(),
        "signals": {
            name: plain(signal.getsignal(getattr(signal, name))) for name in ("SIGINT", "SIGTERM", "SIGPIPE")
        },
        "threads": [thread.name for thread in threading.enumerate()],
        "streams": [sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__, sys.stdin.encoding],
        "pickle": plain(pickle.dumps(Thing(3))) + str(pickle.loads(pickle.dumps(Thing(3))).value),
        "module_of_class": Thing.__module__,
        "source": outcome(lambda: inspect.getsource(Thing)),
        "traceback": failure(),
        "future": outcome(lambda: str(sys.modules["__main__"].failure.__code__.co_flags)),
    }
    # Children cannot find their way back into code from -c or into a module that is called __main__.
    if "SPAWN" in os.environ:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seen["spawned"] = pool.apply(where_am_i)
            seen["spawned_thing"] = pool.apply(Thing, (4,)).value
    print(json.dumps(seen, indent=1))


if __name__ == "__main__":
    atexit.register(lambda: print("at exit:", sorted(vars(sys.modules["__main__"]))))
    main()
    fail()

"""terra-run with a session that tells what is asked of it. FAKE names what goes wrong, comma-separated."""

import os
import sys
import types

import terra_cx
from terra_cx.errors import InternalError, UsageError

WRONG = os.environ.get("FAKE", "").split(",")


def say(text):
    sys.stderr.write(f"session: {text}\n")


class Session:
    def __init__(self, options):
        self.options = options

    def start(self):
        say(f"start mode={self.options.mode} argv={sys.argv[1:]}")
        if "start" in WRONG:
            raise RuntimeError("no start")
        if "refuse" in WRONG:
            raise UsageError("this interpreter is not supported")

    def instrument(self, code):
        say(f"instrument {os.path.basename(code.co_filename)} {code.co_name}")
        if "instrument" in WRONG:
            raise RuntimeError("no probes")
        return code.replace(co_consts=tuple("rewritten" if c == "as written" else c for c in code.co_consts))

    def finish(self):
        say("finish")
        if "deferred" in WRONG:
            raise ArithmeticError("deferred")
        if "internal" in WRONG:
            raise InternalError("bad state")

    def close(self):
        say("close")
        if "close" in WRONG:
            raise RuntimeError("no close")

    def report(self):
        say("report")
        if "report" in WRONG:
            raise RuntimeError("no report")
        return {
            "tensorflow": "2.21.0",
            "regions": {"total": 10, "co_executed": 7, "traced": 2, "eager": 1},
            "step_ms": {"eager": 3.0, "co": 1.5},
            "internal_errors": 1 if "counted" in WRONG else 0,
        }

    def graph_text(self):
        return "the graph"

    def graph_dot(self):
        return "digraph {}"


fake = types.ModuleType("terra_cx.session")
fake.Session = Session
sys.modules["terra_cx.session"] = terra_cx.session = fake

if __name__ == "__main__":
    from terra_cx import cli, launcher

    entry = cli.main if sys.argv[1] == "terra-cx" else launcher.main
    sys.exit(entry(sys.argv[2:]))

"""Runs other people's tests under co-execution, each body repeated until hot: suites that wheels carry.

Each test file runs twice in a process of its own, in plain eager and co-executed (`tests/peers/hot.py`), and the
outcomes are compared; as many files at a time as there are processors. `tests/peers/ledger.toml` holds the tests that
are known to differ, with a reason each. Exit code: 0 if nothing else differs and no entry of the ledger is out of date,
1 otherwise, 2 if nothing could be run.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

HERE = Path(__file__).resolve().parents[1] / "tests" / "peers"


@dataclass(frozen=True, slots=True)
class Suite:
    """Tests that an installed package carries: the files of these patterns below it, each body run so many times."""

    package: str
    times: int
    patterns: tuple[str, ...]

    def files(self, pattern):
        """The test files whose path holds the pattern.

        Raises:
            ValueError: the package is not installed.
        """
        spec = importlib.util.find_spec(self.package)
        if spec is None:
            raise ValueError(f"{self.package} is not installed; `make peers` does it")
        root = Path(spec.origin).parent
        found = sorted({file for wanted in self.patterns for file in root.glob(wanted)})
        return [file for file in found if pattern in str(file.relative_to(root.parent))]


SUITES = (
    # Not conformance, distribute and functional: they test saving, devices and tf.function, not ops.
    Suite(
        "sonnet", 14, tuple(f"src/{folder}*_test.py" for folder in ("", "nets/", "nets/dnc/", "optimizers/"))
    ),
    # Not datasets and projects: they want data, and packages that do not go with Keras 3.
    Suite(
        "tensorflow_graphics",
        8,  # jacobians at random places: seconds each, in eager as well
        tuple(f"{f}/**/*_test.py" for f in ("geometry", "image", "math", "nn", "rendering", "util")),
    ),
)


def run(file, times, mode, folder):
    """The outcomes of one file's tests in a mode: ``{test: [outcome, detail, co-executed regions, times]}``.

    Eager comes first: it says how often a body that takes long is run.
    """
    result = folder / f"{file.stem}-{mode}.json"
    result.unlink(missing_ok=True)
    environment = os.environ | {
        "PEERS_MODE": mode,
        "PEERS_TIMES": str(times),
        "PEERS_RESULT": str(result),
        "PEERS_EAGER": str(folder / f"{file.stem}-eager.json"),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH")))),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TERRA_PACE": "overlapped",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "hot",
        "-p",
        "no:cacheprovider",
        "--tb=line",
        "--timeout=3600",  # a jacobian of the geometry takes minutes in eager
        "-o",
        "faulthandler_timeout=0",  # a dump of stacks may crash a process that is at work
    ]
    done = subprocess.run(
        [*command, str(file)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if not result.exists():
        return {f"{file.stem}::the whole file": ["crashed", done.stdout.strip()[-300:], 0, 0]}
    return json.loads(result.read_text())


def compared(file, times, folder):
    """The outcomes of a file's tests, in eager and co-executed, by the test's name."""
    eager, co = (run(file, times, mode, folder) for mode in ("eager", "co"))
    blank = ["missing", "", 0, 0]
    return {name: (eager.get(name, blank), co.get(name, blank)) for name in sorted(eager.keys() | co.keys())}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "pattern",
        nargs="?",
        default="",
        help="only files with this in their path, say sonnet or graphics/math",
    )
    parser.add_argument(
        "-j", "--jobs", type=int, default=os.cpu_count(), help="files at a time (%(default)s)"
    )
    args = parser.parse_args()
    console = Console()
    try:
        chosen = [(file, suite.times) for suite in SUITES for file in suite.files(args.pattern)]
        ledger = tomllib.loads((HERE / "ledger.toml").read_text())
        if not chosen:
            raise ValueError(f"no test file has {args.pattern!r} in its path")
    except (OSError, ValueError) as error:
        print(f"peers: {error}", file=sys.stderr)
        return 2
    table = Table("file", "tests", "pass in both", "fail in both", "co-executed", "differ")
    differ, known, ran = [], [], set()
    sums = [0] * (len(table.columns) - 1)
    pool = ThreadPoolExecutor(args.jobs)
    with tempfile.TemporaryDirectory(prefix="terra-cx-peers-") as folder:
        # (Files of one name would share what they write.)
        folders = [Path(folder, str(number)) for number in range(len(chosen))]
        for each in folders:
            each.mkdir()
        results = pool.map(compared, *zip(*chosen, strict=True), folders)
        try:
            told = list(track(results, "testing", total=len(chosen), console=Console(stderr=True)))
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C
    for (file, _), pairs in zip(chosen, told, strict=True):
        ran |= pairs.keys()
        here = [(name, a, b) for name, (a, b) in pairs.items() if a[0] != b[0]]
        differ += [one for one in here if one[0] not in ledger]
        known += [one[0] for one in here if one[0] in ledger]
        both = [a[0] for a, b in pairs.values() if a[0] == b[0]]
        hot = sum(b[2] > 0 for _, b in pairs.values())
        cells = (len(pairs), both.count("passed"), both.count("failed"), hot, len(here))
        sums = [sum(pair) for pair in zip(sums, cells, strict=True)]
        table.add_row(file.stem, *map(str, cells))
    table.add_section()
    table.add_row(f"{len(chosen)} files", *map(str, sums))
    console.print(table)
    for name, a, b in differ:
        print(f"{name}: {a[0]} in eager, {b[0]} co-executed: {b[1] or a[1]}")
    stale = sorted(name for name in ledger if name in ran and name not in known)
    for name in stale:
        print(f"{name}: the ledger says it differs, and it does not any more")
    return 1 if differ or stale else 0


if __name__ == "__main__":
    sys.exit(main())

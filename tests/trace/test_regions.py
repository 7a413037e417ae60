"""The step of model programs: which anchor is chosen, and how soon."""

from __future__ import annotations

import builtins
import gc
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from terra_cx.observe.anchors import ARRIVAL, BARRIER, PROBE, AnchorTable, instrument
from terra_cx.trace.regions import Survey


class Surveyed:
    """Runs a program of scripted ops under a survey, until the survey has chosen."""

    def __init__(self, source: str, warm: int = 0, **library: Any) -> None:
        self.table = AnchorTable()
        self.survey = Survey(self.table)
        self.warm = warm
        self.counts: dict[int, int] = {}
        self.tapes = 0
        self.steps = 0
        self.chosen: int | None = None
        self.reason = ""
        self.steps_before = 0
        self.frames: list[FrameType] = []
        code = instrument(compile(textwrap.dedent(source), "user.py", "exec"), self.table)
        names = {
            name: getattr(self, name)
            for name in (
                "op",
                "write",
                "gradient",
                "tape",
                "forward",
                "apply",
                "train_step",
                "evaluate",
                "keep_frame",
            )
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(builtins, PROBE, self.probe, raising=False)
            patch.setattr(builtins, BARRIER, lambda *_: None, raising=False)
            patch.setattr(builtins, ARRIVAL, lambda error: error, raising=False)
            exec(code, names | library | {"__name__": "user"})

    def probe(self, anchor_id: int) -> None:
        self.counts[anchor_id] = self.counts.get(anchor_id, 0) + 1
        if self.chosen or (self.warm and max(self.counts.values()) < self.warm):
            return
        self.survey.visit(anchor_id, sys._getframe(1), self.tapes)
        choice = self.survey.choice()
        if choice is not None and choice.anchor == anchor_id and self.tapes == 0:
            anchor = self.table[anchor_id]
            self.chosen, self.reason, self.steps_before = anchor.line, choice.reason, self.steps

    # -- what a program does, as a library would ---
    def op(self, times: int = 1) -> None:
        for _ in range(times):
            self.survey.op(False, self.tapes)

    def write(self, times: int = 1) -> None:
        for _ in range(times):
            self.survey.op(True, self.tapes)

    def gradient(self) -> None:
        self.survey.gradient(self.tapes)
        self.op(20)

    @contextmanager
    def tape(self) -> Iterator[None]:
        self.tapes += 1
        yield
        self.tapes -= 1

    def forward(self) -> None:
        with self.tape():
            self.op(10)

    def apply(self) -> None:
        self.steps += 1
        self.op(5)
        self.write(13)

    def train_step(self) -> None:
        self.forward()
        self.gradient()
        self.apply()

    def evaluate(self) -> None:
        self.op(10)
        self.write(2)

    def keep_frame(self) -> None:
        """The frame that calls stays, and no later one has its id."""
        self.frames.append(sys._getframe(1))


def library_fit(step: Callable[[Any], None], count: int, callback: Callable[[], None] | None = None) -> None:
    """A training loop that is not the user's; it calls through a frame of its own, as libraries do."""

    def run_one(item: Any) -> None:
        step(item)

    for item in range(count):
        run_one(item)
    if callback:
        callback()


# How many steps at most are over when the choice falls, and the program.
PROGRAMS = {
    "loop": (3, """
        for batch in range(20):  # here
            train_step()
    """),
    "epochs over batches": (9, """
        for epoch in range(3):
            for batch in range(100):  # here
                train_step()
    """),
    "epochs over few batches, with validation and metrics": (18, """
        for epoch in range(5):
            for batch in range(10):  # here
                train_step()
            for batch in range(4):
                evaluate()
            write(2)
            op(3)
    """),
    "in a function": (3, """
        def main():
            op(10)
            for batch in range(50):  # here
                train_step()
        main()
    """),
    "while": (3, """
        step = 0
        op(3)
        while step < 50:  # here
            train_step()
            step += 1
    """),
    "while true": (4, """
        step = 0
        while True:  # here
            train_step()
            step += 1
            if step == 50: break
    """),
    "method": (9, """
        class Trainer:
            def fit(self):
                for epoch in range(3):
                    self.epoch()
            def epoch(self):
                for batch in range(40):  # here
                    self.step(batch)
            def step(self, batch):
                train_step()
        Trainer().fit()
    """),
    "generator drives": (3, """
        def training():
            for batch in range(100):
                train_step()
                yield batch
        op(1)
        for loss in training():  # here
            op(1)
    """),
    "generator of batches": (3, """
        def batches():
            for index in range(100):
                op(2)
                yield index
        op(1)
        for batch in batches():  # here
            train_step()
    """),
    "generator inside a library": (3, """
        def training():
            for batch in range(100):  # here
                train_step()
                yield batch
        sum(training())
    """),
    "gradient accumulation": (4, """
        for batch in range(30):  # here
            for micro in range(4):
                forward()
                gradient()
            apply()
    """),
    "gradient accumulation into variables, under epochs": (9, """
        def train():
            for epoch in range(3):
                for batch in range(30):  # here
                    for micro in range(4):
                        forward()
                        gradient()
                        write(4)
                    apply()
                    write(4)
        train()
    """),
    "a critic's updates are a loop of their own, if there are many": (9, """
        for step in range(30):
            for _ in range(10):  # here
                train_step()
            train_step()
    """),
    "n_critic": (24, """
        for step in range(30):  # here
            for _ in range(5):
                train_step()
            train_step()
    """),
    "n_critic in functions": (24, """
        def critic_step():
            train_step()
        def generator_step():
            train_step()
        def full_step():
            for _ in range(5):
                critic_step()
            generator_step()
        op(1)
        for step in range(30):  # here
            full_step()
    """),
    "step function called by a library": (3, """
        def step(item):  # here
            train_step()
        library_fit(step, 50)
    """),
    "accumulating step function called by a library": (4, """
        def step(item):  # here
            for micro in range(3):
                forward()
                gradient()
            apply()
        library_fit(step, 50)
    """),
    "a library's training in a user's loop": (9, """
        def step(item):  # here
            train_step()
        for trial in range(3):
            library_fit(step, 40, lambda: op(1))
    """),
    "step function in a comprehension": (9, """
        def step(item):  # here
            train_step()
            return item
        for epoch in range(3):
            losses = [step(batch) for batch in range(40)]
    """),
    "loop under a tape": (3, """
        for step in range(30):  # here
            with tape():
                for t in range(5 + step % 3):
                    op(3)
            gradient()
            apply()
    """),
    "REINFORCE": (3, """
        def act():
            op(3)
        def run_episode(length):
            done = False
            t = 0
            while not done:
                act()
                t += 1
                done = t > length
        op(1)
        for episode in range(30):  # here
            with tape():
                run_episode(episode % 7)
            gradient()
            apply()
    """),
    "data preparation inside": (3, """
        for batch in range(30):  # here
            rows = []
            for row in range(32):
                rows.append(row)
            train_step()
    """),
    "manual update of many variables": (3, """
        for batch in range(30):  # here
            forward()
            gradient()
            for variable in range(60):
                op(1)
                write(1)
    """),
    "several losses of one tape": (7, """
        for batch in range(30):  # here
            forward()
            for loss in range(3):
                gradient()
                apply()
    """),
    "update now and then": (20, """
        for step in range(200):  # here
            op(4)
            if step > 8 and step % 4 == 0:
                train_step()
    """),
    "writes only": (10, """
        for batch in range(30):  # here
            op(20)
            apply()
    """),
    "writes only, in epochs longer than any list of variables": (1010, """
        for epoch in range(2):
            for batch in range(1500):  # here
                op(20)
                apply()
    """),
    "ops only": (210, """
        for batch in range(300):  # here
            op(20)
    """),
    "ops only, layers in batches": (210, """
        for batch in range(300):  # here
            for layer in range(18):
                op(20)
    """),
    "layers that a library calls, and that write": (30, """
        def layer(number):
            op(20)
            write(2)
        for batch in range(50):  # here
            library_fit(layer, 18)
    """),
    "preparing data before training": (3, """
        for image in range(150):
            op(20)
        for name in range(1000):
            op(1)
        for batch in range(30):  # here
            train_step()
    """),
    "setting up before training": (3, """
        for layer in range(5):
            op(3)
            write(2)
        for name in 'abc':
            pass
        op(1)
        for batch in range(30):  # here
            train_step()
    """),
    "functions that call each other": (10, """
        def down(depth):
            if depth:
                up(depth)
            train_step()
        def up(depth):
            down(depth - 1)
            gradient()
        for batch in range(30):  # here
            down(3)
    """),
    "recursion called by a library": (20, """
        def step(item):
            for depth in range(1):
                if item % 2:
                    step(item + 1)
            train_step()
        def main():  # here
            op(1)
            step(1)
        library_fit(lambda item: main(), 50)
    """),
    "a function called by lambdas that a library calls, each in a frame of its own": (20, """
        def main():  # here
            train_step()
        library_fit(lambda item: (keep_frame(), main()), 50)
    """),
    "a loop that only reads at first": (3, """
        for batch in range(300):  # here
            if batch > 200:
                train_step()
    """),
    "loops without ops in each step": (3, """
        def words(text):
            for letter in range(text):
                for bit in range(3):
                    pass
        for batch in range(30):  # here
            for text in range(8):
                words(text)
            train_step()
    """),
    "a function that works rarely": (20, """
        def act(turn):
            for _ in range(4):
                if turn % 50 == 49:
                    return train_step()
        def episode():
            for turn in range(100):  # here
                act(turn)
        library_fit(lambda item: episode(), 50)
    """),
    "a first phase with another loop": (3, """
        for batch in range(30):  # here
            train_step()
        for batch in range(30):
            train_step()
            train_step()
    """),
    "an unlike number of inner rounds": (20, """
        for step in range(30):
            for _ in range(1 + step % 3):  # here
                train_step()
            train_step()
    """),
    "everything inside an open tape of its step": (3, """
        for batch in range(30):  # here
            with tape():
                op(10)
                gradient()
                apply()
    """),
}  # fmt: skip


@pytest.mark.parametrize("warm", [0, 2])
@pytest.mark.parametrize("name", PROGRAMS)
def test_choice(name: str, warm: int) -> None:
    soon, source = PROGRAMS[name]
    expected = next(n for n, line in enumerate(source.split("\n"), 1) if line.endswith("# here"))
    surveyed = Surveyed(source, warm, library_fit=library_fit)
    assert surveyed.chosen == expected, surveyed.reason
    assert surveyed.steps_before <= soon + warm, surveyed.reason
    assert surveyed.reason


@pytest.mark.parametrize(
    "source",
    [
        "for x in range(100):\n    y = x",
        "for x in range(100):\n    op(3)",
        "with tape():\n    for x in range(100):\n        train_step()",
        "def step(item):\n    train_step()\nwith tape():\n    library_fit(step, 100)",
        "for layer in range(5):\n    write(3)",
        "train_step()\ntrain_step()\ntrain_step()",
        "for path in range(5):\n    for batch in range(40):\n        for layer in range(18):\n            op(20)",
    ],
    ids=[
        "no ops",
        "no work",
        "under a tape",
        "function under a tape",
        "setting up",
        "no loop",
        "an evaluation",
    ],
)
def test_no_choice(source: str) -> None:
    assert Surveyed(source, library_fit=library_fit).chosen is None


def test_visits_without_ops_are_passed_over() -> None:
    looked_at: list[str] = []

    class Watched(Survey):
        def _join(self, stack: Any) -> None:
            looked_at.append("")
            super()._join(stack)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "Survey", Watched)
        source = """
            def word(text):
                for letter in range(text):
                    pass
            for batch in range(30):
                for text in range(1000):
                    word(text)
                train_step()
        """
        assert Surveyed(source).chosen == 5
    assert len(looked_at) < 200


def test_tape_depth_may_be_left_out() -> None:
    table = AnchorTable()
    survey = Survey(table)
    code = compile("", "user.py", "exec")
    outer, inner = table.add("loop", code, 1), table.add("loop", code, 2)
    frame = sys._getframe()
    for _ in range(4):
        survey.visit(outer.id, frame)
        survey.op(False, 0)
        for _ in range(3):
            survey.visit(inner.id, frame)
            survey.op(False, 1)
        survey.gradient(0)
        survey.op(True, 0)
    choice = survey.choice()
    assert choice is not None
    assert choice.anchor == outer.id


def test_long_regions_are_not_promoted_to() -> None:
    source = """
    for step in range(30):
        for _ in range(4):
            forward()
            gradient()
        op({})
        apply()
    """
    assert Surveyed(source.format(4000)).chosen == 2
    assert Surveyed(source.format(5000)).chosen == 3


def test_no_frame_is_kept_alive() -> None:
    class Witness:
        alive = 0

        def __init__(self) -> None:
            Witness.alive += 1

        def __del__(self) -> None:
            Witness.alive -= 1

    source = """
    def step(item):
        witness = Witness()
        for x in range(3):
            op(1)
        assert Witness.alive == 1
    for batch in range(30):
        step(batch)
        train_step()
    """
    gc.disable()
    try:
        surveyed = Surveyed(source, Witness=Witness)
    finally:
        gc.enable()
    assert surveyed.chosen == 7
    assert Witness.alive == 0

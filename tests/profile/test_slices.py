import itertools

from hypothesis import given
from hypothesis import strategies as st
from windows import MS, Made, at, ns, two_steps

from terra_cx.profile.slices import PYTHON, owner_slices


def shown(window):
    return [(s.start / MS, s.end / MS, s.part, s.line.rpartition(":")[2]) for s in owner_slices(window)]


def test_each_moment_of_a_step_belongs_to_one_slice():
    assert shown(two_steps()) == [
        (0, 4, "host", "12"),
        (4, 5, "terra", "20"),
        (5, 6, "elided", "21"),
        (6, 7, "user", "22"),
        (7, 10, "fetch", "30"),
        (10, 14, "host", "12"),
        (14, 15, "terra", "20"),
        (15, 16, "elided", "21"),
        (16, 18, "user", "23"),
        (18, 20, "graph", "10"),
    ]


def test_a_gap_with_samples_is_divided_half_way_between_them():
    window = Made().step(0, 10).sample(2, "user", 11).sample(4, "host", 12).sample(8, "host", 12).window
    assert shown(window) == [(0, 3, "user", "11"), (3, 10, "host", "12")]


def test_samples_in_a_wait_do_not_divide_a_gap():
    window = Made().step(0, 10).sample(2, "wait", 11).sample(4, "host", 12).window
    assert shown(window) == [(0, 10, "host", "12")]


def test_a_gap_without_samples_is_the_next_ops():
    window = Made().step(0, 10).op(1, 2, 20).op(3, 4, 20).op(6, 7, 21).window
    slices = [s for s in owner_slices(window) if s.part == PYTHON]
    assert [(s.line, s.gap) for s in slices] == [
        (at(20), ("", at(20))),
        (at(20), (at(20), at(20))),
        (at(21), (at(20), at(21))),
        (at(21), (at(21), "")),
    ]


def test_a_wait_inside_an_op_is_a_wait():
    window = Made().step(0, 10).op(0, 10, 20).fetch(2, 5, 20).window
    assert shown(window) == [(0, 2, "terra", "20"), (2, 5, "fetch", "20"), (5, 10, "terra", "20")]


pieces = st.lists(st.tuples(st.integers(0, 90), st.integers(1, 30), st.sampled_from(["op", "fetch", "wait"])))


@given(pieces, st.lists(st.integers(0, 99)))
def test_whatever_was_noted_the_slices_fill_the_steps_without_overlap(things, samples):
    made = Made().step(0, 60).step(60, 100)
    for start, length, kind in sorted(things):
        if kind == "op":
            made.op(start, start + length, 20)
        elif kind == "fetch":
            made.fetch(start, start + length, 30)
        else:
            made.wait(start, start + length, 30)
    for time in sorted(samples):
        made.sample(time, "user", 11)
    slices = owner_slices(made.window)
    assert slices[0].start == 0
    assert slices[-1].end == ns(100)
    assert all(a.end == b.start for a, b in itertools.pairwise(slices))

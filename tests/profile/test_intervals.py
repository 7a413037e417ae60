import itertools

from hypothesis import given
from hypothesis import strategies as st

from terra_cx.profile.intervals import intersection, length, subtract, union

spans = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)).map(lambda s: (s[0], s[0] + s[1])))


def points(intervals):
    return {point for start, end in intervals for point in range(start, end)}


def is_in_order(intervals):
    return all(a[1] < b[0] for a, b in itertools.pairwise(intervals)) and all(
        start < end for start, end in intervals
    )


@given(spans)
def test_a_union_has_the_same_points_in_order(one):
    assert points(union(one)) == points(one)
    assert is_in_order(union(one))
    assert length(union(one)) == len(points(one))


@given(spans, spans)
def test_an_intersection_has_the_points_of_both(one, other):
    assert points(intersection(one, other)) == points(one) & points(other)


@given(spans, spans)
def test_a_difference_has_the_points_of_the_first_alone(one, other):
    assert points(subtract(one, other)) == points(one) - points(other)
    assert length(subtract(one, other)) == len(points(one) - points(other))

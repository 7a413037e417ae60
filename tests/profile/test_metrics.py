import pytest
from windows import MS, Made, at, ns, two_steps

from terra_cx.profile.metrics import line_parts, measure, run_ahead
from terra_cx.profile.slices import PARTS, owner_slices


def close(value):
    return pytest.approx(value, rel=1e-6, abs=1e-9)


def test_what_a_person_computes_from_the_drawing():
    found = measure(two_steps())
    assert found.steps == 2
    assert found.step_ms == close(10)
    assert found.python_busy_ms == close((20 - 3 - 2) / 2)  # all but the read and the limit
    assert found.graph_busy_ms == close(4)
    # Of the graph's 4 + 4 ms Python works in 6 to 7 and 16 to 18.
    assert found.overlap == close(3 / 8)
    assert found.python_alone_ms == close((15 - 3) / 2)
    assert found.fetch_wait_ms == close(1.5)
    assert found.graph_wait_ms == close(1)
    assert found.feed_wait_ms == close(6)
    assert found.path_wait_ms == 0
    assert (found.queue_depth.mean, found.queue_depth.max) == (close(0.05), 1)
    assert found.ops_per_step == 14
    assert found.elided_share == close(10 / 14)
    assert found.runs_per_step == 1
    assert found.device is None


def test_the_parts_of_a_step_add_up_to_the_step():
    found = measure(two_steps())
    assert found.parts_ms == {
        "user": close(1.5),
        "host": close(4),
        "library": 0,
        "terra": close(1),
        "elided": close(1),
        "fetch": close(1.5),
        "graph": close(1),
    }
    assert sum(found.parts_ms.values()) == close(found.step_ms)
    assert sum(sum(parts.values()) for parts in found.lines.values()) == close(found.step_ms)
    assert found.lines[at(12)] == {"host": close(4)}
    assert found.lines[at(30)] == {"fetch": close(1.5)}
    assert found.ops == {at(20): (4, 0), at(21): (0, 10)}


def test_python_bounds_a_step_in_which_it_works_alone_most():
    bound = measure(two_steps()).bound_by
    assert (bound.what, bound.line, bound.share) == ("python", at(12), close(0.6))


def test_a_read_bounds_a_step_that_waits_for_it_most():
    made = Made().step(0, 10).op(0, 1, 20).run(1, 10).fetch(2, 10, 30, run=(1, 1, 0))
    bound = measure(made.window).bound_by
    assert (bound.what, bound.line, bound.share) == ("fetch", at(30), close(0.8))


def test_the_graph_bounds_a_step_that_waits_at_the_limit_most():
    made = Made().step(0, 10).op(0, 1, 20).run(0, 10).wait(1, 10, 10)
    bound = measure(made.window).bound_by
    assert (bound.what, bound.line, bound.share) == ("graph", "", close(0.9))


def test_where_neither_waits_the_busier_one_bounds():
    made = Made().step(0, 10).run(0, 9.7).sample(5, "user", 12)
    bound = measure(made.window).bound_by
    assert (bound.what, bound.share) == ("python", close(1))


def test_only_steps_that_were_co_executed_to_their_end_count():
    window = two_steps()
    more = Made().step(20, 50, kind="diverged").sample(30, "user", 40).run(21, 49)
    window.regions += more.window.regions
    window.samples += more.window.samples
    window.runs += more.window.runs
    assert measure(window).step_ms == close(10)
    assert measure(window).graph_busy_ms == close(4)
    assert at(40) not in measure(window).lines


def test_without_a_step_there_are_no_metrics():
    assert measure(Made().window) is None
    assert measure(Made().step(0, 10, kind="traced").window) is None


def test_a_graph_that_never_ran_has_no_overlap():
    assert measure(Made().step(0, 10).window).overlap is None


def test_gaps_consist_of_what_the_samples_between_the_same_lines_say():
    made = Made().step(0, 200)
    for index in range(100):  # gaps of 1 and of 0.8 ms, between ops at two lines
        made.op(2 * index + 1, 2 * index + 1.1, 20).op(2 * index + 1.9, 2 * index + 2, 21)
        if index % 4 == 0:  # a quarter of the long gaps, between lines 21 and 20, is hit
            made.sample(2 * index + 0.5, "user" if index % 16 == 0 else "host", 12)
    parts = line_parts(owner_slices(made.window))
    assert parts.part("terra") == close(ns(20))
    # 24 of 99 are sampled, 18 of these in host calls; one more sample, of the program's, is after the region's begin.
    assert parts.lines[at(12)]["host"] == close(ns(18 + 75 * 18 / 24))
    assert sum(parts.lines[at(12)].values()) == close(ns(100))
    assert sum(parts.part(part) for part in PARTS) == close(ns(200))


def test_gaps_without_samples_of_their_own_consist_of_what_short_gaps_do():
    made = Made().step(0, 200)
    for index in range(100):
        made.op(2 * index + 0.9, 2 * index + 1, 20)
        if index % 4 == 0:
            made.sample(2 * index + 0.4, "user" if index % 16 == 0 else "library", 20)
        made.op(2 * index + 1.9, 2 * index + 2, 21)
    parts = line_parts(owner_slices(made.window)).lines[at(21)]
    assert parts["user"] / (parts["user"] + parts["library"]) == close(7 / 25)
    assert parts["user"] + parts["library"] == close(ns(90))


def test_with_few_samples_a_gap_between_ops_of_one_line_is_the_librarys():
    made = Made().step(0, 10).op(1, 2, 20).op(3, 4, 20).op(6, 10, 21)
    parts = line_parts(owner_slices(made.window))
    assert parts.lines[at(20)] == {"terra": ns(2), "library": ns(1), "user": ns(1)}
    assert parts.lines[at(21)] == {"terra": ns(4), "user": ns(2)}


def test_run_ahead_is_the_distance_to_the_oldest_run_that_is_not_done():
    made = Made().step(0, 10).step(10, 20).step(20, 30)
    made.run(2, 15, region=1, issued=1).run(15, 25, region=2, issued=11).run(25, 28, region=3, issued=21)
    levels = [(time / MS, ahead) for time, ahead in run_ahead(made.window)]
    assert levels == [(0, 0), (10, 1), (15, 0), (20, 1), (25, 0)]
    found = measure(made.window).run_ahead
    assert (found.mean, found.max) == (close(1 / 3), 1)


def test_waits_for_runs_without_values_of_pythons_are_waits_for_the_path():
    made = Made().step(0, 10).run(4, 6, idle_from=1).run(8, 9, idle_from=6, feeds=True)
    found = measure(made.window)
    assert (found.path_wait_ms, found.feed_wait_ms) == (close(3), close(2))


def gpu_window():
    """Python works in 0 to 6, the runner in 5 to 9; two streams of a GPU, which overlap, and a CPU thread."""
    made = Made().step(0, 10).op(0, 6, 20).run(5, 9).fetch(6, 10, 30, run=(1, 1, 0))
    made.lane("GPU 0 Stream #7", "gpu", (5, 7, "gemm"), (8, 9.5, "gemm"))
    made.lane("GPU 0 Stream #9", "gpu", (5.5, 6.5, "Memcpy"), (9, 10, "Memcpy"))
    made.lane("CPU thread 1", "cpu", (0, 10, "MatMul:MatMul"))
    return made.window


def test_python_against_gpu():
    found = measure(gpu_window()).device
    assert found.kind == "gpu"
    assert found.busy_ms == close(4)  # 5 to 7 and 8 to 10: both streams together, each moment once
    assert found.idle_ms == close(6)
    assert found.kernel_wait_ms == close(1)  # 7 to 8, in which the runner works
    assert found.host_wait_ms == close(5)
    assert found.overlap == close(1 / 4)  # 5 to 6
    assert found.lanes == {"GPU 0 Stream #7": close(3.5), "GPU 0 Stream #9": close(2)}


def test_devices_count_from_when_they_were_looked_at():
    window = gpu_window()
    window.devices_from = ns(6)
    found = measure(window).device
    assert found.busy_ms == close(3 / 4 * 10)  # 6 to 7 and 8 to 10, of 4 ms of a step of 10
    assert found.idle_ms == close(1 / 4 * 10)
    assert found.overlap == 0


def test_without_a_gpu_the_cpus_kernels_are_the_device():
    window = gpu_window()
    window.lanes = window.lanes[2:]
    found = measure(window).device
    assert (found.kind, found.busy_ms, found.idle_ms) == ("cpu", close(10), 0)
    assert found.overlap == close(0.6)

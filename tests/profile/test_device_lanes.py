"""The XSpaces here are made with the wheel's own protocol buffers."""

import pytest
from windows import MS, Made, ns

from terra_cx.profile.device_lanes import device_lanes
from terra_cx.profile.metrics import measure
from terra_cx.tf.xspace import MARK, DeviceSession, tracks

xplane_pb2 = pytest.importorskip(
    "tensorflow.tsl.profiler.protobuf.xplane_pb2", reason="this TensorFlow has no reader for XSpaces"
)

OFFSET = 5_000 * MS  # our clock, minus the session's
MARKS = {1: OFFSET + 10, 2: OFFSET + 20 * MS, 3: OFFSET + 40 * MS + 7}


def add(space, plane, line, *events, shift=0):
    """Events are (start ms, end ms, name); a line's own time stamp is `shift` ns."""
    found = next((p for p in space.planes if p.name == plane), None)
    if found is None:
        found = space.planes.add(name=plane)
    made = found.lines.add(name=line, timestamp_ns=shift)
    for start, end, name in events:
        number = next((key for key, known in found.event_metadata.items() if known.name == name), None)
        if number is None:
            number = len(found.event_metadata) + 1
            found.event_metadata[number].id = number
            found.event_metadata[number].name = name
        made.events.add(
            metadata_id=number, offset_ps=(ns(start) - shift) * 1000, duration_ps=ns(end - start) * 1000
        )


def gpu_space():
    """One step of 20 ms in which Python works from 0 to 8, and the GPU in 6 to 10 and 12 to 15."""
    space = xplane_pb2.XSpace()
    marks = [(0, 0, MARK + "1"), (20, 20, MARK + "2"), (40, 40, MARK + "3")]
    add(space, "/host:CPU", "python", *marks, (0, 8, "EagerLocalExecute: MatMul"))
    add(
        space,
        "/host:CPU",
        "tf_Compute/1",
        (5, 6, "model/dense/MatMul:MatMul"),
        (6, 7, "ExecutorState::Process"),
    )
    add(space, "/device:GPU:0", "Stream #7(Compute)", (6, 9, "gemm"), (12, 15, "gemm"), shift=1000)
    add(space, "/device:GPU:0", "Stream #9(MemcpyD2H)", (8, 10, "MemcpyD2H"))
    add(space, "/device:GPU:0", "Steps", (0, 20, "1"))  # made of the others
    add(space, "/device:GPU:0", "Framework Name Scope", (0, 20, "model"))
    return space.SerializeToString()


def test_streams_and_kernels_are_lanes_on_our_clock():
    lanes = device_lanes(tracks(gpu_space()), MARKS)
    shown = [
        (lane.name, lane.kind, [(round((k.start - OFFSET) / MS, 3), k.name) for k in lane.kernels])
        for lane in lanes
    ]
    assert shown == [
        ("CPU thread 1", "cpu", [(5, "model/dense/MatMul:MatMul")]),
        ("GPU 0 Stream #7(Compute)", "gpu", [(6, "gemm"), (12, "gemm")]),
        ("GPU 0 Stream #9(MemcpyD2H)", "gpu", [(8, "MemcpyD2H")]),
    ]
    assert [(k.end - k.start) / MS for lane in lanes for k in lane.kernels] == [1, 3, 3, 2]


def test_python_against_gpu_as_computed_by_hand():
    zero = OFFSET / MS
    made = (
        Made()
        .step(zero, zero + 20)
        .op(zero, zero + 8, 20)
        .run(zero + 5, zero + 11)
        .fetch(zero + 8, zero + 20, 30)
    )
    made.window.lanes = device_lanes(tracks(gpu_space()), MARKS)
    found = measure(made.window).device
    assert found.kind == "gpu"
    assert found.busy_ms == pytest.approx(7, abs=1e-3)
    assert found.idle_ms == pytest.approx(13, abs=1e-3)
    assert found.overlap == pytest.approx(2 / 7, abs=1e-3)  # 6 to 8
    assert found.kernel_wait_ms == pytest.approx(2, abs=1e-3)  # 5 to 6 and 10 to 11, while the runner works
    assert found.host_wait_ms == pytest.approx(11, abs=1e-3)


def test_a_piece_of_work_without_named_kernels_counts_as_a_whole():
    begin, end = "ThreadpoolListener::StartRegion", "ThreadpoolListener::StopRegion"
    space = xplane_pb2.XSpace()
    add(space, "/host:CPU", "python", (0, 0, MARK + "1"))
    add(space, "/host:CPU", "tf_numa_-1_Eigen/12", (1, 1, begin), (3, 3, end), (4, 4, begin))
    named = [(1, 1, begin), (2, 3, "add:AddV2"), (5, 5, end)]
    add(space, "/host:CPU", "tf_Compute/1", *named, (6, 6, begin), (7, 7, end))
    lanes = device_lanes(tracks(space.SerializeToString()), {1: 0})
    assert [[(k.start, k.end, k.name) for k in lane.kernels] for lane in lanes] == [
        [(ns(1), ns(3), "part of a kernel")],
        [(ns(2), ns(3), "add:AddV2"), (ns(6), ns(7), "ops")],
    ]


def test_without_its_marks_a_trace_cannot_be_placed():
    with pytest.raises(ValueError, match="none of the marks"):
        device_lanes(tracks(gpu_space()), {9: 0})


def test_a_session_of_tensorflows_profiler_has_our_marks_and_the_kernels():
    import tensorflow as tf

    clock = iter(range(1000, 9000, 1000)).__next__
    matrix = tf.ones((64, 64))
    compiled = tf.function(lambda m: tf.nn.relu(tf.matmul(m, m)))
    compiled(matrix)
    session = DeviceSession()
    session.start()
    marks = {number: session.mark(number, clock) for number in (1, 2)}
    compiled(matrix)
    lanes = device_lanes(tracks(session.stop()), marks)
    names = {kernel.name.rpartition(":")[2] for lane in lanes for kernel in lane.kernels}
    assert any("MatMul" in name for name in names)


def test_a_program_that_opens_a_session_of_its_own_gets_it(tmp_path):
    import tensorflow as tf

    session = DeviceSession()
    session.start()
    tf.profiler.experimental.start(str(tmp_path))
    tf.ones((4,)) + 1
    tf.profiler.experimental.stop()
    assert list(tmp_path.rglob("*.xplane.pb"))
    assert session.stop() is None


def test_a_session_of_the_programs_keeps_ours_from_starting(tmp_path):
    import tensorflow as tf

    tf.profiler.experimental.start(str(tmp_path))
    try:
        with pytest.raises(Exception, match="profil"):
            DeviceSession().start()
    finally:
        tf.profiler.experimental.stop()
    again = DeviceSession()
    again.start()
    again.give_up()

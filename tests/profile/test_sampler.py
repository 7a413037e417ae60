import sys
import threading

from terra_cx.profile.sampler import Places, Sampler

HERE = __file__
places = Places(lambda code: code.co_filename == HERE)


def from_library(call):
    """What `call` returns, called by a function of a library (as far as its file's name tells)."""
    code = compile("def run(call): return call()", "/x/site-packages/keras/src/layer.py", "exec")
    namespace = {}
    exec(code, namespace)
    return namespace["run"](call)


def test_a_function_of_the_program_is_the_programs():
    part, line = places.of(sys._getframe())
    assert line == f"{HERE}:{test_a_function_of_the_program_is_the_programs.__code__.co_firstlineno + 1}"
    assert part == "host"  # it stands at a call of a native function


def test_a_native_function_that_the_program_calls_is_a_host_call():
    found = {}
    wait = threading.Event()
    entered = threading.Event()

    def work():
        found["ident"] = threading.get_ident()
        entered.set()
        wait.wait()

    thread = threading.Thread(target=work)
    thread.start()
    entered.wait()
    try:
        # `wait` is Python of the standard library, and a lock below it.
        part, line = places.of(sys._current_frames()[found["ident"]])
    finally:
        wait.set()
        thread.join()
    assert part == "host"
    assert line.startswith(HERE + ":")


def test_tensorflows_and_kerass_python_is_library_code():
    frame = from_library(lambda: sys._getframe(1))
    assert places.of(frame)[0] == "library"


def test_the_programs_code_below_a_library_is_the_programs():
    frame = from_library(lambda: sys._getframe())
    assert places.line(frame) == f"{HERE}:{frame.f_lineno}"
    assert frame.f_code.co_name == "<lambda>"


def test_a_thread_without_a_frame_of_the_programs_is_nowhere():
    nobody = Places(lambda code: False)
    assert nobody.of(sys._getframe()) == ("host", "?")
    assert nobody.line(sys._getframe()) == "?"


def test_the_sampler_finds_where_the_thread_is_and_ends():
    seen = threading.Event()
    ticks = iter(range(1_000_000))

    def clock():
        if (tick := next(ticks)) == 3:
            seen.set()
        return tick

    sampler = Sampler(threading.get_ident(), places, clock)
    sampler.start()
    assert seen.wait(60)
    samples = sampler.stop()
    sampler._thread.join(60)
    assert not sampler._thread.is_alive()
    assert len(samples) >= 3
    assert {sample.line.rpartition(":")[0] for sample in samples} == {HERE}


def test_the_sampler_ends_by_itself_when_it_has_enough():
    sampler = Sampler(threading.get_ident(), places, lambda: 0, most=2)
    sampler.start()
    sampler._thread.join(60)
    assert len(sampler.stop()) == 2


def test_a_failure_ends_it_and_is_told():
    class Broken:
        def of(self, frame):
            raise LookupError("nowhere")

    sampler = Sampler(threading.get_ident(), Broken(), clock=lambda: 0)
    sampler.start()
    sampler._thread.join(20)
    assert sampler.stop() == []
    assert sampler.error == "LookupError: nowhere"

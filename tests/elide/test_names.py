"""Names: what functions that ran look up in their libraries."""

from __future__ import annotations

import sys
import types

import pytest

from terra_cx.elide.names import Names, is_library, used_names

SOURCE = """
LIMIT = 3
TABLE = {"a": 1}

def helper(x):
    return min(x, LIMIT)

def unused(x):
    return x

def entry(x):
    if x > 100:
        return unused(x)
    return helper(x) + inner.twice(x) + TABLE["a"]

class Layer:
    factor = 2

    def call(self, x):
        return entry(x)
"""


@pytest.fixture
def library():
    """A module that counts as one of Keras's, with another inside."""
    inner = types.ModuleType("keras.inner")
    exec("def twice(x):\n    return 2 * x", vars(inner))
    outer = types.ModuleType("keras.outer")
    vars(outer)["inner"] = inner
    exec(SOURCE, vars(outer))
    return outer


def ran(*functions):
    return {(function.__code__, id(function.__globals__)): function.__globals__ for function in functions}


def known(library):
    names = Names()
    codes = ran(library.entry, library.helper, library.inner.twice, library.Layer.call)
    data = names.add(codes, {library.Layer: {"call"}})
    assert library.TABLE in data
    assert not names.changed()
    return names


@pytest.mark.parametrize("name", ["helper", "LIMIT", "TABLE"])
def test_a_global_that_the_code_names(library, name):
    names = known(library)
    setattr(library, name, len)
    assert names.changed()


def test_a_function_of_a_module_inside(library):
    names = known(library)
    library.inner.twice = len
    assert names.changed()


def test_a_method_in_its_class_or_in_a_subclass(library):
    names = known(library)
    library.Layer.call = lambda self, x: x
    assert names.changed()


def test_a_name_that_is_gone(library):
    names = known(library)
    del library.helper
    assert names.changed()


def test_another_base_class(library):
    """What a method means by its name may change in a class that nobody writes to."""

    class Base:
        def call(self, x):
            return x

    class Layer(Base):
        pass

    class Same(Base):
        pass

    class Other:
        def call(self, x):
            return -x

    names = Names()
    names.add(ran(library.entry), {Layer: {"call"}})
    assert not names.changed()
    Layer.__bases__ = (Same,)
    assert not names.changed()
    Same.call = Other.call
    assert names.changed()
    del Same.call
    assert not names.changed()
    Layer.__bases__ = (Other,)
    assert names.changed()


def test_a_function_that_did_not_run_does_not_matter(library):
    names = known(library)
    library.unused = len
    library.Layer.factor = 3
    assert not names.changed()


def test_names_and_strings_count_as_used():
    def function(x):
        return getattr(x, "rate") + x.size + (sum, ("momentum",))[0](x)  # noqa: B009

    assert {"rate", "size", "sum"} <= used_names(ran(function))


def test_other_modules_are_not_looked_at():
    assert [is_library(name) for name in ("keras.src.layers", "tensorflow", "kerastuner", None)] == [
        True,
        True,
        False,
        False,
    ]
    names = Names()
    names.add(ran(test_other_modules_are_not_looked_at), {})
    assert not names.changed()
    assert sys.modules[__name__]

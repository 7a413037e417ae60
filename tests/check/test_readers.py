"""Whose read it is, told from the stack alone."""

import ast
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import keras
import pytest
import tensorflow as tf

from terra_cx.check import readers
from terra_cx.check.readers import Readers
from terra_cx.observe.importer import UserCode

SITE = str(Path(keras.__file__).parents[1]) + "/"
OPS = SITE + "tensorflow/python/framework/ops.py"
VARIABLE = SITE + "tensorflow/python/ops/resource_variable_ops.py"
CORE = SITE + "keras/src/backend/tensorflow/core.py"
TRAINER = SITE + "keras/src/backend/tensorflow/trainer.py"


@pytest.fixture
def line():
    """Judges a read below a stack of `(file, function)`, outermost first; a dot makes a method."""
    user = UserCode()
    user.add("train.py")
    judge = Readers(user)

    def line(*stack):
        call = lambda: judge.line(sys._getframe(1))  # noqa: E731
        for file, name in reversed(stack):
            # `partial` because it has no frame of its own.
            call = partial(function(file, name), call)
        return call()

    return line


def function(file, name):
    """A function of that file and qualified name that calls its argument in its second line."""
    owner, _, own = name.rpartition(".")
    source = [f"def {own}(call):", "    return call()"]
    namespace = {}
    if owner:
        source = [f"class {owner}:", *("    " + text for text in source)]
    exec(compile("\n".join(source), file, "exec"), namespace)
    return vars(namespace[owner])[own] if owner else namespace[own]


@pytest.mark.parametrize(
    "inner",
    [
        [(OPS, "_EagerTensorBase.numpy"), (OPS, "_EagerTensorBase._numpy")],
        [(OPS, "_EagerTensorBase.__float__")],
        [(OPS, "_EagerTensorBase.__str__"), (OPS, "value_text"), (OPS, "numpy_text")],
        [(VARIABLE, "BaseResourceVariable.numpy"), (OPS, "_EagerTensorBase.numpy")],
        [(CORE, "Variable.numpy"), (CORE, "convert_to_numpy")],
        [(TRAINER, "TensorFlowTrainer.predict"), (CORE, "convert_to_numpy")],
        [(SITE + "numpy/_core/fromnumeric.py", "argmax")],
        [(SITE + "tqdm/std.py", "set_postfix"), (OPS, "_EagerTensorBase.__format__")],
        [(str(Path(readers.__file__).parents[1] / "tf/placeholder.py"), "Placeholder.__array__")],
    ],
)
def test_reads_of_the_program(inner, line):
    assert line(("train.py", "step"), *inner) == ("train.py", 2)


@pytest.mark.parametrize(
    "inner",
    [
        [(SITE + "tensorflow/python/ops/math_grad.py", "_SumGrad"), (OPS, "_EagerTensorBase.numpy")],
        [
            (SITE + "keras/src/layers/regularization/dropout.py", "Dropout.call"),
            (OPS, "_EagerTensorBase.__index__"),
        ],
        [(TRAINER, "TensorFlowTrainer.fit"), (SITE + "keras/src/x.py", "f"), (CORE, "convert_to_numpy")],
        [(VARIABLE, "BaseResourceVariable.assign"), (OPS, "_EagerTensorBase.numpy")],
        [(str(Path(readers.__file__).parents[1] / "run/conductor.py"), "visit")],
    ],
)
def test_reads_of_the_library(inner, line):
    assert line(("train.py", "step"), *inner) is None


def test_a_read_by_user_code_that_the_library_calls(line):
    stack = [("train.py", "fit"), (SITE + "keras/src/x.py", "call"), ("train.py", "call")]
    assert line(*stack, (OPS, "_EagerTensorBase.numpy")) == ("train.py", 2)


def test_libraries_are_where_they_were_imported_from(line, monkeypatch):
    monkeypatch.setattr(tf, "__file__", "/opt/parts/tensorflow/__init__.py")  # `pip install --target`, say
    read = "/opt/parts/tensorflow/python/framework/ops.py", "_EagerTensorBase.numpy"
    assert line(("train.py", "step"), read) == ("train.py", 2)
    library = "/opt/parts/tensorflow/python/ops/math_grad.py", "_SumGrad"
    assert line(("train.py", "step"), library, read) is None


def test_named_places_exist_in_the_installed_libraries():
    """A rename in a release would silently turn reads of the program into reads of the library."""
    roots = {name: Path(find_spec(name).submodule_search_locations[0]) for name in ("tensorflow", "keras")}
    missing = []
    for file, functions in [*readers._VALUE_FUNCTIONS.items(), *((f, set()) for f in readers._WRAPPERS)]:
        package, _, inside = file.partition("/")
        if package not in roots:
            continue
        if not (roots[package] / inside).is_file():
            missing.append(file)
            continue
        have = set(defined(ast.parse((roots[package] / inside).read_bytes())))
        missing += [f"{file}: {name}" for name in functions - have]
    one_of = {
        "keras/src/trainers/trainer.py: Trainer._pythonify_logs",
        "keras/src/utils/python_utils.py: pythonify_logs",
    }
    assert not one_of <= set(missing)
    assert set(missing) <= one_of


def defined(tree, prefix=""):
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield prefix + node.name
        elif isinstance(node, ast.ClassDef):
            yield from defined(node, f"{prefix}{node.name}.")

"""Who reads a tensor: the program, or TensorFlow for its own purposes.

A read is the program's if the first frame outwards that is not part of the reading itself is neither TensorFlow's nor
Keras's: the program's own code, or that of another library to which it gave a tensor (NumPy, tqdm, a logger). A read
by a gradient function, by Dropout, by an optimizer is not: terra-cx is free to answer known values and to skip library
Python, so the number and the order of such reads are no promise.

What belongs to the reading itself is listed here by file and name: the methods of tensors and variables that give a
value (`numpy`, `__float__`, ...), and the few library functions whose purpose is to hand values to the program.
"""

from __future__ import annotations

import os
import sys
from enum import Enum
from types import CodeType, FrameType

import terra_cx
from terra_cx.observe.importer import UserCode

__all__ = ["Readers"]

_LIBRARIES = ("tensorflow", "keras", "tf_keras")
_OURS = os.path.dirname(terra_cx.__file__) + os.sep

_VALUE_METHODS = frozenset(
    (
        *("numpy", "_numpy", "__array__", "__buffer__", "__dlpack__", "__reduce__", "to_list"),
        *("__bool__", "__nonzero__", "__complex__", "__float__", "__index__", "__int__"),
        *("__format__", "__repr__", "__str__"),
    )
)
_VALUE_CLASSES = {
    "tensorflow/python/framework/ops.py",
    "tensorflow/python/framework/tensor.py",
    "tensorflow/python/framework/indexed_slices.py",
    "tensorflow/python/ops/resource_variable_ops.py",
    "tensorflow/python/ops/variables.py",
    "tensorflow/python/ops/ragged/ragged_tensor.py",
    "keras/src/backend/common/variables.py",
    "keras/src/backend/tensorflow/core.py",
    "terra_cx/tf/placeholder.py",
}
"""Files with classes of tensors and variables: a method of `_VALUE_METHODS` there is part of the reading."""

_VALUE_FUNCTIONS = {
    "tensorflow/python/framework/ops.py": {"value_text", "numpy_text"},
    "tensorflow/python/framework/tensor_util.py": {"constant_value"},
    "tensorflow/python/dlpack/dlpack.py": {"to_dlpack"},
    "keras/src/backend/tensorflow/core.py": {"convert_to_numpy"},
    "keras/src/ops/core.py": {"convert_to_numpy"},
    "keras/src/layers/layer.py": {"Layer.get_weights"},
    "keras/src/trainers/trainer.py": {"Trainer._pythonify_logs"},  # of an older Keras
    "keras/src/utils/python_utils.py": {"pythonify_logs"},
    "keras/src/backend/tensorflow/trainer.py": {
        f"TensorFlowTrainer.{name}"
        for name in ("fit", "evaluate", "predict", "train_on_batch", "test_on_batch", "predict_on_batch")
    },
}
"""Functions whose purpose is to hand values to the program."""

_WRAPPERS = {
    "tensorflow/python/util/traceback_utils.py",
    "tensorflow/python/util/dispatch.py",
    "keras/src/utils/traceback_utils.py",
    "keras/src/callbacks/callback_list.py",
    "terra_cx/tf/boundary.py",
    "terra_cx/tf/crossings.py",
    "terra_cx/tf/reads.py",
}
"""Files whose frames only pass a call on."""


class _Part(Enum):
    READING = "part of the reading itself"
    LIBRARY = "TensorFlow, Keras, or terra-cx"
    OTHER = "the program, or another library"


class Readers:
    """Judges the frames of reads.

    Args:
        user: tells the program's files from libraries.
    """

    def __init__(self, user: UserCode) -> None:
        self._user = user
        # By id, because hashing code objects takes microseconds; the objects are kept, so that ids stay theirs.
        self._known: dict[int, tuple[_Part, CodeType]] = {}

    def line(self, frame: FrameType) -> tuple[str, int] | None:
        """File and line of the program where a value was asked for; None if the read does not count.

        Args:
            frame: the innermost frame of the read.
        """
        at: FrameType | None = frame
        while at is not None:
            part = self._part(at.f_code)
            if part is _Part.LIBRARY:
                return None
            if part is _Part.OTHER:
                return self._user_line(at)
            at = at.f_back
        return None

    def _user_line(self, frame: FrameType) -> tuple[str, int]:
        at = self._user.innermost(frame) or frame
        return at.f_code.co_filename, at.f_lineno

    def _part(self, code: CodeType) -> _Part:
        known = self._known.get(id(code))
        if known is None:
            known = self._known[id(code)] = (_judge(code), code)
        return known[0]


def _judge(code: CodeType) -> _Part:
    package, inside = _package(code.co_filename)
    if not package:
        return _Part.OTHER
    file = f"{package}/{inside}"
    if file in _WRAPPERS:
        return _Part.READING
    name = code.co_qualname.partition(".<locals>.")[0]
    if name in _VALUE_FUNCTIONS.get(file, ()):
        return _Part.READING
    if file in _VALUE_CLASSES and "." in name and name.rpartition(".")[2] in _VALUE_METHODS:
        return _Part.READING
    return _Part.LIBRARY


def _package(filename: str) -> tuple[str, str]:
    """The library that a file belongs to and its place in it, or two empty strings."""
    if filename.startswith(_OURS):
        return "terra_cx", filename[len(_OURS) :].replace(os.sep, "/")
    for name in _LIBRARIES:
        module = sys.modules.get(name)
        if module is not None and module.__file__ is not None:
            folder = os.path.join(os.path.dirname(module.__file__), "")
            if filename.startswith(folder):
                return name, filename[len(folder) :].replace(os.sep, "/")
    return "", ""

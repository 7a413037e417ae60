"""terra-cx runs unmodified eager TensorFlow programs as Python plus a compiled graph."""

__version__ = "0.1.0"

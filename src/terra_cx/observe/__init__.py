"""Watching the user's program: where its loops and functions are, and which statement issued an op.

Nothing in this package imports TensorFlow, so that it can be at work before the program decides to.
"""

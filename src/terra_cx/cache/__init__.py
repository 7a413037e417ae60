"""Warm start: what was learned of a program's steps is kept on disk, and the next process begins with it."""

"""Elision: calls of library code whose Python need not run, because everything that it depends on is as it was."""

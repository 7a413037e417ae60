"""`terra-cx explain`: which line holds a program back, and what to change.

`source` knows the program's text, `annotate` lays what a run has left beside it, `advice` ranks what to change,
`output` tells it, `command` is the command.
"""

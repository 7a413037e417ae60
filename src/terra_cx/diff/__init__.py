"""`terra-cx diff`: what got slower between two runs, and why.

`compare` finds it, `output` tells it, `command` is the command.
"""

"""`terra-cx bench`: times programs in several modes, each run in a process of its own, in turns.

`modes` names the modes, `decorate` wraps the program's step function without editing it, `child` runs a program so,
`limit` times the compiled graph alone, `measure` takes the turns for one program, `output` and `plot` tell. Processes,
comparison and step times are those of `terra_cx.check`. docs/design/bench.md explains why it is done so.
"""

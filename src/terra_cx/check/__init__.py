"""`terra-cx check`: runs programs eager and co-executed, in processes of their own, and compares all they did.

`programs` finds what is to be run, `child` runs it observed, `stream` holds what was seen of it, `readers` says which
reads count, `visits` times steps, `runs` starts the processes, `compare` looks for the first difference, `verdict`
judges, `baseline` remembers speeds, `output` and `junit` tell. docs/design/check.md explains why it is done so.
"""

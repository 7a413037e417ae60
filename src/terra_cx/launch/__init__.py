"""How a program is started so that it cannot tell terra-run from python.

`commandline` splits our words from the program's, `program` sets up `__main__` and runs the code of each
launch form, `tracebacks` keeps our frames out of what the user reads. `terra_cx.launcher` puts them
together with a session.
"""

"""`terra-cx doctor`: is this a place where terra-cx works, and if not, what to do about it.

`facts` and, in a process of its own, `child` say what there is; `findings` judges it; `command` tells.
"""

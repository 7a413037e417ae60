"""The only folder that imports ``tensorflow.python``: boundary, placeholder, op facts, graph building.

Everything here is imported after the user's program has imported TensorFlow itself; terra-cx never decides
when that happens.
"""

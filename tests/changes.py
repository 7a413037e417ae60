"""Changes of a training program's objects that Keras 3 and legacy Keras know alike, for tests of elided calls.

Each is given an object with a ``model`` (whose first layer is dense), an ``optimizer`` and a ``loss``.
"""

from __future__ import annotations


def nothing(parts):
    """No change."""


def learning_rate(parts):
    parts.optimizer.learning_rate = 0.5


def beta(parts):
    parts.optimizer.beta_1 = 0.1


def frozen_layer(parts):
    parts.model.layers[0].trainable = False


def new_weights(parts):
    parts.model.set_weights([weight * 0.5 for weight in parts.model.get_weights()])


def loss_reduction(parts):
    parts.loss.reduction = "sum"

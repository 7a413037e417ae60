"""The textbook loop of Keras: dense layers, Adam, a loss and a metric, in a custom training step."""

import keras
import numpy as np
import tensorflow as tf
from common import LOG_EVERY, Stopwatch, finish, load_images, parse_arguments

HIDDEN = {"tiny": (32, 32, 32), "small": (128, 128, 128), "paper": (1024, 1024, 1024)}
BATCH = 32
LEARNING_RATE = 0.001


def make_model(hidden):
    layers = [keras.layers.Dense(units, activation="relu") for units in hidden]
    return keras.Sequential([keras.layers.Input((64,)), *layers, keras.layers.Dense(10)])


def train_step(model, optimizer, loss_function, x, labels):
    with tf.GradientTape() as tape:
        loss = loss_function(labels, model(x))
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return loss


def main():
    args = parse_arguments(__doc__)
    keras.utils.set_random_seed(args.seed)
    images, labels, test_images, test_labels = load_images(8)
    images, test_images = images.reshape(-1, 64), test_images.reshape(-1, 64)
    model = make_model(HIDDEN[args.scale])
    optimizer = keras.optimizers.Adam(LEARNING_RATE)
    loss_function = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    losses = []
    stopwatch = Stopwatch()
    for step in range(args.steps):
        chosen = np.random.randint(0, len(images), BATCH)
        loss = train_step(model, optimizer, loss_function, images[chosen], labels[chosen])
        losses.append(loss)
        if step % LOG_EVERY == 0:
            print(f"step {step} loss {float(loss)!r}")
        stopwatch.lap()

    accuracy = keras.metrics.SparseCategoricalAccuracy()
    accuracy.update_state(test_labels, model(test_images))
    print(f"test accuracy {float(accuracy.result())!r}")
    finish(args, {"loss": losses}, [*model.variables, *optimizer.variables], stopwatch)


if __name__ == "__main__":
    main()

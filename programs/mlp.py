"""A multi-layer perceptron in raw TensorFlow: variables, a tape, and plain gradient descent."""

import itertools

import numpy as np
import tensorflow as tf
from common import LOG_EVERY, Stopwatch, finish, load_images, parse_arguments

HIDDEN = {"tiny": (32, 32), "small": (128, 128), "paper": (1024, 1024, 1024)}
BATCH = 32
LEARNING_RATE = 0.1


def make_parameters(widths):
    parameters = []
    for inputs, outputs in itertools.pairwise(widths):
        weights = tf.random.normal([inputs, outputs], stddev=(2.0 / inputs) ** 0.5)
        parameters.append(tf.Variable(weights))
        parameters.append(tf.Variable(tf.zeros([outputs])))
    return parameters


def forward(parameters, x):
    for weights, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        x = tf.nn.relu(tf.matmul(x, weights) + bias)
    return tf.matmul(x, parameters[-2]) + parameters[-1]


def train_step(parameters, x, labels):
    with tf.GradientTape() as tape:
        logits = forward(parameters, x)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        loss = tf.reduce_mean(losses)
    gradients = tape.gradient(loss, parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.assign_sub(LEARNING_RATE * gradient)
    return loss


def main():
    args = parse_arguments(__doc__)
    tf.keras.utils.set_random_seed(args.seed)
    images, labels, test_images, test_labels = load_images(8)
    images, test_images = images.reshape(-1, 64), test_images.reshape(-1, 64)
    parameters = make_parameters((64, *HIDDEN[args.scale], 10))

    losses = []
    stopwatch = Stopwatch()
    for step in range(args.steps):
        chosen = np.random.randint(0, len(images), BATCH)
        loss = train_step(parameters, images[chosen], labels[chosen])
        losses.append(loss)
        if step % LOG_EVERY == 0:
            print(f"step {step} loss {float(loss)!r}")
        stopwatch.lap()

    correct = np.argmax(forward(parameters, test_images), axis=1) == test_labels
    print(f"test accuracy {float(np.mean(correct))!r}")
    finish(args, {"loss": losses}, parameters, stopwatch)


if __name__ == "__main__":
    main()

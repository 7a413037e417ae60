"""DropBlock (Ghiasi et al., 2018): blocks of each feature map are dropped, more and more during training."""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from common import LOG_EVERY, Stopwatch, finish, load_images, parse_arguments

LEARNING_RATE = 0.05
MOMENTUM = 0.9


@dataclass(frozen=True)
class Scale:
    image: int  # side in pixels
    batch: int
    channels: tuple[int, ...]  # of each convolution; every second one halves the side
    block: int  # side of a dropped block
    keep_prob: float  # at the end of training


SCALES = {
    "tiny": Scale(image=8, batch=16, channels=(8, 16), block=3, keep_prob=0.8),
    "small": Scale(image=16, batch=32, channels=(16, 16, 32, 32, 64, 64), block=3, keep_prob=0.9),
    "paper": Scale(
        image=64, batch=128, channels=(64, 64, 128, 128, 256, 256, 512, 512), block=7, keep_prob=0.9
    ),
}


class Convolution(tf.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        deviation = (2.0 / (9 * inputs)) ** 0.5
        self.kernel = tf.Variable(tf.random.normal([3, 3, inputs, outputs], stddev=deviation))
        self.bias = tf.Variable(tf.zeros([outputs]))
        self.stride = stride

    def __call__(self, x):
        return tf.nn.relu(tf.nn.conv2d(x, self.kernel, self.stride, "SAME") + self.bias)


class DropBlock(tf.Module):
    """Zeroes square blocks and scales up the rest. `keep_prob` is meant to be changed between steps."""

    def __init__(self, block):
        super().__init__()
        self.block = block
        self.keep_prob = 1.0

    def __call__(self, x):
        _, height, width, _ = x.shape
        block = min(self.block, height, width)
        if self.keep_prob == 1.0:
            return x
        # The rate at which centres are drawn, so that a share of keep_prob stays (equation 1 of the paper).
        gamma = (1.0 - self.keep_prob) / block**2
        gamma *= height * width / ((height - block + 1) * (width - block + 1))
        centres = tf.cast(tf.random.uniform(x.shape) < gamma, x.dtype)
        kept = 1.0 - tf.nn.max_pool2d(centres, block, 1, "SAME")
        return x * kept * (tf.size(kept, out_type=tf.float32) / tf.reduce_sum(kept))


class Network(tf.Module):
    def __init__(self, scale, classes):
        super().__init__()
        self.convolutions = []
        inputs = 1
        for index, outputs in enumerate(scale.channels):
            self.convolutions.append(Convolution(inputs, outputs, stride=1 + index % 2))
            inputs = outputs
        self.drops = [DropBlock(scale.block) for _ in self.convolutions[1::2]]
        self.weights = tf.Variable(tf.random.normal([inputs, classes], stddev=inputs**-0.5))
        self.bias = tf.Variable(tf.zeros([classes]))

    def set_keep_prob(self, keep_prob):
        for drop in self.drops:
            drop.keep_prob = keep_prob

    def __call__(self, x, training):
        for index, convolution in enumerate(self.convolutions):
            x = convolution(x)
            if training and index % 2:
                x = self.drops[index // 2](x)
        return tf.matmul(tf.reduce_mean(x, axis=(1, 2)), self.weights) + self.bias


def train_step(network, velocities, images, labels):
    with tf.GradientTape() as tape:
        logits = network(images, training=True)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        loss = tf.reduce_mean(losses)
    variables = network.trainable_variables
    for variable, velocity, gradient in zip(
        variables, velocities, tape.gradient(loss, variables), strict=True
    ):
        velocity.assign(MOMENTUM * velocity + gradient)
        variable.assign_sub(LEARNING_RATE * velocity)
    return loss


def main():
    args = parse_arguments(__doc__)
    tf.keras.utils.set_random_seed(args.seed)
    scale = SCALES[args.scale]
    images, labels, test_images, test_labels = load_images(scale.image)
    network = Network(scale, classes=10)
    velocities = [tf.Variable(tf.zeros_like(variable)) for variable in network.trainable_variables]

    losses = []
    stopwatch = Stopwatch()
    for step in range(args.steps):
        network.set_keep_prob(1.0 - (1.0 - scale.keep_prob) * step / args.steps)
        chosen = np.random.choice(len(images), scale.batch, replace=False)
        loss = train_step(network, velocities, images[chosen], labels[chosen])
        losses.append(loss)
        if step % LOG_EVERY == 0:
            print(f"step {step} keep_prob {network.drops[0].keep_prob!r} loss {float(loss)!r}")
        stopwatch.lap()

    correct = np.argmax(network(test_images, training=False), axis=1) == test_labels
    print(f"test accuracy {float(np.mean(correct))!r}")
    finish(args, {"loss": losses}, [*network.variables, *velocities], stopwatch)


if __name__ == "__main__":
    main()

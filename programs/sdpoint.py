"""SDPoint (Kuen et al., 2018): each step shrinks the features at a random block of a ResNet, by a random ratio."""

import functools
import math
import random
from collections import Counter
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from common import LOG_EVERY, Stopwatch, finish, load_images, moved_batches, parse_arguments
from tensorflow import keras
from tensorflow.keras import layers

RATIOS = (0.5, 0.75)
MILESTONES = (0.35, 0.65, 0.9)  # shares of the training after which the learning rate falls to a tenth
WEIGHT_DECAY = 1e-4
EVALUATE_EVERY = 50  # steps
STATISTICS_BATCHES = 4  # from which an instance's means and variances are estimated


@dataclass(frozen=True)
class Scale:
    image: int  # side in pixels
    batch: int
    width: int  # of the first stage's bottleneck; each later stage doubles it
    blocks: tuple[int, ...]  # of each stage
    learning_rate: float  # at the beginning


SCALES = {
    "tiny": Scale(image=16, batch=16, width=8, blocks=(1, 1), learning_rate=0.2),
    "small": Scale(image=32, batch=32, width=16, blocks=(1, 1, 1, 1), learning_rate=0.05),
    "paper": Scale(image=224, batch=32, width=64, blocks=(3, 4, 23, 3), learning_rate=0.0125),
}


@functools.cache
def pooling_matrix(inputs, outputs):
    """Adaptive average pooling along one axis as a matrix: each output is the mean of its share of the inputs."""
    matrix = np.zeros((outputs, inputs), np.float32)
    for row in range(outputs):
        start, stop = row * inputs // outputs, math.ceil((row + 1) * inputs / outputs)
        matrix[row, start:stop] = 1.0 / (stop - start)
    return matrix


def shrink(x, ratio):
    """Average pooling to `ratio` of the height and width, rounded to whole pixels."""
    rows, columns = (pooling_matrix(side, max(round(side * ratio), 1)) for side in x.shape[1:3])
    return tf.einsum("qw,bpwc->bpqc", columns, tf.einsum("ph,bhwc->bpwc", rows, x))


class Convolution(layers.Conv2D):
    """A convolution that knows how many multiplications its last call took for each image."""

    def __init__(self, filters, size, stride=1):
        super().__init__(
            filters,
            size,
            stride,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            kernel_regularizer=keras.regularizers.L2(WEIGHT_DECAY / 2),
        )
        self.multiplications = 0

    def call(self, x):
        y = super().call(x)
        self.multiplications = math.prod(self.kernel.shape) * math.prod(y.shape[1:3])
        return y


class Bottleneck(layers.Layer):
    """A block of a pre-activation ResNet. Where `ratio` is below 1, its output is shrunk."""

    def __init__(self, width, stride, project):
        super().__init__()
        self.norms = [layers.BatchNormalization(momentum=0.9) for _ in range(3)]
        self.convolutions = [Convolution(width, 1), Convolution(width, 3, stride), Convolution(4 * width, 1)]
        self.shortcut = Convolution(4 * width, 1, stride) if project else None
        self.ratio = 1.0

    def call(self, x, training=False):
        shortcut = x
        for index, (norm, convolution) in enumerate(zip(self.norms, self.convolutions, strict=True)):
            x = tf.nn.relu(norm(x, training=training))
            if index == 0 and self.shortcut is not None:
                shortcut = self.shortcut(x)
            x = convolution(x)
        x += shortcut
        if self.ratio < 1.0:
            x = shrink(x, self.ratio)
        return x


class Stem(layers.Layer):
    """What stands before the first block; large images are halved twice. It is the first place to shrink at."""

    def __init__(self, width, large):
        super().__init__()
        self.convolutions = [Convolution(width, 7, 2) if large else Convolution(width, 3)]
        self.norms = [layers.BatchNormalization(momentum=0.9)]
        self.pool = layers.MaxPooling2D(3, 2, padding="same") if large else None
        self.ratio = 1.0

    def call(self, x, training=False):
        x = tf.nn.relu(self.norms[0](self.convolutions[0](x), training=training))
        if self.pool is not None:
            x = self.pool(x)
        return shrink(x, self.ratio) if self.ratio < 1.0 else x


class SDPointResNet(keras.Model):
    def __init__(self, scale, classes):
        super().__init__()
        self.points = [Stem(scale.width, large=scale.image >= 64)]
        for stage, count in enumerate(scale.blocks):
            for index in range(count):
                stride = 2 if stage and not index else 1
                self.points.append(Bottleneck(scale.width * 2**stage, stride, project=not index))
        self.norm = layers.BatchNormalization(momentum=0.9)
        self.average = layers.GlobalAveragePooling2D()
        self.classifier = layers.Dense(classes)

    def call(self, x, training=False):
        for point in self.points:
            x = point(x, training=training)
        x = tf.nn.relu(self.norm(x, training=training))
        return self.classifier(self.average(x))

    def shrink_at(self, chosen, ratio):
        """Makes the model that instance of itself which shrinks by `ratio` at the point `chosen`, or nowhere."""
        for index, point in enumerate(self.points):
            point.ratio = ratio if index == chosen else 1.0

    def norms(self):
        for point in self.points:
            yield from point.norms
        yield self.norm

    def multiplications(self):
        """Of all convolutions in the last call, for one image."""
        total = 0
        for point in self.points:
            total += sum(convolution.multiplications for convolution in point.convolutions)
            if getattr(point, "shortcut", None) is not None:
                total += point.shortcut.multiplications
        return total


class Trainer:
    def __init__(self, scale):
        self.model = SDPointResNet(scale, classes=10)
        self.optimizer = keras.optimizers.SGD(scale.learning_rate, momentum=0.9)
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.instances = Counter()  # how often each was trained

    def train_step(self, images, labels):
        # Every point and "nowhere" are equally likely, and so are the ratios (as in the paper).
        chosen = random.choice([None, *range(len(self.model.points))])
        ratio = random.choice(RATIOS) if chosen is not None else None
        self.model.shrink_at(chosen, ratio)
        self.instances[chosen, ratio] += 1
        with tf.GradientTape() as tape:
            logits = self.model(images, training=True)
            loss = self.loss(labels, logits) + tf.add_n(self.model.losses)
        variables = self.model.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    def evaluate(self, chosen, ratio, train_batches, images, labels, batch):
        """Returns one instance's accuracy, and its multiplications for an image.

        It gets means and variances of its own, from training batches; those of the training are put back.
        """
        self.model.shrink_at(chosen, ratio)
        kept = [
            (norm, norm.momentum, norm.moving_mean.numpy(), norm.moving_variance.numpy())
            for norm in self.model.norms()
        ]
        for index, (train_images, _) in zip(range(STATISTICS_BATCHES), train_batches, strict=False):
            for norm in self.model.norms():
                norm.momentum = index / (index + 1)  # so that every batch counts the same
            self.model(train_images, training=True)
        correct = 0
        for start in range(0, len(images), batch):
            logits = self.model(images[start : start + batch], training=False)
            correct += np.count_nonzero(np.argmax(logits, axis=1) == labels[start : start + batch])
        for norm, momentum, mean, variance in kept:
            norm.momentum = momentum
            norm.moving_mean.assign(mean)
            norm.moving_variance.assign(variance)
        return float(correct / len(images)), self.model.multiplications()


def batches(images, labels, batch):
    """Yields batches for ever, each image moved by up to a pixel."""
    while True:
        yield from moved_batches(images, labels, batch)


def main():
    args = parse_arguments(__doc__)
    keras.utils.set_random_seed(args.seed)
    scale = SCALES[args.scale]
    images, labels, test_images, test_labels = load_images(scale.image)
    trainer = Trainer(scale)
    milestones = [int(share * args.steps) for share in MILESTONES]
    last = len(trainer.model.points) - 1

    losses = []
    train_batches = batches(images, labels, scale.batch)
    stopwatch = Stopwatch()
    for step in range(args.steps):
        if step in milestones:
            trainer.optimizer.learning_rate = float(trainer.optimizer.learning_rate) / 10.0
        loss = trainer.train_step(*next(train_batches))
        losses.append(loss)
        if step % LOG_EVERY == 0:
            ratios = [point.ratio for point in trainer.model.points]
            print(f"step {step} ratios {ratios} loss {float(loss)!r}")
        stopwatch.lap()
        if (step + 1) % EVALUATE_EVERY == 0:
            for instance in ((None, None), (last, 0.5), (last // 2, 0.75), (0, 0.5)):
                accuracy, multiplications = trainer.evaluate(
                    *instance, train_batches, test_images, test_labels, scale.batch
                )
                print(
                    f"step {step} instance {instance} accuracy {accuracy!r} multiplications {multiplications}"
                )
            stopwatch.start()

    for (chosen, ratio), count in sorted(trainer.instances.items(), key=str):
        print(f"trained {count} times shrunk at {chosen} by {ratio}")
    finish(args, {"loss": losses}, [*trainer.model.variables, *trainer.optimizer.variables], stopwatch)


if __name__ == "__main__":
    main()

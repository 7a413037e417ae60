"""ResNet with bottleneck blocks (He et al., 2016), trained by a custom loop with a schedule in Python."""

import math
from dataclasses import dataclass

import tensorflow as tf
from common import LOG_EVERY, Stopwatch, finish, load_images, moved_batches, parse_arguments
from tensorflow import keras
from tensorflow.keras import layers


@dataclass(frozen=True)
class Scale:
    image: int  # side in pixels
    batch: int
    width: int  # of the first stage's bottleneck; each later stage doubles it
    blocks: tuple[int, ...]  # of each stage
    learning_rate: float  # at the schedule's top


SCALES = {
    "tiny": Scale(image=8, batch=16, width=4, blocks=(1,), learning_rate=0.05),
    "small": Scale(image=16, batch=32, width=16, blocks=(1, 1, 1, 1), learning_rate=0.05),
    "paper": Scale(image=224, batch=32, width=64, blocks=(3, 4, 6, 3), learning_rate=0.025),
}


class Bottleneck(layers.Layer):
    """1x1, 3x3 and 1x1 convolutions around a shortcut, which is a convolution where the shape changes."""

    def __init__(self, width, stride, project):
        super().__init__()
        self.convolutions = [
            layers.Conv2D(width, 1, use_bias=False),
            layers.Conv2D(width, 3, stride, padding="same", use_bias=False),
            layers.Conv2D(4 * width, 1, use_bias=False),
        ]
        self.norms = [layers.BatchNormalization(momentum=0.9) for _ in self.convolutions]
        self.project = project
        if project:
            self.shortcut = layers.Conv2D(4 * width, 1, stride, use_bias=False)
            self.shortcut_norm = layers.BatchNormalization(momentum=0.9)

    def call(self, x, training=False):
        shortcut = self.shortcut_norm(self.shortcut(x), training=training) if self.project else x
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            if convolution is not self.convolutions[0]:
                x = tf.nn.relu(x)
            x = norm(convolution(x), training=training)
        return tf.nn.relu(x + shortcut)


class ResNet(keras.Model):
    def __init__(self, scale, classes):
        super().__init__()
        self.large = scale.image >= 64
        if self.large:
            self.stem = layers.Conv2D(scale.width, 7, 2, padding="same", use_bias=False)
            self.pool = layers.MaxPooling2D(3, 2, padding="same")
        else:
            self.stem = layers.Conv2D(scale.width, 3, padding="same", use_bias=False)
        self.stem_norm = layers.BatchNormalization(momentum=0.9)
        self.blocks = [
            Bottleneck(scale.width * 2**stage, stride=2 if stage and not index else 1, project=not index)
            for stage, count in enumerate(scale.blocks)
            for index in range(count)
        ]
        self.average = layers.GlobalAveragePooling2D()
        self.classifier = layers.Dense(classes)

    def call(self, x, training=False):
        x = tf.nn.relu(self.stem_norm(self.stem(x), training=training))
        if self.large:
            x = self.pool(x)
        for block in self.blocks:
            x = block(x, training=training)
        return self.classifier(self.average(x))


class Trainer:
    def __init__(self, scale, steps):
        self.model = ResNet(scale, classes=10)
        self.optimizer = keras.optimizers.SGD(momentum=0.9)
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.accuracy = keras.metrics.SparseCategoricalAccuracy()
        self.top_rate = scale.learning_rate
        self.step = 0
        self.steps = steps

    def learning_rate(self):
        """A linear warm-up over a tenth of the steps, then half a cosine."""
        warmup = max(self.steps // 10, 1)
        if self.step < warmup:
            return self.top_rate * (self.step + 1) / warmup
        progress = (self.step - warmup) / max(self.steps - warmup, 1)
        return self.top_rate * 0.5 * (1.0 + math.cos(math.pi * progress))

    def train_step(self, images, labels):
        self.optimizer.learning_rate = self.learning_rate()
        with tf.GradientTape() as tape:
            logits = self.model(images, training=True)
            loss = self.loss(labels, logits)
        variables = self.model.trainable_variables
        gradients = tape.gradient(loss, variables)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        self.accuracy.update_state(labels, logits)
        self.step += 1
        return loss

    def validate(self, images, labels, batch):
        """Returns the accuracy over all images; the last batch may be smaller."""
        self.accuracy.reset_state()
        for start in range(0, len(images), batch):
            logits = self.model(images[start : start + batch], training=False)
            self.accuracy.update_state(labels[start : start + batch], logits)
        return float(self.accuracy.result())


def main():
    args = parse_arguments(__doc__)
    keras.utils.set_random_seed(args.seed)
    scale = SCALES[args.scale]
    images, labels, test_images, test_labels = load_images(scale.image)
    trainer = Trainer(scale, args.steps)

    losses = []
    stopwatch = Stopwatch()
    epoch = 0
    while trainer.step < args.steps:
        trainer.accuracy.reset_state()
        stopwatch.start()
        for batch_images, batch_labels in moved_batches(images, labels, scale.batch):
            loss = trainer.train_step(batch_images, batch_labels)
            losses.append(loss)
            if len(losses) % LOG_EVERY == 1:
                print(f"step {len(losses) - 1} loss {float(loss)!r}")
            stopwatch.lap()
            if trainer.step == args.steps:
                break
        train_accuracy = float(trainer.accuracy.result())
        test_accuracy = trainer.validate(test_images, test_labels, scale.batch)
        print(f"epoch {epoch} accuracy {train_accuracy!r}, on the test images {test_accuracy!r}")
        epoch += 1

    finish(args, {"loss": losses}, [*trainer.model.variables, *trainer.optimizer.variables], stopwatch)


if __name__ == "__main__":
    main()

"""YOLOv3 (Redmon and Farhadi, 2018): boxes at three scales; which of them to train is decided in NumPy in each step."""

import itertools
import random
import tempfile
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from boxes import iou, mean_average_precision, suppress
from common import LOG_EVERY, Stopwatch, finish, parse_arguments
from scenes import CLASSES, Scenes
from scipy.special import expit

STRIDES = (32, 16, 8)  # pixels to a cell at the three scales, coarse to fine
ANCHORS = 3  # at each scale
IGNORE = 0.5  # a box that overlaps an object by more is not called empty, even if another one is responsible for it
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
BURN_IN = 0.1  # share of the training in which the learning rate rises
DROPS = (0.8, 0.9)  # shares after which it falls to a tenth
RESIZE_EVERY = 10  # steps
EVALUATE_EVERY = 50  # steps
VALIDATION = 16  # scenes
LEAST_SCORE = 0.05  # of a box that counts as found
DUPLICATE = 0.45  # IoU of two boxes of the same class above which only the better stays


@dataclass(frozen=True)
class Scale:
    sizes: tuple[int, ...]  # sides of the images in pixels, one of which is drawn every few steps
    batch: int
    width: int  # channels of the first convolution
    blocks: tuple[int, ...]  # residual blocks of each stage
    pairs: int  # of convolutions before each prediction
    objects: int  # in an image, at most
    learning_rate: float  # at the schedule's top


SCALES = {
    "tiny": Scale((64,), batch=4, width=4, blocks=(0, 0, 1, 1, 1), pairs=0, objects=3, learning_rate=2e-3),
    "small": Scale(
        (96, 128), batch=4, width=8, blocks=(1, 1, 2, 2, 1), pairs=1, objects=5, learning_rate=2e-3
    ),
    "paper": Scale(
        tuple(range(320, 609, 32)), 8, 32, (1, 2, 8, 8, 4), pairs=2, objects=15, learning_rate=1e-3
    ),
}


class Convolution(tf.Module):
    """Convolution, batch normalization and leaky ReLU."""

    def __init__(self, inputs, outputs, size, stride=1):
        super().__init__()
        deviation = (2.0 / (size * size * inputs)) ** 0.5
        self.kernel = tf.Variable(tf.random.normal([size, size, inputs, outputs], stddev=deviation))
        self.gain = tf.Variable(tf.ones([outputs]))
        self.offset = tf.Variable(tf.zeros([outputs]))
        self.mean = tf.Variable(tf.zeros([outputs]), trainable=False)
        self.variance = tf.Variable(tf.ones([outputs]), trainable=False)
        self.stride = stride

    def __call__(self, x, training):
        x = tf.nn.conv2d(x, self.kernel, self.stride, "SAME")
        if training:
            x, mean, variance = tf.compat.v1.nn.fused_batch_norm(x, self.gain, self.offset, epsilon=1e-5)
            self.mean.assign_sub(0.1 * (self.mean - mean))
            self.variance.assign_sub(0.1 * (self.variance - variance))
        else:
            x = tf.nn.batch_normalization(x, self.mean, self.variance, self.offset, self.gain, 1e-5)
        return tf.nn.leaky_relu(x, 0.1)


class Residual(tf.Module):
    def __init__(self, channels):
        super().__init__()
        self.convolutions = [Convolution(channels, channels // 2, 1), Convolution(channels // 2, channels, 3)]

    def __call__(self, x, training):
        shortcut = x
        for convolution in self.convolutions:
            x = convolution(x, training)
        return x + shortcut


class Darknet(tf.Module):
    """Darknet-53 without its classifier, where `blocks` is (1, 2, 8, 8, 4)."""

    def __init__(self, width, blocks):
        super().__init__()
        self.stem = Convolution(3, width, 3)
        self.stages = []
        for count in blocks:
            down = Convolution(width, 2 * width, 3, stride=2)
            width *= 2
            self.stages.append([down, *(Residual(width) for _ in range(count))])

    def __call__(self, x, training):
        """Yields the features of every stage, fine to coarse."""
        x = self.stem(x, training)
        for stage in self.stages:
            for layer in stage:
                x = layer(x, training)
            yield x


class Head(tf.Module):
    """Predicts the boxes of one scale. Returns them, and the features that the next finer scale builds on."""

    def __init__(self, inputs, channels, pairs, outputs):
        super().__init__()
        self.body = []
        for _ in range(pairs):
            self.body += [Convolution(inputs, channels, 1), Convolution(channels, 2 * channels, 3)]
            inputs = 2 * channels
        self.body.append(Convolution(inputs, channels, 1))
        self.last = Convolution(channels, 2 * channels, 3)
        self.weights = tf.Variable(tf.random.normal([1, 1, 2 * channels, outputs], stddev=0.01))
        self.bias = tf.Variable(tf.zeros([outputs]))

    def __call__(self, x, training):
        for convolution in self.body:
            x = convolution(x, training)
        return tf.nn.conv2d(self.last(x, training), self.weights, 1, "SAME") + self.bias, x


class YOLO(tf.Module):
    def __init__(self, scale):
        super().__init__()
        self.backbone = Darknet(scale.width, scale.blocks)
        channels = [scale.width * 2 ** (len(scale.blocks) - level) for level in range(len(STRIDES))]
        self.heads, self.laterals = [], []
        for level, inputs in enumerate(channels):
            if level:
                self.laterals.append(Convolution(inputs, inputs // 2, 1))
                inputs += inputs // 2
            self.heads.append(Head(inputs, channels[level] // 2, scale.pairs, ANCHORS * (5 + CLASSES)))

    def __call__(self, images, training):
        """Returns for each of the scales, coarse to fine, an array (batch, rows, columns, anchor, 5 + classes)."""
        *_, fine, middle, coarse = self.backbone(images, training)
        x, outputs = None, []
        for level, features in enumerate((coarse, middle, fine)):
            if level:
                x = self.laterals[level - 1](x, training)
                x = tf.image.resize(x, features.shape[1:3], "nearest")
                features = tf.concat([x, features], axis=-1)
            y, x = self.heads[level](features, training)
            batch, rows, columns, _ = y.shape
            outputs.append(tf.reshape(y, [batch, rows, columns, ANCHORS, 5 + CLASSES]))
        return outputs


class Momentum(tf.Module):
    """Stochastic gradient descent with momentum and weight decay, as in Darknet."""

    def __init__(self, variables):
        super().__init__()
        self.variables_to_train = variables
        self.velocities = [tf.Variable(tf.zeros_like(variable), trainable=False) for variable in variables]
        self.rate = 0.0

    def apply(self, gradients):
        for variable, velocity, gradient in zip(
            self.variables_to_train, self.velocities, gradients, strict=True
        ):
            if len(variable.shape) == 4:  # kernels only
                gradient += WEIGHT_DECAY * variable
            velocity.assign(MOMENTUM * velocity - self.rate * gradient)
            variable.assign_add(velocity)


def cluster_anchors(sizes, rounds=20):
    """Nine widths and heights by k-means under the distance 1 - IoU, smallest area first, shape (9, 2)."""
    centres = sizes[np.random.choice(len(sizes), ANCHORS * len(STRIDES), replace=False)]
    for _ in range(rounds):
        nearest = np.argmax(overlap_of_sizes(sizes, centres), axis=1)
        centres = np.stack(
            [
                sizes[nearest == index].mean(axis=0) if np.any(nearest == index) else centre
                for index, centre in enumerate(centres)
            ]
        )
    return centres[np.argsort(centres.prod(axis=1))]


def overlap_of_sizes(sizes, others):
    """IoU of boxes with the same centre, shape (n, m)."""
    boxes, other_boxes = (np.concatenate([-each, each], axis=1) / 2.0 for each in (sizes, others))
    return iou(boxes, other_boxes)


def decode(output, anchors):
    """Boxes of one scale in shares of the image, shape (batch, rows, columns, anchor, 4)."""
    rows, columns = output.shape[1:3]
    corner = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1)[np.newaxis, :, :, np.newaxis]
    centres = (corner + expit(output[..., :2])) / (columns, rows)
    halves = anchors * np.exp(np.minimum(output[..., 2:4], 8.0)) / 2.0
    return np.concatenate([centres - halves, centres + halves], axis=-1)


class Targets:
    """What the network should have said, for one scale and a batch."""

    def __init__(self, shape):
        self.truth = np.zeros(shape, np.float32)  # as the network's output, after its sigmoids
        self.weight = np.zeros((*shape[:-1], 1), np.float32)  # of a responsible box's place; others have 0
        self.counted = np.ones((*shape[:-1], 1), np.float32)  # whether the box's objectness counts


def assign_targets(outputs, anchors, objects, labels, size):
    """Makes the one box responsible for each object whose anchor fits best; near misses are not counted.

    `outputs` are the network's, as NumPy arrays; `objects` the boxes of each image in pixels.
    """
    targets = [Targets(output.shape) for output in outputs]
    for output, scale_anchors, target in zip(outputs, anchors, targets, strict=True):
        for image, predicted in enumerate(decode(output, scale_anchors)):
            overlap = iou(predicted.reshape(-1, 4), objects[image] / size).max(axis=1, initial=0.0)
            target.counted[image, ..., 0][overlap.reshape(predicted.shape[:-1]) > IGNORE] = 0.0
    for image, (boxes, box_labels) in enumerate(zip(objects, labels, strict=True)):
        sizes = (boxes[:, 2:] - boxes[:, :2]) / size
        centres = (boxes[:, 2:] + boxes[:, :2]) / (2.0 * size)
        best = np.argmax(overlap_of_sizes(sizes, anchors.reshape(-1, 2)), axis=1)
        for centre, box_size, label, which in zip(centres, sizes, box_labels, best, strict=True):
            level, anchor = divmod(int(which), ANCHORS)
            target = targets[level]
            rows, columns = target.truth.shape[1:3]
            place = centre * (columns, rows)
            column, row = place.astype(int)
            truth = target.truth[image, row, column, anchor]
            truth[:2] = place - (column, row)
            truth[2:4] = np.log(box_size / anchors[level, anchor])
            truth[4] = 1.0
            truth[5:] = np.eye(CLASSES)[label]
            target.weight[image, row, column, anchor] = 2.0 - box_size.prod()
            target.counted[image, row, column, anchor] = 1.0
    return targets


def losses_of_scale(output, target):
    """Losses of the boxes, the objectness and the classes at one scale, each summed over the batch."""
    truth = target.truth
    there = truth[..., 4:5]
    place = tf.square(truth[..., :2] - tf.sigmoid(output[..., :2]))
    shape = tf.square(truth[..., 2:4] - output[..., 2:4])
    objectness = tf.nn.sigmoid_cross_entropy_with_logits(there, output[..., 4:5])
    classes = tf.nn.sigmoid_cross_entropy_with_logits(truth[..., 5:], output[..., 5:])
    return [
        tf.reduce_sum(target.weight * (place + shape)),
        tf.reduce_sum(target.counted * objectness),
        tf.reduce_sum(there * classes),
    ]


class Trainer:
    def __init__(self, scale, anchors, steps):
        self.model = YOLO(scale)
        self.anchors = anchors
        self.variables = self.model.trainable_variables
        self.optimizer = Momentum(self.variables)
        self.top_rate = scale.learning_rate
        self.steps = steps
        self.step = 0
        self.ignored = 0  # boxes in the last step that were neither responsible nor called empty

    def learning_rate(self):
        """Rises with the fourth power during the burn-in, then stays, then falls twice."""
        progress = (self.step + 1) / self.steps
        if progress < BURN_IN:
            return self.top_rate * (progress / BURN_IN) ** 4
        return self.top_rate * 0.1 ** sum(progress > share for share in DROPS)

    def train_step(self, images, objects, labels):
        """Returns the loss for an image, and its parts: a row for each scale; boxes, objectness, classes."""
        with tf.GradientTape() as tape:
            outputs = self.model(images, training=True)
            targets = assign_targets(
                [output.numpy() for output in outputs], self.anchors, objects, labels, images.shape[1]
            )
            parts = [losses_of_scale(*each) for each in zip(outputs, targets, strict=True)]
            loss = tf.add_n(list(itertools.chain(*parts))) / len(images)
        self.optimizer.rate = self.learning_rate()
        self.optimizer.apply(tape.gradient(loss, self.variables))
        self.ignored = sum(int(np.sum(target.counted == 0.0)) for target in targets)
        self.step += 1
        return loss, parts

    def detect(self, images):
        """Returns boxes in pixels, scores and labels for each image, the best first within a class."""
        outputs = [output.numpy() for output in self.model(images, training=False)]
        boxes, scores = [], []
        for output, anchors in zip(outputs, self.anchors, strict=True):
            boxes.append(decode(output, anchors).reshape(len(images), -1, 4) * images.shape[1])
            chance = expit(output[..., 4:5]) * expit(output[..., 5:])
            scores.append(chance.reshape(len(images), -1, CLASSES))
        found = []
        for image_boxes, image_scores in zip(
            np.concatenate(boxes, axis=1), np.concatenate(scores, axis=1), strict=True
        ):
            finds = []
            for label in range(CLASSES):
                (likely,) = np.nonzero(image_scores[:, label] > LEAST_SCORE)
                if not likely.size:
                    continue
                likely = likely[suppress(image_boxes[likely], image_scores[likely, label], DUPLICATE)]
                finds += [(image_boxes[index], image_scores[index, label], label) for index in likely]
            if finds:
                found.append(tuple(np.array(each) for each in zip(*finds, strict=True)))
            else:
                found.append((np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)))
        return found

    def evaluate(self, images, objects, labels, batch):
        """Mean average precision at an IoU of a half."""
        found = []
        for start in range(0, len(images), batch):
            found += self.detect(images[start : start + batch])
        return mean_average_precision(found, list(zip(objects, labels, strict=True)))


def batches(scenes, scale):
    """Yields batches for ever; every few of them the images get another size."""
    for index in itertools.count():
        if index % RESIZE_EVERY == 0:
            size = random.choice(scale.sizes)
        yield scenes.batch(scale.batch, size)


def main():
    args = parse_arguments(__doc__)
    tf.keras.utils.set_random_seed(args.seed)
    scale = SCALES[args.scale]
    scenes = Scenes(scale.objects, low=0.15, high=0.5)
    validation = Scenes(scale.objects, low=0.15, high=0.5, training=False).batch(VALIDATION, scale.sizes[-1])
    # Anchors are shares of the image, so that they fit every size. The largest belong to the coarsest scale.
    _, samples, _ = scenes.batch(200, 64)
    sizes = np.concatenate([boxes[:, 2:] - boxes[:, :2] for boxes in samples]) / 64.0
    anchors = cluster_anchors(sizes).reshape(len(STRIDES), ANCHORS, 2)[::-1]
    trainer = Trainer(scale, anchors, args.steps)
    checkpoint = tf.train.Checkpoint(model=trainer.model, optimizer=trainer.optimizer)

    losses = []
    best = -1.0
    with tempfile.TemporaryDirectory() as folder:
        manager = tf.train.CheckpointManager(checkpoint, folder, max_to_keep=1)
        stopwatch = Stopwatch()
        for images, objects, labels in itertools.islice(batches(scenes, scale), args.steps):
            loss, parts = trainer.train_step(images, objects, labels)
            losses.append(loss)
            if (trainer.step - 1) % LOG_EVERY == 0:
                print(f"step {trainer.step - 1} size {images.shape[1]} loss {float(loss)!r}")
                print(f"rate {trainer.optimizer.rate!r} ignored {trainer.ignored} parts", tf.stack(parts))
            stopwatch.lap()
            if trainer.step % EVALUATE_EVERY == 0 or trainer.step == args.steps:
                precision = trainer.evaluate(*validation, scale.batch)
                print(f"step {trainer.step - 1} mean average precision {precision!r}")
                if precision > best:
                    best = precision
                    manager.save()
                stopwatch.start()
        checkpoint.restore(manager.latest_checkpoint)
    print(f"best mean average precision {trainer.evaluate(*validation, scale.batch)!r}")
    finish(args, {"loss": losses}, [*trainer.model.variables, *trainer.optimizer.velocities], stopwatch)


if __name__ == "__main__":
    main()

"""Faster R-CNN (Ren et al., 2015): a network proposes regions, NumPy picks some of them, another network judges."""

from collections import deque
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from boxes import iou, mean_average_precision, suppress
from common import LOG_EVERY, Stopwatch, finish, parse_arguments
from scenes import CLASSES, Scenes
from scipy.special import softmax
from tensorflow import keras
from tensorflow.keras import layers

RATIOS = (0.5, 1.0, 2.0)  # height to width of the anchors
POSITIVE, NEGATIVE = (
    0.7,
    0.3,
)  # IoU of an anchor with an object from which, and below which, it is trained as such
FOREGROUND = 0.5  # IoU of a proposal with an object from which it is trained to be that object
FOREGROUND_SHARE = 0.25  # of the proposals that are trained, at most
PROPOSAL_OVERLAP = 0.7  # IoU of two proposals above which only the better stays
BOX_WEIGHT = 10.0  # of the proposals' places in the loss, lambda in the paper
DEVIATIONS = np.array([0.1, 0.1, 0.2, 0.2], np.float32)  # of the second network's targets, typically
WEIGHT_DECAY = 5e-4
EMPTY = 0.1  # share of the scenes without a digit
EVALUATE_EVERY = 50  # steps
VALIDATION = 12  # scenes
LEAST_SCORE = 0.05  # of a box that counts as found
DUPLICATE = 0.3  # IoU of two boxes of the same class above which only the better stays


@dataclass(frozen=True)
class Scale:
    image: int  # side in pixels
    batch: int
    groups: tuple[tuple[int, int], ...]  # channels and number of the convolutions between two poolings
    sizes: tuple[int, ...]  # of the anchors: the side of a square of the same area, in pixels
    proposing: int  # channels of the proposing network
    hidden: int  # width of the judging network
    cells: int  # side of a region after pooling
    anchors: int  # to train in an image
    best: int  # proposals that are looked at, by score
    proposals: int  # that remain of them, at most
    regions: int  # proposals to train in an image
    objects: int  # in an image, at most
    learning_rate: float


SCALES = {
    "tiny": Scale(
        image=64,
        batch=2,
        groups=((8, 1), (16, 1), (32, 1), (32, 1)),
        sizes=(12, 20, 32),
        proposing=32,
        hidden=64,
        cells=4,
        anchors=32,
        best=200,
        proposals=50,
        regions=16,
        objects=3,
        learning_rate=0.01,
    ),
    "small": Scale(
        image=128,
        batch=2,
        groups=((16, 1), (32, 1), (64, 2), (64, 2)),
        sizes=(20, 36, 60),
        proposing=64,
        hidden=256,
        cells=7,
        anchors=128,
        best=1000,
        proposals=300,
        regions=32,
        objects=5,
        learning_rate=0.01,
    ),
    # VGG-16 without its last pooling.
    "paper": Scale(
        image=600,
        batch=1,
        groups=((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)),
        sizes=(128, 256, 512),
        proposing=512,
        hidden=4096,
        cells=7,
        anchors=256,
        best=6000,
        proposals=2000,
        regions=128,
        objects=8,
        learning_rate=0.001,
    ),
}


def convolution(channels):
    return layers.Conv2D(
        channels,
        3,
        padding="same",
        activation="relu",
        kernel_initializer="he_normal",
        kernel_regularizer=keras.regularizers.L2(WEIGHT_DECAY / 2),
    )


def make_backbone(scale):
    model = keras.Sequential(name="backbone")
    model.add(keras.Input((scale.image, scale.image, 3)))
    for index, (channels, count) in enumerate(scale.groups):
        if index:
            model.add(layers.MaxPooling2D(2))
        for _ in range(count):
            model.add(convolution(channels))
    return model


def small_normal(deviation):
    return keras.initializers.RandomNormal(stddev=deviation)


class ProposalNetwork(layers.Layer):
    """Says of each anchor whether it holds an object, and how to move it."""

    def __init__(self, channels, anchors):
        super().__init__()
        self.convolution = convolution(channels)
        self.scores = layers.Conv2D(anchors, 1, kernel_initializer=small_normal(0.01))
        self.moves = layers.Conv2D(4 * anchors, 1, kernel_initializer=small_normal(0.01))

    def call(self, features):
        """Returns logits (batch, n) and moves (batch, n, 4) of the n anchors."""
        x = self.convolution(features)
        batch = x.shape[0]
        return tf.reshape(self.scores(x), [batch, -1]), tf.reshape(self.moves(x), [batch, -1, 4])


class JudgingNetwork(layers.Layer):
    """Says what each region is, the last class being background, and how to move it if it is a given class."""

    def __init__(self, width):
        super().__init__()
        self.flatten = layers.Flatten()
        self.hidden = [layers.Dense(width, "relu", kernel_initializer="he_normal") for _ in range(2)]
        self.dropout = layers.Dropout(0.5)
        self.classes = layers.Dense(CLASSES + 1, kernel_initializer=small_normal(0.01))
        self.moves = layers.Dense(4 * CLASSES, kernel_initializer=small_normal(0.001))

    def call(self, regions, training=False):
        x = self.flatten(regions)
        for layer in self.hidden:
            x = self.dropout(layer(x), training=training)
        return self.classes(x), tf.reshape(self.moves(x), [x.shape[0], CLASSES, 4])


def make_anchors(side, stride, sizes):
    """Anchors of every place of a map of `side` x `side`, those of a place side by side, shape (n, 4)."""
    shapes = np.array([(size / ratio**0.5, size * ratio**0.5) for size in sizes for ratio in RATIOS])
    centres = (np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1) + 0.5) * stride
    centres = centres.reshape(-1, 1, 2)
    return (
        np.concatenate([centres - shapes / 2, centres + shapes / 2], axis=-1)
        .reshape(-1, 4)
        .astype(np.float32)
    )


def encode(boxes, anchors):
    """How the anchors have to be moved to become the boxes."""
    sides, anchor_sides = boxes[:, 2:] - boxes[:, :2], anchors[:, 2:] - anchors[:, :2]
    shift = (boxes[:, 2:] + boxes[:, :2] - anchors[:, 2:] - anchors[:, :2]) / 2.0
    return np.concatenate([shift / anchor_sides, np.log(sides / anchor_sides)], axis=1)


def decode(moves, anchors, size):
    """The reverse of `encode`, cut off at the image's border."""
    sides = anchors[:, 2:] - anchors[:, :2]
    centres = (anchors[:, 2:] + anchors[:, :2]) / 2.0 + moves[:, :2] * sides
    halves = sides * np.exp(np.minimum(moves[:, 2:], 4.0)) / 2.0
    return np.clip(np.concatenate([centres - halves, centres + halves], axis=1), 0.0, size)


def pooling_matrix(low, high, cells, length):
    """Bilinear interpolation along one axis at two points in each cell and their mean, shape (n, cells, length)."""
    points = (
        low[:, np.newaxis] + (high - low)[:, np.newaxis] * (np.arange(2 * cells) + 0.5) / (2 * cells) - 0.5
    )
    distance = np.abs(np.clip(points, 0.0, length - 1.0)[..., np.newaxis] - np.arange(length))
    weights = np.maximum(1.0 - distance, 0.0)
    return weights.reshape(len(low), cells, 2, length).mean(axis=2).astype(np.float32)


def pool_regions(features, boxes, cells, stride):
    """Region pooling by bilinear interpolation (RoIAlign), as two products of matrices.

    Not by `tf.image.crop_and_resize`: the order of the additions in the gradient of that op is a matter of chance,
    and two runs would not end with the same weights.

    Args:
        features: (height, width, channels).
        boxes: (n, 4) in pixels, as a NumPy array; no gradient goes through it.
    """
    height, width, _ = features.shape
    left, top, right, bottom = boxes.T / stride
    rows, columns = pooling_matrix(top, bottom, cells, height), pooling_matrix(left, right, cells, width)
    return tf.einsum("nqw,npwc->npqc", columns, tf.einsum("nph,hwc->npwc", rows, features))


def smooth_l1(difference):
    size = tf.abs(difference)
    near = tf.minimum(size, 1.0)
    return near * (size - 0.5 * near)


def pick(candidates, most):
    """At most so many of the candidates, at random."""
    return np.random.choice(candidates, min(most, len(candidates)), replace=False)


class FasterRCNN:
    def __init__(self, scale):
        self.scale = scale
        self.stride = 2 ** (len(scale.groups) - 1)
        self.backbone = make_backbone(scale)
        self.proposer = ProposalNetwork(scale.proposing, len(scale.sizes) * len(RATIOS))
        self.judge = JudgingNetwork(scale.hidden)
        self.optimizer = keras.optimizers.SGD(scale.learning_rate, momentum=0.9)
        side = self.backbone.output_shape[1]
        self.locations = side * side
        self.anchors = make_anchors(side, self.stride, scale.sizes)
        inside = np.all((self.anchors >= 0.0) & (self.anchors <= scale.image), axis=1)
        self.inside = np.flatnonzero(inside)  # the anchors that are trained
        self.counts = []  # of each image in the last step: proposals, and regions trained as objects

    def models(self):
        return self.backbone, self.proposer, self.judge

    def propose(self, logits, moves):
        """Proposals of one image, best first, shape (n, 4); n depends on how many overlap."""
        boxes = decode(moves, self.anchors, self.scale.image)
        (large,) = np.nonzero(np.all(boxes[:, 2:] - boxes[:, :2] >= self.stride / 2, axis=1))
        best = large[np.argsort(-logits[large], kind="stable")[: self.scale.best]]
        kept = tf.image.non_max_suppression(
            boxes[best], logits[best], self.scale.proposals, iou_threshold=PROPOSAL_OVERLAP
        )
        return boxes[best[kept.numpy()]]

    def anchor_targets(self, objects):
        """Which anchors to train in one image.

        Returns:
            What each anchor holds (1 or 0), its weight in the loss (n,), and how it should be moved (n, 4).
        """
        count = len(self.anchors)
        truth, weight = np.zeros(count, np.float32), np.zeros(count, np.float32)
        moves = np.zeros((count, 4), np.float32)
        overlap = iou(self.anchors[self.inside], objects)
        best = overlap.max(axis=1)
        positive = best >= POSITIVE
        positive |= np.any((overlap == overlap.max(axis=0)) & (overlap > 0.0), axis=1)  # each object's best
        chosen = pick(np.flatnonzero(positive), self.scale.anchors // 2)
        empty = pick(np.flatnonzero(~positive & (best < NEGATIVE)), self.scale.anchors - len(chosen))
        where = self.inside[chosen]
        truth[where] = 1.0
        weight[where] = weight[self.inside[empty]] = 1.0
        moves[where] = encode(objects[overlap[chosen].argmax(axis=1)], self.anchors[where])
        return truth, weight, moves

    def region_targets(self, proposals, objects, labels):
        """Which proposals to train in one image.

        Returns:
            The regions (n, 4), their labels (n,), and how they should be moved, with the weight of each class
            in the loss (n, classes, 4).
        """
        candidates = np.concatenate([proposals, objects])
        overlap = iou(candidates, objects)
        nearest, best = overlap.argmax(axis=1), overlap.max(axis=1)
        chosen = pick(np.flatnonzero(best >= FOREGROUND), int(FOREGROUND_SHARE * self.scale.regions))
        others = pick(np.flatnonzero(best < FOREGROUND), self.scale.regions - len(chosen))
        regions = candidates[np.concatenate([chosen, others])]
        targets = np.full(len(regions), CLASSES)
        targets[: len(chosen)] = labels[nearest[chosen]]
        moves = np.zeros((len(regions), CLASSES, 4), np.float32)
        weight = np.zeros((len(regions), CLASSES, 1), np.float32)
        for index, candidate in enumerate(chosen):
            wanted = encode(objects[nearest[candidate], np.newaxis], candidates[candidate, np.newaxis])
            moves[index, targets[index]] = wanted[0] / DEVIATIONS
            weight[index, targets[index]] = 1.0
        self.counts.append((len(proposals), len(chosen)))
        return regions, targets, moves, weight

    def train_step(self, images, objects, labels):
        """Returns the loss and its four parts: the proposals' scores and places, the regions' classes and places."""
        self.counts.clear()
        pooled, wanted = [], []
        score_losses, place_losses = [], []
        with tf.GradientTape() as tape:
            features = self.backbone(images, training=True)
            logits, moves = self.proposer(features)
            for image, (boxes, box_labels) in enumerate(zip(objects, labels, strict=True)):
                if not len(boxes):
                    continue
                truth, weight, target = self.anchor_targets(boxes)
                entropy = tf.nn.sigmoid_cross_entropy_with_logits(truth, logits[image])
                score_losses.append(tf.reduce_sum(weight * entropy) / weight.sum())
                distance = tf.reduce_sum(smooth_l1(moves[image] - target), axis=1)
                place_losses.append(BOX_WEIGHT * tf.reduce_sum(truth * distance) / self.locations)

                proposals = self.propose(logits[image].numpy(), moves[image].numpy())
                regions, *targets = self.region_targets(proposals, boxes, box_labels)
                pooled.append(pool_regions(features[image], regions, self.scale.cells, self.stride))
                wanted.append(targets)

            region_labels, region_moves, region_weight = (
                np.concatenate(each) for each in zip(*wanted, strict=True)
            )
            classes, changes = self.judge(tf.concat(pooled, axis=0), training=True)
            entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(region_labels, classes)
            parts = [
                tf.add_n(score_losses) / len(score_losses),
                tf.add_n(place_losses) / len(place_losses),
                tf.reduce_mean(entropy),
                tf.reduce_sum(region_weight * smooth_l1(changes - region_moves)) / len(region_labels),
            ]
            loss = tf.add_n(parts) + tf.add_n(self.backbone.losses + self.proposer.losses)
        variables = [variable for model in self.models() for variable in model.trainable_variables]
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss, parts

    def detect(self, image):
        """Returns the boxes found in one image, their scores and labels, and all proposals."""
        features = self.backbone(image[np.newaxis], training=False)
        logits, moves = self.proposer(features)
        proposals = self.propose(logits[0].numpy(), moves[0].numpy())
        classes, changes = self.judge(pool_regions(features[0], proposals, self.scale.cells, self.stride))
        chances, changes = softmax(classes.numpy(), axis=1), changes.numpy() * DEVIATIONS
        found = []
        for label in range(CLASSES):
            (likely,) = np.nonzero(chances[:, label] > LEAST_SCORE)
            boxes = decode(changes[likely, label], proposals[likely], self.scale.image)
            kept = suppress(boxes, chances[likely, label], DUPLICATE)
            found.append((boxes[kept], chances[likely[kept], label], np.full(len(kept), label)))
        return tuple(np.concatenate(each) for each in zip(*found, strict=True)), proposals

    def evaluate(self, images, objects, labels):
        """Returns the mean average precision, and the share of the objects that a proposal overlaps by half."""
        found, covered, total = [], 0, 0
        for image, boxes in zip(images, objects, strict=True):
            boxes_found, proposals = self.detect(image)
            found.append(boxes_found)
            covered += int(np.sum(iou(proposals, boxes).max(axis=0, initial=0.0) >= 0.5))
            total += len(boxes)
        return mean_average_precision(found, list(zip(objects, labels, strict=True))), covered / total


def main():
    args = parse_arguments(__doc__)
    keras.utils.set_random_seed(args.seed)
    scale = SCALES[args.scale]
    scenes = Scenes(scale.objects, low=0.2, high=0.5, empty=EMPTY)
    validation = Scenes(scale.objects, low=0.2, high=0.5, training=False).batch(VALIDATION, scale.image)
    detector = FasterRCNN(scale)

    losses = []
    recent = deque(maxlen=LOG_EVERY)
    skipped = 0
    stopwatch = Stopwatch()
    while len(losses) < args.steps:
        images, objects, labels = scenes.batch(scale.batch, scale.image)
        if not any(len(boxes) for boxes in objects):
            skipped += 1
            continue
        if len(losses) == args.steps * 3 // 4:
            detector.optimizer.learning_rate = scale.learning_rate / 10.0
        loss, parts = detector.train_step(images, objects, labels)
        losses.append(loss)
        recent.append(loss)
        if len(losses) % LOG_EVERY == 1:
            mean = float(np.mean([float(each) for each in recent]))
            print(
                f"step {len(losses) - 1} loss {float(loss)!r} mean {mean!r} parts",
                *(f"{part:.6f}" for part in parts),
            )
            print(f"proposals and objects trained {detector.counts}, batches skipped {skipped}")
        stopwatch.lap()
        if len(losses) % EVALUATE_EVERY == 0:
            precision, coverage = detector.evaluate(*validation)
            print(f"step {len(losses) - 1} mean average precision {precision!r}, of proposals {coverage!r}")
            stopwatch.start()

    variables = [variable for model in detector.models() for variable in model.variables]
    finish(args, {"loss": losses}, [*variables, *detector.optimizer.variables], stopwatch)


if __name__ == "__main__":
    main()

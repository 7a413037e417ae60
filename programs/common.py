"""What the example programs share: their options, the digits and texts, a stopwatch and the closing report."""

import argparse
import hashlib
import json
import time
from pydoc_data.topics import topics

import numpy as np
from sklearn.datasets import load_digits

LOG_EVERY = 10  # steps


def parse_arguments(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=200, help="training steps (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=1, help="seed of every random number (default: %(default)s)"
    )
    parser.add_argument(
        "--scale", choices=("tiny", "small", "paper"), default="tiny", help="size of the model"
    )
    parser.add_argument("--timings", metavar="FILE", help="write the seconds of each step as a JSON list")
    parser.add_argument("--save", metavar="FILE", help="write every variable at the end as .npz")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error("--steps must be at least 1")
    return args


def load_images(size):
    """Returns (train images, train labels, test images, test labels) of the 1797 digits, in random order.

    Images are float32 in [0, 1] of shape (n, size, size, 1), enlarged from 8 x 8 by repetition; labels int32.
    """
    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)[..., np.newaxis]
    images = images.repeat(size // 8, axis=1).repeat(size // 8, axis=2)
    labels = digits.target.astype(np.int32)
    order = np.random.permutation(len(images))
    train, test = order[:1437], order[1437:]
    return images[train], labels[train], images[test], labels[test]


def load_topics():
    """Returns {name: text} of the Python reference manual's chapters that `help()` shows, about 460,000 characters.

    They come with the interpreter, so another version of Python has other texts. Chapters under 500 characters are
    left out.
    """
    return {name: text for name, text in sorted(topics.items()) if len(text) >= 500}


def moved_batches(images, labels, batch):
    """Yields one epoch in random order, each batch moved by up to a pixel; an incomplete one is left out."""
    order = np.random.permutation(len(images))
    for start in range(0, len(order) - batch + 1, batch):
        chosen = order[start : start + batch]
        shift = np.random.randint(-1, 2, size=2)
        yield np.roll(images[chosen], shift, axis=(1, 2)), labels[chosen]


class Stopwatch:
    """Seconds of each training step, the preparation of its batch included."""

    def __init__(self):
        self.laps = []
        self.start()

    def start(self):
        self.last = time.perf_counter()

    def lap(self):
        now = time.perf_counter()
        self.laps.append(now - self.last)
        self.last = now


def finish(args, losses, variables, stopwatch):
    """Prints every loss in full precision and a checksum of the variables, and writes the files asked for."""
    print("all losses:")
    for step, values in enumerate(zip(*losses.values(), strict=True)):
        print(step, *(f"{name} {float(value)!r}" for name, value in zip(losses, values, strict=True)))
    arrays = [np.asarray(variable) for variable in variables]
    checksum = hashlib.sha256()
    for array in arrays:
        checksum.update(array.tobytes())
    print(f"{len(arrays)} variables, sha256 {checksum.hexdigest()}")
    if args.save:
        np.savez(args.save, *arrays)
    if args.timings:
        with open(args.timings, "w", encoding="utf-8") as file:
            json.dump(stopwatch.laps, file)

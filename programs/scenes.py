"""Scenes for the detectors: hand-written digits of any size and colour, on pieces of photographs.

Digits and photographs are scikit-learn's own, so nothing is downloaded.
"""

from importlib import resources

import numpy as np
import tensorflow as tf
from boxes import iou
from scipy import ndimage
from sklearn.datasets import load_digits

PHOTOGRAPHS = ("china.jpg", "flower.jpg")
CLASSES = 10
DIMMED = 0.5  # brightness of the photographs, so that the digits stand out
TRIES = 20  # to find a place for a digit
OVERLAP = 0.05  # greatest IoU of two digits


def load_photographs():
    """Returns the photographs as float32 arrays of shape (height, width, 3), values in [0, 1]."""
    folder = resources.files("sklearn.datasets.images")
    files = [folder.joinpath(name).read_bytes() for name in PHOTOGRAPHS]
    return [tf.io.decode_jpeg(file).numpy().astype(np.float32) / 255.0 for file in files]


def trim(digit):
    """Cuts away the empty rows and columns around a digit."""
    rows, columns = np.nonzero(digit.any(axis=1))[0], np.nonzero(digit.any(axis=0))[0]
    return digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


class Scenes:
    """Draws scenes with one to `most` digits, whose heights are `low` to `high` of the image's side.

    A share `empty` of the scenes has no digit. Training scenes hold the first four fifths of the digits, others
    the rest. All randomness is NumPy's.
    """

    def __init__(self, most, low, high, empty=0.0, training=True):
        data = load_digits()
        first = len(data.images) * 4 // 5
        part = slice(first) if training else slice(first, None)
        self.digits = [trim(image) for image in (data.images[part] / 16.0).astype(np.float32)]
        self.labels = data.target[part]
        self.photographs = load_photographs()
        self.most, self.low, self.high, self.empty = most, low, high, empty

    def background(self, size):
        photograph = self.photographs[np.random.randint(len(self.photographs))]
        height, width, _ = photograph.shape
        side = min(size, height)
        top, left = np.random.randint(height - side + 1), np.random.randint(width - side + 1)
        piece = photograph[top : top + side, left : left + side]
        if side < size:
            piece = ndimage.zoom(piece, (size / side, size / side, 1), order=1)
        return DIMMED * piece

    def draw(self, size):
        """Returns an image of `size` x `size` pixels, its boxes and their labels.

        The image is float32 (size, size, 3) in about [0, 1], the boxes are float32 (n, 4): left, top, right and
        bottom in pixels; the labels are integers (n,). There may be fewer digits than meant, if none fits.
        """
        image = self.background(size)
        boxes, labels = np.zeros((0, 4), np.float32), []
        count = 0 if np.random.uniform() < self.empty else np.random.randint(1, self.most + 1)
        for _ in range(count):
            which = np.random.randint(len(self.digits))
            digit = self.digits[which]
            digit = ndimage.zoom(
                digit, size * np.random.uniform(self.low, self.high) / digit.shape[0], order=1
            )
            height, width = (min(side, size) for side in digit.shape)
            for _ in range(TRIES):
                top, left = np.random.randint(size - height + 1), np.random.randint(size - width + 1)
                box = np.array([[left, top, left + width, top + height]], np.float32)
                if not np.any(iou(box, boxes) > OVERLAP):
                    break
            else:
                continue
            ink = digit[:height, :width, np.newaxis]
            colour = np.random.uniform(0.6, 1.0, size=3).astype(np.float32)
            place = image[top : top + height, left : left + width]
            place += ink * (colour - place)
            boxes = np.concatenate([boxes, box])
            labels.append(self.labels[which])
        return image, boxes, np.array(labels, np.int64)

    def batch(self, count, size):
        """Returns images (count, size, size, 3), and lists of each one's boxes and labels."""
        images, boxes, labels = zip(*(self.draw(size) for _ in range(count)), strict=True)
        return np.stack(images), list(boxes), list(labels)

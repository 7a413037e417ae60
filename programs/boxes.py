"""Boxes in NumPy: overlap, suppression of duplicates, and how good a detector is.

A box is left, top, right, bottom; n of them are an array of shape (n, 4).
"""

import numpy as np


def area(boxes):
    return np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0), axis=1)


def iou(boxes, others):
    """Intersection over union of each of n boxes with each of m others, shape (n, m)."""
    low = np.maximum(boxes[:, np.newaxis, :2], others[np.newaxis, :, :2])
    high = np.minimum(boxes[:, np.newaxis, 2:], others[np.newaxis, :, 2:])
    common = np.prod(np.maximum(high - low, 0.0), axis=2)
    union = area(boxes)[:, np.newaxis] + area(others)[np.newaxis, :] - common
    return common / np.maximum(union, 1e-9)


def suppress(boxes, scores, threshold):
    """Non-maximum suppression: indices of the boxes to keep, best first.

    Of two boxes with an IoU above the threshold only the one with the higher score stays.
    """
    order = np.argsort(-scores, kind="stable")
    kept = []
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(best)
        order = rest[iou(boxes[best : best + 1], boxes[rest])[0] <= threshold]
    return np.array(kept, np.int64)


def average_precision(hits, total):
    """Area under the precision-recall curve, made monotonous; `hits` says of each find, best first, if it is right."""
    right = np.cumsum(hits)
    recall = np.concatenate([[0.0], right / total])
    precision = right / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall) * precision))


def mean_average_precision(found, truth, threshold=0.5):
    """Mean over the classes that occur of the average precision at an IoU of `threshold`.

    `found` holds (boxes, scores, labels) for each image, `truth` (boxes, labels). Each true box is found at most once.
    """
    precisions = []
    for label in np.unique(np.concatenate([labels for _, labels in truth])):
        hits, scores, total = [], [], 0
        for (boxes, box_scores, box_labels), (true_boxes, true_labels) in zip(found, truth, strict=True):
            wanted = true_boxes[true_labels == label]
            total += len(wanted)
            taken = np.zeros(len(wanted), bool)
            chosen = np.flatnonzero(box_labels == label)
            for index in chosen[np.argsort(-box_scores[chosen], kind="stable")]:
                overlap = np.where(taken, 0.0, iou(boxes[index : index + 1], wanted)[0])
                hit = overlap.size > 0 and overlap.max() >= threshold
                if hit:
                    taken[np.argmax(overlap)] = True
                hits.append(hit)
                scores.append(box_scores[index])
        if hits:
            precisions.append(
                average_precision(np.array(hits)[np.argsort(-np.array(scores), kind="stable")], total)
            )
        else:
            precisions.append(0.0)
    return float(np.mean(precisions))

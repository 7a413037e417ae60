"""BERT classifies texts (Devlin et al., 2019): the chapter of a manual from which a passage comes."""

import collections
import math

import numpy as np
import tensorflow as tf
from bert import DROPOUT, SCALES, Encoder, WordPiece, bucket, initializer, load_passages, make_optimizer, pad
from common import LOG_EVERY, Stopwatch, finish, parse_arguments
from sklearn.metrics import confusion_matrix, f1_score
from sklearn.model_selection import train_test_split
from tensorflow import keras
from tensorflow.keras import layers

CLASSES = 8  # the chapters with most passages
CONFIDENT = 1.6  # loss under which a batch is passed through the model twice
AGREEMENT = 1.0  # weight of the divergence between the two
SPIKE = 3.0  # an update is left out whose gradient is so many times longer than usual


def load_texts(length):
    """Returns (texts, labels, names of the classes)."""
    passages = load_passages(6, length)
    sizes = collections.Counter(chapter for chapter, _ in passages)
    names = sorted(name for name, _ in sizes.most_common(CLASSES))
    texts = [text for chapter, text in passages if chapter in names]
    labels = [names.index(chapter) for chapter, _ in passages if chapter in names]
    return texts, np.array(labels, np.int32), names


def batches(texts, labels, size):
    """Yields one epoch in random order; the last batch may be smaller."""
    order = np.random.permutation(len(texts))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        yield [texts[index] for index in chosen], labels[chosen]


class Classifier(keras.Model):
    """The encoder, a layer on the first token's place, and a score per class."""

    def __init__(self, scale, classes):
        super().__init__()
        self.encoder = Encoder(scale)
        self.pool = layers.Dense(scale.width, activation="tanh", kernel_initializer=initializer())
        self.dropout = layers.Dropout(DROPOUT)
        self.score = layers.Dense(classes, kernel_initializer=initializer())

    def call(self, tokens, training=False):
        x = self.encoder(tokens, tf.zeros_like(tokens), training=training)
        return self.score(self.dropout(self.pool(x[:, 0]), training=training))


def divergence(first, second):
    """The mean of both Kullback-Leibler divergences between the distributions that two sets of logits stand for."""
    first, second = tf.nn.log_softmax(first), tf.nn.log_softmax(second)
    differences = (tf.exp(first) - tf.exp(second)) * (first - second)
    return 0.5 * tf.reduce_mean(tf.reduce_sum(differences, axis=-1))


class Trainer:
    def __init__(self, scale, tokenizer, classes, steps):
        self.model = Classifier(scale, classes)
        self.optimizer = make_optimizer(scale, steps)
        self.cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.tokenizer = tokenizer
        self.length = scale.length
        self.usual_norm = None
        self.skipped = []  # steps without an update
        self.doubled = 0  # steps with two passes
        self.steps = 0

    def encode(self, texts):
        tokens = [
            [self.tokenizer.CLS, *self.tokenizer.encode(text)[0][: self.length - 2], self.tokenizer.SEP]
            for text in texts
        ]
        return pad(tokens, bucket(tokens))

    def train_step(self, texts, labels):
        """Returns the loss, the gradient's norm, and the F1 score of what was predicted on the way."""
        tokens = self.encode(texts)
        with tf.GradientTape() as tape:
            logits = self.model(tokens, training=True)
            loss = self.cross_entropy(labels, logits)
            if float(loss) < CONFIDENT:
                # R-Drop (Liang et al., 2021): two passes with other dropout should agree.
                again = self.model(tokens, training=True)
                loss = 0.5 * (loss + self.cross_entropy(labels, again))
                loss += AGREEMENT * divergence(logits, again)
                self.doubled += 1
        variables = self.model.trainable_variables
        gradients = tape.gradient(loss, variables)
        norm = float(tf.linalg.global_norm(gradients))
        if math.isfinite(norm) and norm <= SPIKE * (self.usual_norm or norm):
            self.optimizer.apply(gradients, variables)
        else:
            self.skipped.append(self.steps)
        if math.isfinite(norm):
            self.usual_norm = norm if self.usual_norm is None else 0.9 * self.usual_norm + 0.1 * norm
        score = f1_score(labels, np.argmax(logits.numpy(), axis=1), average="macro", zero_division=0.0)
        self.steps += 1
        return loss, norm, score

    def predict(self, texts, size):
        predictions = []
        for start in range(0, len(texts), size):
            logits = self.model(self.encode(texts[start : start + size]), training=False)
            predictions += np.argmax(logits.numpy(), axis=1).tolist()
        return predictions


def main():
    args = parse_arguments(__doc__)
    keras.utils.set_random_seed(args.seed)
    scale = SCALES[args.scale]
    texts, labels, names = load_texts(scale.length)
    texts, test_texts, labels, test_labels = train_test_split(
        texts, labels, test_size=0.2, random_state=args.seed, stratify=labels
    )
    tokenizer = WordPiece(texts, scale.vocabulary)
    print(f"{len(texts)} texts, {len(test_texts)} for evaluation, of {', '.join(names)}")

    trainer = Trainer(scale, tokenizer, len(names), args.steps)
    losses, norms, scores = [], [], []
    stopwatch = Stopwatch()
    while trainer.steps < args.steps:
        for batch_texts, batch_labels in batches(texts, labels, scale.batch):
            loss, norm, score = trainer.train_step(batch_texts, batch_labels)
            losses.append(loss)
            norms.append(norm)
            scores.append(score)
            if len(losses) % LOG_EVERY == 1:
                print(f"step {len(losses) - 1} loss {float(loss)!r} gradient norm {norm!r} F1 {score!r}")
            stopwatch.lap()
            if trainer.steps == args.steps:
                break
        predictions = trainer.predict(test_texts, scale.batch)
        print(
            f"after {trainer.steps} steps: F1 {f1_score(test_labels, predictions, average='macro')!r},"
            f" {trainer.doubled} steps with two passes, no update in {trainer.skipped}"
        )
        stopwatch.start()

    print("confusion of the chapters (rows are the truth):")
    print(confusion_matrix(test_labels, predictions))
    losses = {"loss": losses, "norm": norms, "F1": scores}
    finish(args, losses, [*trainer.model.variables, *trainer.optimizer.variables], stopwatch)


if __name__ == "__main__":
    main()

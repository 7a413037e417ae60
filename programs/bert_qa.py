"""BERT answers questions (Devlin et al., 2019): the start and the end of the answer in a passage."""

import collections
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from bert import SCALES, Encoder, WordPiece, bucket, initializer, load_passages, make_optimizer, pad
from common import LOG_EVERY, Stopwatch, finish, parse_arguments
from tensorflow import keras
from tensorflow.keras import layers

LONGEST_ANSWER = 8  # tokens
EVALUATE_EVERY = 50  # steps
EVALUATED = 128  # questions


@dataclass(frozen=True)
class Example:
    question: str
    passage: str
    answer: str
    tokens: list[int]
    segments: list[int]
    spans: list[tuple[int, int]]  # of each token in the passage; (0, 0) before it
    start: int  # of the answer, in tokens
    end: int  # its last token


@dataclass(frozen=True, eq=False)
class Batch:
    examples: list[Example]
    tokens: np.ndarray
    segments: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


def ask(passage):
    """Returns (question, start, end), about the neighbours of words that the passage has once, or None."""
    words = list(WordPiece.WORDS.finditer(passage))
    counts = collections.Counter(word.group().lower() for word in words)
    landmarks = [
        index
        for index, word in enumerate(words)
        if word.group().isalpha() and counts[word.group().lower()] == 1
    ]
    kind = np.random.choice(["after", "before", "between"])
    if kind == "between":
        pairs = [(left, right) for left in landmarks for right in landmarks if 2 <= right - left <= 4]
        if not pairs:
            return None
        left, right = pairs[np.random.randint(len(pairs))]
        question = f"what stands between {words[left].group()} and {words[right].group()}?"
        return question, words[left + 1].start(), words[right - 1].end()
    if kind == "after":
        landmarks = [index for index in landmarks if index + 1 < len(words)]
    else:
        landmarks = [index for index in landmarks if index > 0]
    if not landmarks:
        return None
    landmark = landmarks[np.random.randint(len(landmarks))]
    answer = words[landmark + 1 if kind == "after" else landmark - 1]
    return f"what stands {kind} {words[landmark].group()}?", answer.start(), answer.end()


def make_examples(passages, tokenizer, length, rounds):
    """Returns `rounds` examples of each passage, without those that are longer than `length`."""
    examples = []
    for passage in passages * rounds:
        asked = ask(passage)
        if asked is None:
            continue
        question, start, end = asked
        head = [tokenizer.CLS, *tokenizer.encode(question)[0], tokenizer.SEP]
        body, spans = tokenizer.encode(passage)
        tokens = [*head, *body, tokenizer.SEP]
        if len(tokens) > length:
            continue
        inside = [index for index, (left, right) in enumerate(spans) if left >= start and right <= end]
        examples.append(
            Example(
                question=question,
                passage=passage,
                answer=passage[start:end],
                tokens=tokens,
                segments=[0] * len(head) + [1] * (len(body) + 1),
                spans=[*[(0, 0)] * len(head), *spans, (len(passage), len(passage))],
                start=len(head) + inside[0],
                end=len(head) + inside[-1],
            )
        )
    return examples


def make_batch(examples):
    length = bucket([example.tokens for example in examples])
    return Batch(
        examples,
        pad([example.tokens for example in examples], length),
        pad([example.segments for example in examples], length),
        np.array([example.start for example in examples], np.int32),
        np.array([example.end for example in examples], np.int32),
    )


def training_batches(examples, size):
    """Yields batches for ever, of examples of similar length: sorted within pools of eight batches."""
    while True:
        order = np.random.permutation(len(examples))
        for first in range(0, len(order) - size + 1, 8 * size):
            pool = sorted(
                (examples[index] for index in order[first : first + 8 * size]), key=lambda e: len(e.tokens)
            )
            groups = [pool[start : start + size] for start in range(0, len(pool) - size + 1, size)]
            for index in np.random.permutation(len(groups)):
                yield make_batch(groups[index])


class Reader(keras.Model):
    """The encoder, and two numbers per token: how well the answer starts there, and how well it ends there."""

    def __init__(self, scale):
        super().__init__()
        self.encoder = Encoder(scale)
        self.span = layers.Dense(2, kernel_initializer=initializer())

    def call(self, tokens, segments, training=False):
        scores = self.span(self.encoder(tokens, segments, training=training))
        scores -= 1e9 * tf.cast(tf.equal(tokens, WordPiece.PAD), scores.dtype)[:, :, tf.newaxis]
        return tf.unstack(scores, axis=-1)


def answers(batch, start_scores, end_scores):
    """Returns the text of the best span of each passage, of at most LONGEST_ANSWER tokens."""
    texts = []
    for example, starts, ends in zip(batch.examples, start_scores, end_scores, strict=True):
        first = example.segments.index(1)
        best, span = -math.inf, (first, first)
        for start in range(first, len(example.tokens) - 1):
            end = start + int(np.argmax(ends[start : min(start + LONGEST_ANSWER, len(example.tokens) - 1)]))
            if starts[start] + ends[end] > best:
                best, span = starts[start] + ends[end], (start, end)
        texts.append(example.passage[example.spans[span[0]][0] : example.spans[span[1]][1]])
    return texts


def f1_score(text, truth):
    """The harmonic mean of precision and recall of an answer's words."""
    words, true = text.lower().split(), truth.lower().split()
    common = sum((collections.Counter(words) & collections.Counter(true)).values())
    return 2 * common / (len(words) + len(true)) if common else 0.0


def judge(batch, texts):
    """Returns the number of exact answers and the sum of their F1 scores."""
    pairs = [(text, example.answer) for text, example in zip(texts, batch.examples, strict=True)]
    exact = sum(text.lower() == truth.lower() for text, truth in pairs)
    return exact, sum(f1_score(text, truth) for text, truth in pairs)


class Trainer:
    def __init__(self, scale, steps):
        self.model = Reader(scale)
        self.optimizer = make_optimizer(scale, steps)
        self.cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.steps = 0

    def train_step(self, batch):
        with tf.GradientTape() as tape:
            starts, ends = self.model(batch.tokens, batch.segments, training=True)
            loss = (self.cross_entropy(batch.starts, starts) + self.cross_entropy(batch.ends, ends)) / 2.0
        variables = self.model.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        if self.steps % LOG_EVERY == 0:
            exact, f1 = judge(batch, answers(batch, starts.numpy(), ends.numpy()))
            print(
                f"step {self.steps} length {batch.tokens.shape[1]} loss {float(loss)!r}"
                f" exact {exact / len(batch.examples)!r} F1 {f1 / len(batch.examples)!r}"
            )
        self.steps += 1
        return loss

    def evaluate(self, batches):
        """Returns the share of exact answers and the mean F1 score."""
        exact = f1 = count = 0
        for batch in batches:
            starts, ends = self.model(batch.tokens, batch.segments, training=False)
            batch_exact, batch_f1 = judge(batch, answers(batch, starts.numpy(), ends.numpy()))
            exact, f1, count = exact + batch_exact, f1 + batch_f1, count + len(batch.examples)
        return exact / count, f1 / count


def train(trainer, batches, test_batches, steps, folder):
    """Trains with a checkpoint at every evaluation, and goes back to the best weights. Returns losses and stopwatch."""
    checkpoint = tf.train.Checkpoint(model=trainer.model, optimizer=trainer.optimizer)
    manager = tf.train.CheckpointManager(checkpoint, str(folder / "last"), max_to_keep=1)
    best, best_weights = -1.0, str(folder / "best.weights.h5")
    losses = []
    stopwatch = Stopwatch()
    for batch in batches:
        losses.append(trainer.train_step(batch))
        if trainer.steps % EVALUATE_EVERY == 0:
            exact, f1 = trainer.evaluate(test_batches)
            print(f"after {trainer.steps} steps: exact {exact!r} F1 {f1!r}")
            manager.save(checkpoint_number=trainer.steps)
            if f1 > best:
                best = f1
                trainer.model.save_weights(best_weights)
        stopwatch.lap()
        if trainer.steps == steps:
            break
    if best >= 0.0:
        trainer.model.load_weights(best_weights)
        print(f"best F1 {best!r}, kept checkpoint {Path(manager.latest_checkpoint).name}")
    return losses, stopwatch


def main():
    args = parse_arguments(__doc__)
    keras.utils.set_random_seed(args.seed)
    scale = SCALES[args.scale]
    passages = [passage for _, passage in load_passages(12, scale.length // 2)]
    tokenizer = WordPiece(passages, scale.vocabulary)
    order = np.random.permutation(len(passages))
    cut = len(order) * 9 // 10
    examples = make_examples([passages[i] for i in order[:cut]], tokenizer, scale.length, rounds=4)
    test_examples = make_examples([passages[i] for i in order[cut:]], tokenizer, scale.length, rounds=4)
    test_examples = sorted(test_examples[:EVALUATED], key=lambda example: len(example.tokens))
    test_batches = [
        make_batch(test_examples[start : start + scale.batch])
        for start in range(0, len(test_examples), scale.batch)
    ]
    print(
        f"{len(examples)} questions, {len(test_examples)} for evaluation, {len(tokenizer.pieces)} word pieces"
    )

    trainer = Trainer(scale, args.steps)
    with tempfile.TemporaryDirectory() as folder:
        batches = training_batches(examples, scale.batch)
        losses, stopwatch = train(trainer, batches, test_batches, args.steps, Path(folder))
    for example in test_examples[:3]:
        batch = make_batch([example])
        starts, ends = trainer.model(batch.tokens, batch.segments, training=False)
        print(
            f"{example.question} {answers(batch, starts.numpy(), ends.numpy())[0]!r} for {example.answer!r}"
        )
    finish(args, {"loss": losses}, [*trainer.model.variables, *trainer.optimizer.variables], stopwatch)


if __name__ == "__main__":
    main()

"""GPT-2 (Radford et al., 2019): a language model on raw variables, its optimizer and tokenizer written by hand."""

import collections
import functools
import itertools
import math
import re
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from common import LOG_EVERY, Stopwatch, finish, load_topics, parse_arguments

DROPOUT = 0.1
CLIP_NORM = 1.0
WEIGHT_DECAY = 0.01
SAMPLE_EVERY = 50  # steps
SAMPLE_TOKENS = 24
TOP_K = 40
PROMPT = "The value of"


@dataclass(frozen=True)
class Scale:
    context: int  # tokens
    batch: int  # sequences of a micro-batch
    micro_batches: int  # whose gradients make one step
    width: int
    heads: int
    layers: int
    vocabulary: int
    learning_rate: float  # at the schedule's top


SCALES = {
    "tiny": Scale(16, 8, 2, width=32, heads=2, layers=1, vocabulary=384, learning_rate=5e-3),
    "small": Scale(48, 2, 2, width=128, heads=4, layers=3, vocabulary=1024, learning_rate=2e-3),
    # The first of the paper's four sizes; its batch of 512 sequences in micro-batches of 4.
    "paper": Scale(1024, 4, 128, width=768, heads=12, layers=12, vocabulary=50257, learning_rate=2.5e-4),
}


class BytePairs:
    """Byte-pair encoding of UTF-8 text, learned from `text`. Words are encoded one by one, with the space before them.

    The vocabulary holds an end-of-text token, the 256 bytes, and the merges, in the order they were found. It may be
    smaller than asked for, where the text has no more pairs to merge.
    """

    END = 0
    WORDS = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")

    def __init__(self, text, vocabulary):
        self.tokens = [b"", *(bytes([byte]) for byte in range(256))]
        self.merges = {}
        counts = collections.Counter(self.WORDS.findall(text))
        words = [list(word.encode()) for word in counts]
        words = [[1 + byte for byte in word] for word in words]
        frequencies = list(counts.values())

        pair_counts = collections.Counter()
        holders = collections.defaultdict(dict)  # of each pair: the words that have it
        for index, (word, frequency) in enumerate(zip(words, frequencies, strict=True)):
            for pair in itertools.pairwise(word):
                pair_counts[pair] += frequency
                holders[pair][index] = True
        while len(self.tokens) < vocabulary and pair_counts:
            best = max(pair_counts, key=lambda pair: (pair_counts[pair], pair))
            if pair_counts[best] < 2:
                break
            self.merges[best] = len(self.tokens)
            self.tokens.append(self.tokens[best[0]] + self.tokens[best[1]])
            for index in holders.pop(best):
                for pair in itertools.pairwise(words[index]):
                    pair_counts[pair] -= frequencies[index]
                words[index] = self.merge(words[index], best)
                for pair in itertools.pairwise(words[index]):
                    pair_counts[pair] += frequencies[index]
                    holders[pair][index] = True
            del pair_counts[best]

    def merge(self, word, pair):
        merged = []
        for token in word:
            if merged and (merged[-1], token) == pair:
                merged[-1] = self.merges[pair]
            else:
                merged.append(token)
        return merged

    @functools.cache  # noqa: B019 - one tokenizer, as long as the program
    def encode_word(self, word):
        tokens = [1 + byte for byte in word.encode()]
        while len(tokens) > 1:
            pair = min(itertools.pairwise(tokens), key=lambda pair: self.merges.get(pair, math.inf))
            if pair not in self.merges:
                break
            tokens = self.merge(tokens, pair)
        return tokens

    def encode(self, text):
        return [token for word in self.WORDS.findall(text) for token in self.encode_word(word)]

    def decode(self, tokens):
        return b"".join(self.tokens[token] for token in tokens).decode(errors="replace")


class LayerNorm(tf.Module):
    def __init__(self, width):
        super().__init__()
        self.gain = tf.Variable(tf.ones([width]))
        self.bias = tf.Variable(tf.zeros([width]))

    def __call__(self, x):
        mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
        return tf.nn.batch_normalization(x, mean, variance, self.bias, self.gain, 1e-5)


class Linear(tf.Module):
    def __init__(self, inputs, outputs, deviation=0.02):
        super().__init__()
        self.weights = tf.Variable(tf.random.normal([inputs, outputs], stddev=deviation))
        self.bias = tf.Variable(tf.zeros([outputs]))

    def __call__(self, x):
        return tf.matmul(x, self.weights) + self.bias


class Attention(tf.Module):
    """Causal self-attention with several heads, their queries, keys and values from one product."""

    def __init__(self, width, heads, deviation):
        super().__init__()
        self.heads = heads
        self.inputs = Linear(width, 3 * width)
        self.output = Linear(width, width, deviation)

    def split(self, x):
        batch, length, width = x.shape
        return tf.transpose(tf.reshape(x, [batch, length, self.heads, width // self.heads]), [0, 2, 1, 3])

    def __call__(self, x, training):
        batch, length, width = x.shape
        query, key, value = (self.split(part) for part in tf.split(self.inputs(x), 3, axis=-1))
        scores = tf.matmul(query, key, transpose_b=True) * (width // self.heads) ** -0.5
        visible = tf.linalg.band_part(tf.ones([length, length], tf.bool), -1, 0)
        weights = tf.nn.softmax(tf.where(visible, scores, scores.dtype.min))
        if training:
            weights = tf.nn.dropout(weights, DROPOUT)
        heads = tf.transpose(tf.matmul(weights, value), [0, 2, 1, 3])
        return self.output(tf.reshape(heads, [batch, length, width]))


class Block(tf.Module):
    """Attention and a perceptron, each with a layer normalisation before it and the input added after it."""

    def __init__(self, width, heads, deviation):
        super().__init__()
        self.attention_norm = LayerNorm(width)
        self.attention = Attention(width, heads, deviation)
        self.mlp_norm = LayerNorm(width)
        self.expand = Linear(width, 4 * width)
        self.contract = Linear(4 * width, width, deviation)

    def __call__(self, x, training):
        change = self.attention(self.attention_norm(x), training)
        x += tf.nn.dropout(change, DROPOUT) if training else change
        change = self.contract(tf.nn.gelu(self.expand(self.mlp_norm(x)), approximate=True))
        return x + (tf.nn.dropout(change, DROPOUT) if training else change)


class GPT2(tf.Module):
    def __init__(self, scale):
        super().__init__()
        self.embedding = tf.Variable(tf.random.normal([scale.vocabulary, scale.width], stddev=0.02))
        self.positions = tf.Variable(tf.random.normal([scale.context, scale.width], stddev=0.01))
        # What each of the 2 * layers branches adds to the residual path is scaled by their number.
        deviation = 0.02 * (2 * scale.layers) ** -0.5
        self.blocks = [Block(scale.width, scale.heads, deviation) for _ in range(scale.layers)]
        self.norm = LayerNorm(scale.width)
        self.context = scale.context

    def __call__(self, tokens, training=False):
        """Returns the logits of the next token, (batch, length, vocabulary), at each position."""
        x = tf.gather(self.embedding, tokens) + self.positions[: tokens.shape[1]]
        if training:
            x = tf.nn.dropout(x, DROPOUT)
        for block in self.blocks:
            x = block(x, training)
        return tf.matmul(self.norm(x), self.embedding, transpose_b=True)


class AdamW(tf.Module):
    """Adam with decoupled weight decay, which spares biases and gains, on gradients clipped by their global norm."""

    def __init__(self, variables, beta_1=0.9, beta_2=0.999, epsilon=1e-8):
        super().__init__()
        self.targets = variables
        self.means = [tf.Variable(tf.zeros_like(variable)) for variable in variables]
        self.squares = [tf.Variable(tf.zeros_like(variable)) for variable in variables]
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.steps = 0

    def apply(self, gradients, learning_rate):
        """Changes the variables and returns the norm that the gradients had."""
        self.steps += 1
        gradients, norm = tf.clip_by_global_norm(gradients, CLIP_NORM)
        # The correction of both means for their start at zero.
        rate = learning_rate * math.sqrt(1 - self.beta_2**self.steps) / (1 - self.beta_1**self.steps)
        for variable, mean, square, gradient in zip(
            self.targets, self.means, self.squares, gradients, strict=True
        ):
            mean.assign_add((1 - self.beta_1) * (gradient - mean))
            square.assign_add((1 - self.beta_2) * (tf.square(gradient) - square))
            if len(variable.shape) > 1:
                variable.assign_sub(learning_rate * WEIGHT_DECAY * variable)
            variable.assign_sub(rate * mean / (tf.sqrt(square) + self.epsilon))
        return norm


class Trainer:
    def __init__(self, scale, steps):
        self.model = GPT2(scale)
        self.optimizer = AdamW(self.model.trainable_variables)
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

    def gradients(self, tokens, share):
        """Returns the loss of one micro-batch, times its share, and its gradients."""
        with tf.GradientTape() as tape:
            logits = self.model(tokens[:, :-1], training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tokens[:, 1:], logits=logits)
            loss = tf.reduce_mean(losses) * share
        gradients = tape.gradient(loss, self.optimizer.targets)
        # The embedding's comes in slices: it is looked up at some rows only.
        return loss, [tf.convert_to_tensor(gradient) for gradient in gradients]

    def train_step(self, micro_batches):
        total, accumulated = 0.0, None
        for tokens in micro_batches:
            loss, gradients = self.gradients(tokens, 1 / len(micro_batches))
            total += loss
            if accumulated is None:
                accumulated = gradients
            else:
                accumulated = [old + new for old, new in zip(accumulated, gradients, strict=True)]
        norm = self.optimizer.apply(accumulated, self.learning_rate())
        self.step += 1
        return total, norm

    def sample(self, prompt, count):
        """Returns the prompt, a list of tokens, with `count` more, each drawn from the TOP_K likeliest."""
        tokens = list(prompt)
        for _ in range(count):
            logits = self.model(np.array([tokens[-self.model.context :]], np.int32))[0, -1].numpy()
            best = np.argsort(logits)[-TOP_K:]
            odds = np.exp(logits[best] - logits[best].max(), dtype=np.float64)
            tokens.append(int(np.random.choice(best, p=odds / odds.sum())))
        return tokens


def steps_of(tokens, scale):
    """Yields the micro-batches of one step for ever: each (batch, context + 1) tokens, from random places."""
    offsets = np.arange(scale.context + 1)
    while True:
        starts = np.random.randint(0, len(tokens) - scale.context, size=(scale.micro_batches, scale.batch, 1))
        yield list(tokens[starts + offsets])


def main():
    args = parse_arguments(__doc__)
    tf.keras.utils.set_random_seed(args.seed)
    scale = SCALES[args.scale]
    texts = load_topics().values()
    tokenizer = BytePairs("\n".join(texts), scale.vocabulary)
    tokens = [token for text in texts for token in (*tokenizer.encode(text), tokenizer.END)]
    tokens = np.array(tokens, np.int32)
    print(f"{len(tokens)} tokens of {len(tokenizer.tokens)} kinds")

    trainer = Trainer(scale, args.steps)
    prompt = tokenizer.encode(PROMPT)
    losses, norms = [], []
    stopwatch = Stopwatch()
    for step, micro_batches in enumerate(itertools.islice(steps_of(tokens, scale), args.steps)):
        loss, norm = trainer.train_step(micro_batches)
        losses.append(loss)
        norms.append(norm)
        if step % LOG_EVERY == 0:
            print(f"step {step} loss {float(loss)!r} gradient norm {float(norm)!r}")
        if (step + 1) % SAMPLE_EVERY == 0:
            print(f"sample {tokenizer.decode(trainer.sample(prompt, SAMPLE_TOKENS))!r}")
        stopwatch.lap()

    optimizer = trainer.optimizer
    variables = [*trainer.model.variables, *optimizer.means, *optimizer.squares]
    finish(args, {"loss": losses, "norm": norms}, variables, stopwatch)


if __name__ == "__main__":
    main()

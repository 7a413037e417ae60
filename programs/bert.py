"""What the BERT programs share: passages, WordPiece, padding, the encoder (Devlin et al., 2019) and its schedule."""

import collections
import re
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from common import load_topics
from tensorflow import keras
from tensorflow.keras import layers

DROPOUT = 0.1
EPSILON = 1e-12  # of layer normalisation


@dataclass(frozen=True)
class Scale:
    width: int
    heads: int
    layers: int
    vocabulary: int
    length: int  # most tokens of a sequence, and positions that the model knows
    batch: int
    learning_rate: float  # at the schedule's top


SCALES = {
    "tiny": Scale(width=32, heads=2, layers=1, vocabulary=1000, length=64, batch=16, learning_rate=3e-3),
    "small": Scale(width=96, heads=4, layers=2, vocabulary=2000, length=96, batch=8, learning_rate=1e-3),
    # BERT-base, with the batch and learning rate of the paper's fine-tuning.
    "paper": Scale(
        width=768, heads=12, layers=12, vocabulary=30522, length=512, batch=32, learning_rate=5e-5
    ),
}


def load_passages(least, most):
    """Returns (chapter, passage) for each paragraph of `least` to `most` words that only one chapter has."""
    homes = {}
    for chapter, text in load_topics().items():
        for paragraph in re.split(r"\n\s*\n", text):
            words = paragraph.split()
            if least <= len(words) <= most and not re.search(r"::=|===|\*\*\*|>>>", paragraph):
                homes.setdefault(" ".join(words), set()).add(chapter)
    return [(*chapters, passage) for passage, chapters in homes.items() if len(chapters) == 1]


class WordPiece:
    """Splits words into the longest pieces that the vocabulary has; pieces after a word's first begin with ##.

    The vocabulary is learned from `texts`: four special tokens, all characters, the commonest words, and for a quarter
    of the room the commonest beginnings and endings of the others.
    """

    SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    PAD, UNKNOWN, CLS, SEP = range(4)
    WORDS = re.compile(r"[^\W_]+|[^\w\s]|_")

    def __init__(self, texts, size):
        words = collections.Counter(word for text in texts for word in self.WORDS.findall(text.lower()))
        characters = sorted({character for word in words for character in word})
        pieces = [*self.SPECIAL, *characters, *(f"##{character}" for character in characters)]
        room = size - len(pieces)
        common = [word for word, _ in words.most_common() if len(word) > 1]
        parts = collections.Counter()
        for word in common[3 * room // 4 :]:
            for cut in range(2, min(len(word), 8)):
                parts[word[:cut]] += words[word] * (cut - 1)
                parts[f"##{word[-cut:]}"] += words[word] * (cut - 1)
        common = common[: 3 * room // 4]
        pieces += common
        pieces += [part for part, _ in parts.most_common() if part not in common][: room - len(common)]
        self.pieces = pieces
        self.numbers = {piece: number for number, piece in enumerate(pieces)}

    def split(self, word):
        """Returns (token, start, end) of each piece of a word in lower case."""
        pieces, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                number = self.numbers.get(("##" if start else "") + word[start:end])
                if number is not None:
                    break
            else:
                return [(self.UNKNOWN, 0, len(word))]
            pieces.append((number, start, end))
            start = end
        return pieces

    def encode(self, text):
        """Returns the tokens of a text, and for each where it starts and ends in the text."""
        tokens, spans = [], []
        for match in self.WORDS.finditer(text):
            for token, start, end in self.split(match.group().lower()):
                tokens.append(token)
                spans.append((match.start() + start, match.start() + end))
        return tokens, spans


def pad(sequences, length):
    """Returns int32 (len(sequences), length), filled up with zeros, which is WordPiece.PAD."""
    padded = np.zeros([len(sequences), length], np.int32)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return padded


def bucket(sequences):
    """The length to which a batch is padded: its longest sequence's, rounded up to a multiple of 16."""
    return -(-max(map(len, sequences)) // 16) * 16


def initializer():
    return keras.initializers.TruncatedNormal(stddev=0.02)


class Embeddings(layers.Layer):
    """The sum of a token's, its segment's and its position's embedding, normalised."""

    def __init__(self, scale):
        super().__init__()
        self.tokens = layers.Embedding(scale.vocabulary, scale.width, initializer())
        self.segments = layers.Embedding(2, scale.width, initializer())
        self.positions = layers.Embedding(scale.length, scale.width, initializer())
        self.norm = layers.LayerNormalization(epsilon=EPSILON)
        self.dropout = layers.Dropout(DROPOUT)

    def call(self, tokens, segments, training=False):
        positions = self.positions(tf.range(tokens.shape[1]))
        x = self.tokens(tokens) + self.segments(segments) + positions
        return self.dropout(self.norm(x), training=training)


class EncoderBlock(layers.Layer):
    """Attention and a perceptron; what each adds to its input is normalised afterwards."""

    def __init__(self, scale):
        super().__init__()
        self.attention = layers.MultiHeadAttention(
            scale.heads, scale.width // scale.heads, dropout=DROPOUT, kernel_initializer=initializer()
        )
        self.expand = layers.Dense(4 * scale.width, activation="gelu", kernel_initializer=initializer())
        self.contract = layers.Dense(scale.width, kernel_initializer=initializer())
        self.norms = [layers.LayerNormalization(epsilon=EPSILON) for _ in range(2)]
        self.dropout = layers.Dropout(DROPOUT)

    def call(self, x, mask, training=False):
        change = self.attention(x, x, attention_mask=mask, training=training)
        x = self.norms[0](x + self.dropout(change, training=training))
        change = self.contract(self.expand(x))
        return self.norms[1](x + self.dropout(change, training=training))


class Encoder(layers.Layer):
    """BERT: (batch, length) tokens and segments to (batch, length, width). Padding is not attended to."""

    def __init__(self, scale):
        super().__init__()
        self.embeddings = Embeddings(scale)
        self.blocks = [EncoderBlock(scale) for _ in range(scale.layers)]

    def call(self, tokens, segments, training=False):
        visible = tf.not_equal(tokens, WordPiece.PAD)[:, tf.newaxis, :]
        x = self.embeddings(tokens, segments, training=training)
        for block in self.blocks:
            x = block(x, visible, training=training)
        return x


class WarmUpThenDown(keras.optimizers.schedules.LearningRateSchedule):
    """A linear warm-up over a tenth of the steps, then linearly down to zero."""

    def __init__(self, top, steps):
        self.top, self.steps, self.warmup = top, steps, max(steps // 10, 1)

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        up = (step + 1.0) / self.warmup
        down = (self.steps - step) / max(self.steps - self.warmup, 1)
        return self.top * tf.minimum(up, tf.maximum(down, 0.0))

    def get_config(self):
        return {"top": self.top, "steps": self.steps}


def make_optimizer(scale, steps):
    """AdamW as in the paper: no decay of biases and of what normalises; gradients clipped by their global norm."""
    optimizer = keras.optimizers.AdamW(
        WarmUpThenDown(scale.learning_rate, steps), weight_decay=0.01, epsilon=1e-6, global_clipnorm=1.0
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer

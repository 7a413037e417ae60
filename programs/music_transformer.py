"""Music Transformer (Huang et al., 2019): a decoder with relative attention, trained on piano pieces it composes."""

import itertools
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from common import LOG_EVERY, Stopwatch, finish, parse_arguments
from tensorflow import keras
from tensorflow.keras import layers

# Events: notes on and off by MIDI pitch, time shifts of 10 ms to 1 s, and loudness in 32 degrees.
NOTE_ON, NOTE_OFF, TIME_SHIFT, VELOCITY, EVENTS = 0, 128, 256, 356, 388
KINDS = {"note on": (NOTE_ON, NOTE_OFF), "note off": (NOTE_OFF, TIME_SHIFT)}
KINDS |= {"time shift": (TIME_SHIFT, VELOCITY), "velocity": (VELOCITY, EVENTS)}
NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")

SCALE_STEPS = (0, 2, 4, 5, 7, 9, 11)  # of a major key, in semitones
PROGRESSIONS = (
    (0, 4, 5, 3),
    (0, 5, 3, 4),
    (1, 4, 0, 0),
    (0, 3, 4, 0),
    (5, 3, 0, 4),
)  # degrees of the chords' roots
RHYTHMS = ((2, 2, 2, 2), (3, 1, 2, 2), (4, 2, 2), (2, 1, 1, 4), (6, 2))  # of a bar's melody, in eighths
PIECES = 40
EVALUATE_EVERY = 50  # steps
WARM_UP = 40  # steps
SAMPLE_EVENTS = 40


@dataclass(frozen=True)
class Scale:
    length: int  # events
    batch: int
    width: int
    key_width: int  # of the queries and keys of all heads together
    heads: int
    perceptron: int
    layers: int
    distance: int  # farthest distance that has an embedding of its own
    learning_rate: float  # factor of the schedule
    dropout: float


SCALES = {
    "tiny": Scale(32, 8, 32, 32, 2, 64, layers=1, distance=16, learning_rate=0.3, dropout=0.1),
    "small": Scale(96, 4, 96, 128, 4, 256, layers=3, distance=48, learning_rate=0.3, dropout=0.1),
    # t_rel_len2048_h384_att512_fs1024_n8_dropout10 of the authors' code (magenta, score2perf).
    "paper": Scale(2048, 1, 384, 512, 8, 1024, layers=8, distance=1024, learning_rate=2.0, dropout=0.1),
}


def phrase(key, tempo):
    """Composes four bars in four voices. Returns notes (start, end, pitch, loudness); `tempo` is an eighth in 10 ms."""
    notes = []
    degree = 7 + np.random.choice([0, 2, 4])  # of the melody
    for bar, root in enumerate(PROGRESSIONS[np.random.randint(len(PROGRESSIONS))]):
        start = 8 * bar
        chord = [root, root + 2, root + 4]
        swell = 60 + 8 * min(bar, 3 - bar)
        for beat, step in ((0, root), (4, root + 4)):
            notes.append((start + beat, start + beat + 4, step - 14, swell + 8))
        broken = [chord[(0, 1, 2, 1)[eighth % 4]] for eighth in range(8)]
        notes += [
            (start + eighth, start + eighth + 1, step - 7, swell - 12) for eighth, step in enumerate(broken)
        ]
        position = start
        for number, length in enumerate(RHYTHMS[np.random.randint(len(RHYTHMS))]):
            degree += int(np.random.choice([-2, -1, -1, 1, 1, 2]))
            if number == 0:  # a chord's note on the strong beat
                degree = min(
                    (c + 7 * octave for c in chord for octave in (0, 1, 2)), key=lambda d: abs(d - degree)
                )
            degree = min(max(degree, 4), 16)
            notes.append((position, position + length, degree, swell + (16 if number == 0 else 4)))
            position += length
    return [
        (tempo * start, tempo * end, 60 + key + 12 * (degree // 7) + SCALE_STEPS[degree % 7], loudness)
        for start, end, degree, loudness in notes
    ]


def perform(notes):
    """Returns the events of a list of notes."""
    changes = [(start, 1, pitch, loudness) for start, _, pitch, loudness in notes]
    changes += [(end, 0, pitch, 0) for _, end, pitch, _ in notes]
    events, now, current = [], 0, None
    for time, on, pitch, loudness in sorted(changes):
        while time > now:
            shift = min(time - now, 100)
            events.append(TIME_SHIFT + shift - 1)
            now += shift
        if on and loudness // 4 != current:
            current = loudness // 4
            events.append(VELOCITY + current)
        events.append((NOTE_ON if on else NOTE_OFF) + pitch)
    return events


def compose(least):
    """Returns the events of a piece, an int32 array of at least `least`: phrases A A B A, until it is long enough."""
    key, tempo = np.random.randint(-5, 7), np.random.randint(15, 30)
    notes, length = [], 0
    while True:
        first, second = phrase(key, tempo), phrase(key, tempo)
        for part in (first, first, second, first):
            loudness = np.random.randint(-6, 7)  # nobody plays a phrase twice in the same way
            notes += [
                (length + start, length + end, pitch, loud + loudness) for start, end, pitch, loud in part
            ]
            length += 32 * tempo
        events = perform(notes)
        if len(events) >= least:
            return np.array(events, np.int32)


def crops(pieces, scale):
    """Yields (batch, length + 1) events for ever: random places, transposed by up to three semitones and stretched."""
    while True:
        batch = np.empty([scale.batch, scale.length + 1], np.int32)
        for row in batch:
            piece = pieces[np.random.randint(len(pieces))]
            start = np.random.randint(len(piece) - scale.length)
            row[:] = piece[start : start + scale.length + 1]
            row[row < TIME_SHIFT] += np.random.randint(-3, 4)
            shifts = (row >= TIME_SHIFT) & (row < VELOCITY)
            stretched = np.rint(
                (row[shifts] - TIME_SHIFT + 1) * np.random.choice([0.95, 0.975, 1.0, 1.025, 1.05])
            )
            row[shifts] = TIME_SHIFT - 1 + np.clip(stretched, 1, 100).astype(np.int32)
        yield batch


class RelativeAttention(layers.Layer):
    """Causal self-attention that also weighs how far away an event is, by the paper's skewing procedure."""

    def __init__(self, scale):
        super().__init__()
        self.heads = scale.heads
        self.distance = scale.distance
        self.key_width = scale.key_width
        self.query = layers.Dense(scale.key_width, use_bias=False)
        self.key = layers.Dense(scale.key_width, use_bias=False)
        self.value = layers.Dense(scale.width, use_bias=False)
        self.output_layer = layers.Dense(scale.width, use_bias=False)
        self.dropout = layers.Dropout(scale.dropout)
        self.last_weights = None

    def build(self, shape):
        depth = self.key_width // self.heads
        self.relative = self.add_weight(
            shape=(self.heads, self.distance, depth),
            initializer=keras.initializers.RandomNormal(stddev=depth**-0.5),
        )

    def split(self, x):
        batch, length, width = x.shape
        return tf.transpose(tf.reshape(x, [batch, length, self.heads, width // self.heads]), [0, 2, 1, 3])

    def embeddings(self, length):
        """Those of the distances from length - 1 down to 0; all beyond the farthest known share its own."""
        relative = tf.convert_to_tensor(self.relative)
        if length <= self.distance:
            return relative[:, self.distance - length :]
        return tf.concat([tf.repeat(relative[:, :1], length - self.distance, axis=1), relative], axis=1)

    @staticmethod
    def skew(scores):
        """From (..., query, distance) to (..., query, key): a column of zeros in front moves each row by one more."""
        batch, heads, length, _ = scores.shape
        padded = tf.pad(scores, [[0, 0], [0, 0], [0, 0], [1, 0]])
        return tf.reshape(padded, [batch, heads, length + 1, length])[:, :, 1:]

    def call(self, x, training=False):
        batch, length, width = x.shape
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        distances = tf.einsum("bhqd,hkd->bhqk", query, self.embeddings(length))
        scores = tf.matmul(query, key, transpose_b=True) + self.skew(distances)
        scores *= (self.key_width // self.heads) ** -0.5
        hidden = 1.0 - tf.linalg.band_part(tf.ones([length, length]), -1, 0)
        weights = tf.nn.softmax(scores - 1e9 * hidden)
        self.last_weights = weights  # to look at
        heads = tf.matmul(self.dropout(weights, training=training), value)
        return self.output_layer(tf.reshape(tf.transpose(heads, [0, 2, 1, 3]), [batch, length, width]))


class DecoderBlock(layers.Layer):
    """Attention and a perceptron, each with a layer normalisation before it and the input added after it."""

    def __init__(self, scale):
        super().__init__()
        self.attention = RelativeAttention(scale)
        self.expand = layers.Dense(scale.perceptron, activation="relu")
        self.contract = layers.Dense(scale.width)
        self.norms = [layers.LayerNormalization(epsilon=1e-6) for _ in range(2)]
        self.dropout = layers.Dropout(scale.dropout)

    def call(self, x, training=False):
        x += self.dropout(self.attention(self.norms[0](x), training=training), training=training)
        return x + self.dropout(self.contract(self.expand(self.norms[1](x))), training=training)


class MusicTransformer(keras.Model):
    """(batch, length) events to the logits of the next event at each place."""

    def __init__(self, scale):
        super().__init__()
        self.width = scale.width
        normal = keras.initializers.RandomNormal(stddev=scale.width**-0.5)
        self.embedding = layers.Embedding(EVENTS, scale.width, normal)
        self.blocks = [DecoderBlock(scale) for _ in range(scale.layers)]
        self.norm = layers.LayerNormalization(epsilon=1e-6)
        self.score = layers.Dense(EVENTS, use_bias=False, name="score")
        self.dropout = layers.Dropout(scale.dropout)

    def places(self, length):
        """Sines and cosines of the place, in wavelengths from 2 pi to 20000 pi."""
        rates = 10000.0 ** (-np.arange(self.width // 2) / max(self.width // 2 - 1, 1))
        angles = np.arange(length)[:, np.newaxis] * rates
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)

    def call(self, events, training=False):
        x = self.embedding(events) * self.width**0.5 + self.places(events.shape[1])
        x = self.dropout(x, training=training)
        for block in self.blocks:
            x = block(x, training=training)
        return self.score(self.norm(x))


class Trainer:
    """The latest step's loss and gradients stay here, to be looked at."""

    def __init__(self, scale):
        self.model = MusicTransformer(scale)
        self.optimizer = keras.optimizers.Adam(beta_2=0.98, epsilon=1e-9)
        self.factor = scale.learning_rate * scale.width**-0.5
        self.step = 0
        self.loss = None
        self.gradients = []

    def learning_rate(self):
        """Up linearly, then down with the square root of the steps (Vaswani et al., 2017)."""
        step = self.step + 1
        return self.factor * min(step**-0.5, step * WARM_UP**-1.5)

    def train_step(self, events):
        self.optimizer.learning_rate = self.learning_rate()
        with tf.GradientTape() as tape:
            logits = self.model(events[:, :-1], training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=events[:, 1:], logits=logits)
            self.loss = tf.reduce_mean(losses)
        variables = self.model.trainable_variables
        self.gradients = tape.gradient(self.loss, variables)
        self.optimizer.apply(self.gradients, variables)
        self.step += 1

    def report(self):
        """Prints the latest loss, which part of the model has the longest gradient, and where attention looks."""
        norms = {}
        for variable, gradient in zip(self.model.trainable_variables, self.gradients, strict=True):
            norms[variable.path.split("/", 1)[1]] = float(tf.norm(tf.convert_to_tensor(gradient)))
        longest = max(norms, key=norms.get)
        print(f"step {self.step - 1}", self.loss)
        print(f"  longest gradient {norms[longest]!r}, of {longest}")
        for number, block in enumerate(self.model.blocks):
            weights = block.attention.last_weights.numpy()
            reach = np.arange(weights.shape[-1])[:, np.newaxis] - np.arange(weights.shape[-1])
            print(f"  layer {number} looks back {float((weights * reach).sum(-1).mean())!r} events")

    def evaluate(self, batches):
        """Returns, for each kind of event, how often it is predicted rightly."""
        right = dict.fromkeys(KINDS, 0)
        count = dict.fromkeys(KINDS, 0)
        for events in batches:
            predicted = tf.argmax(self.model(events[:, :-1]), axis=-1).numpy()
            for kind, (first, end) in KINDS.items():
                of_kind = (events[:, 1:] >= first) & (events[:, 1:] < end)
                right[kind] += int((predicted == events[:, 1:])[of_kind].sum())
                count[kind] += int(of_kind.sum())
        return {kind: right[kind] / max(count[kind], 1) for kind in KINDS}

    def sample(self, start, count, length):
        """Returns `count` events that follow those of `start`, a list, drawn as likely as the model says."""
        events = list(start)
        for _ in range(count):
            logits = self.model(np.array([events[-length:]], np.int32))[0, -1].numpy().astype(np.float64)
            odds = np.exp(logits - logits.max())
            events.append(int(np.random.choice(EVENTS, p=odds / odds.sum())))
        return events[len(start) :]


def describe(events):
    """Events as words: notes on and off by name, milliseconds, loudness."""
    words = []
    for event in events:
        if event < TIME_SHIFT:
            octave, step = divmod(event % 128, 12)
            words.append(f"{'+' if event < NOTE_OFF else '-'}{NAMES[step]}{octave - 1}")
        elif event < VELOCITY:
            words.append(f"{10 * (event - TIME_SHIFT + 1)}ms")
        else:
            words.append(f"v{event - VELOCITY}")
    return " ".join(words)


def main():
    args = parse_arguments(__doc__)
    keras.utils.set_random_seed(args.seed)
    scale = SCALES[args.scale]
    pieces = [compose(2 * scale.length) for _ in range(PIECES)]
    training, held_back = pieces[: PIECES * 9 // 10], pieces[PIECES * 9 // 10 :]
    test_batches = list(itertools.islice(crops(held_back, scale), 4))
    print(
        f"{len(training)} pieces of {sum(map(len, training))} events; one begins {describe(training[0][:24])}"
    )

    trainer = Trainer(scale)
    losses = []
    stopwatch = Stopwatch()
    for step, events in zip(range(args.steps), crops(training, scale), strict=False):
        trainer.train_step(events)
        losses.append(trainer.loss)
        if step % LOG_EVERY == 0:
            trainer.report()
        if (step + 1) % EVALUATE_EVERY == 0:
            print(f"after {step + 1} steps, right on held back pieces: {trainer.evaluate(test_batches)}")
        stopwatch.lap()

    start = held_back[0][: scale.length // 2].tolist()
    print(f"continued: {describe(start)} | {describe(trainer.sample(start, SAMPLE_EVENTS, scale.length))}")
    finish(args, {"loss": losses}, [*trainer.model.variables, *trainer.optimizer.variables], stopwatch)


if __name__ == "__main__":
    main()

"""DCGAN (Radford et al., 2016): a generator and a discriminator, two tapes and two optimizers in one step."""

from dataclasses import dataclass

import tensorflow as tf
from common import LOG_EVERY, Stopwatch, finish, load_images, parse_arguments
from tensorflow import keras
from tensorflow.keras import layers


@dataclass(frozen=True)
class Scale:
    image: int  # side in pixels
    batch: int
    noise: int  # length of the generator's input
    channels: tuple[int, ...]  # of the generator, from 1/2**n of the image's side upwards


SCALES = {
    "tiny": Scale(image=8, batch=16, noise=16, channels=(16,)),
    "small": Scale(image=32, batch=32, noise=100, channels=(64, 32, 16)),
    "paper": Scale(image=64, batch=128, noise=100, channels=(1024, 512, 256, 128)),
}


def make_generator(scale):
    side = scale.image // 2 ** len(scale.channels)
    model = keras.Sequential(name="generator")
    model.add(keras.Input((scale.noise,)))
    model.add(layers.Dense(side * side * scale.channels[0], use_bias=False))
    model.add(layers.Reshape((side, side, scale.channels[0])))
    model.add(layers.BatchNormalization())
    model.add(layers.ReLU())
    for channels in scale.channels[1:]:
        model.add(layers.Conv2DTranspose(channels, 5, strides=2, padding="same", use_bias=False))
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
    model.add(layers.Conv2DTranspose(1, 5, strides=2, padding="same", activation="tanh"))
    return model


def make_discriminator(scale):
    model = keras.Sequential(name="discriminator")
    model.add(keras.Input((scale.image, scale.image, 1)))
    for channels in reversed(scale.channels):
        model.add(layers.Conv2D(channels, 5, strides=2, padding="same"))
        model.add(layers.LeakyReLU(0.2))
        model.add(layers.Dropout(0.3))
    model.add(layers.Flatten())
    model.add(layers.Dense(1))
    return model


class DCGAN:
    def __init__(self, scale):
        self.noise = scale.noise
        self.generator = make_generator(scale)
        self.discriminator = make_discriminator(scale)
        self.generator_optimizer = keras.optimizers.Adam(2e-4, beta_1=0.5)
        self.discriminator_optimizer = keras.optimizers.Adam(2e-4, beta_1=0.5)
        self.cross_entropy = keras.losses.BinaryCrossentropy(from_logits=True)
        self.steps = 0

    def train_step(self, images):
        noise = tf.random.normal([images.shape[0], self.noise])
        with tf.GradientTape() as generator_tape, tf.GradientTape() as discriminator_tape:
            samples = self.generator(noise, training=True)
            real = self.discriminator(images, training=True)
            fake = self.discriminator(samples, training=True)
            generator_loss = self.cross_entropy(tf.ones_like(fake), fake)
            discriminator_loss = self.cross_entropy(tf.ones_like(real), real)
            discriminator_loss += self.cross_entropy(tf.zeros_like(fake), fake)

        variables = self.generator.trainable_variables
        gradients = generator_tape.gradient(generator_loss, variables)
        self.generator_optimizer.apply_gradients(zip(gradients, variables, strict=True))

        variables = self.discriminator.trainable_variables
        gradients = discriminator_tape.gradient(discriminator_loss, variables)
        self.discriminator_optimizer.apply_gradients(zip(gradients, variables, strict=True))

        if self.steps % LOG_EVERY == 0:
            pixels = samples.numpy()
            print(
                f"step {self.steps} generator {float(generator_loss)!r}"
                f" discriminator {float(discriminator_loss)!r}"
                f" samples mean {float(pixels.mean())!r} deviation {float(pixels.std())!r}"
            )
        self.steps += 1
        return generator_loss, discriminator_loss

    def variables(self):
        yield from self.generator.variables
        yield from self.discriminator.variables
        yield from self.generator_optimizer.variables
        yield from self.discriminator_optimizer.variables


def main():
    args = parse_arguments(__doc__)
    keras.utils.set_random_seed(args.seed)
    scale = SCALES[args.scale]
    images, _, _, _ = load_images(scale.image)
    batches = tf.data.Dataset.from_tensor_slices(images * 2.0 - 1.0)  # tanh's range
    batches = batches.shuffle(len(images)).batch(scale.batch, drop_remainder=True).repeat()

    gan = DCGAN(scale)
    generator_losses, discriminator_losses = [], []
    stopwatch = Stopwatch()
    for batch in batches.take(args.steps):
        generator_loss, discriminator_loss = gan.train_step(batch)
        generator_losses.append(generator_loss)
        discriminator_losses.append(discriminator_loss)
        stopwatch.lap()

    losses = {"generator": generator_losses, "discriminator": discriminator_losses}
    finish(args, losses, gan.variables(), stopwatch)


if __name__ == "__main__":
    main()

"""TensorFlow's public functions, one to a program: each is used in a step, and most steps are co-executed.

A few run with every test, all with `make fuzz`.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import tensorflow as tf
from truth import both_ways

STEPS = 60
ALL = bool(os.environ.get("FUZZ_PROGRAMS"))
IDS = [[0], [1], [2], [1]]
RNG = tf.random.Generator.from_seed(3)
TABLE = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([1, 2, 3], [4.0, 5.0, 6.0]), -1.0)
WORDS = tf.constant(np.random.default_rng(1).normal(size=(10, 3)).astype("float32"))


def image(x):
    """One image of one channel."""
    return tf.reshape(tf.tile(x, [3, 4]), [1, 12, 12, 1]) * 0.1


def colours(x):
    """One image of three channels."""
    return tf.tile(image(x), [1, 1, 1, 3])


@tf.function
def function(x):
    return tf.tanh(x) * 2.0


def mean(tensor):
    return tf.reduce_mean(tf.cast(tensor, tf.float32))


# Each takes a batch of four rows of three, and the step's number; the result is multiplied with a batch.
QUICK = {
    "random.categorical": lambda x, step: tf.cast(tf.random.categorical(x, 3), tf.float32),
    "random.shuffle": lambda x, step: tf.random.shuffle(x),
    "random.gamma": lambda x, step: tf.random.gamma([3], 1.0),
    "random.stateless_normal": lambda x, step: tf.random.stateless_normal([4, 3], [1, step]),
    "nn.sampled_softmax_loss": lambda x, step: mean(
        tf.nn.sampled_softmax_loss(WORDS, tf.zeros([10]), tf.cast(IDS, tf.int64), x, 3, 10)
    ),
    "function": lambda x, step: function(x),
    "boolean_mask": lambda x, step: mean(tf.boolean_mask(x, x > 0.3)),
    "strings.split": lambda x, step: tf.strings.to_number(tf.strings.split("1 2 3")),
    "print": lambda x, step: (tf.print("a step", output_stream="file:///dev/null"), x)[1],
}
OTHERS = {
    "random.uniform": lambda x, step: tf.random.uniform([3]),
    "random.normal": lambda x, step: tf.random.normal([4, 3]),
    "random.truncated_normal": lambda x, step: tf.random.truncated_normal([4, 3]),
    "random.poisson": lambda x, step: tf.random.poisson([], 2.0),
    "random.fold_in": lambda x, step: tf.random.stateless_uniform([3], tf.random.fold_in([1, 2], step)),
    "random.stateless_shuffle": lambda x, step: tf.random.experimental.stateless_shuffle(x, [1, 2]),
    "random.uniform_candidate_sampler": lambda x, step: mean(
        tf.random.uniform_candidate_sampler(tf.cast(IDS, tf.int64), 1, 3, True, 10)[0]
    ),
    "Generator.normal": lambda x, step: RNG.normal([4, 3]),
    "Generator.uniform": lambda x, step: mean(RNG.uniform([], 0, 5, dtype=tf.int32)),
    "Generator.truncated_normal": lambda x, step: RNG.truncated_normal([3]),
    "nn.dropout": lambda x, step: tf.nn.dropout(x, 0.5),
    "nn.nce_loss": lambda x, step: mean(
        tf.nn.nce_loss(WORDS, tf.zeros([10]), tf.cast(IDS, tf.int64), x, 3, 10)
    ),
    "nn.embedding_lookup": lambda x, step: tf.nn.embedding_lookup(WORDS, [1, 2, 3, 4]),
    "nn.conv1d": lambda x, step: mean(tf.nn.conv1d(x[None], tf.ones([2, 3, 1]), 1, "SAME")),
    "nn.conv2d": lambda x, step: mean(tf.nn.conv2d(image(x), tf.ones([2, 2, 1, 1]), 1, "SAME")),
    "nn.conv2d_transpose": lambda x, step: mean(
        tf.nn.conv2d_transpose(image(x), tf.ones([2, 2, 1, 1]), [1, 24, 24, 1], 2)
    ),
    "nn.depthwise_conv2d": lambda x, step: mean(
        tf.nn.depthwise_conv2d(image(x), tf.ones([2, 2, 1, 1]), [1, 1, 1, 1], "SAME")
    ),
    "nn.max_pool2d": lambda x, step: mean(tf.nn.max_pool2d(image(x), 2, 2, "SAME")),
    "nn.local_response_normalization": lambda x, step: mean(tf.nn.local_response_normalization(image(x))),
    "nn.dilation2d": lambda x, step: mean(
        tf.nn.dilation2d(image(x), tf.ones([2, 2, 1]), [1, 1, 1, 1], "SAME", "NHWC", [1, 1, 1, 1])
    ),
    "nn.batch_normalization": lambda x, step: tf.nn.batch_normalization(
        x, *tf.nn.moments(x, 0), None, None, 1e-3
    ),
    "nn.fused_batch_norm": lambda x, step: mean(tf.compat.v1.nn.fused_batch_norm(image(x), [1.0], [0.0])[0]),
    "nn.ctc_loss": lambda x, step: mean(
        tf.nn.ctc_loss(tf.constant([[1]]), x[:, None], tf.constant([1]), tf.constant([4]))
    ),
    "nn.sparse_softmax_cross_entropy_with_logits": lambda x, step: mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits([0, 1, 2, 0], x)
    ),
    "image.random_brightness": lambda x, step: mean(tf.image.random_brightness(image(x), 0.3)),
    "image.random_contrast": lambda x, step: mean(tf.image.random_contrast(image(x), 0.3, 0.5)),
    "image.random_crop": lambda x, step: mean(tf.image.random_crop(image(x), [1, 5, 5, 1])),
    "image.random_flip_left_right": lambda x, step: tf.image.random_flip_left_right(image(x))[0, :4, :3, 0],
    "image.random_hue": lambda x, step: mean(tf.image.random_hue(colours(x), 0.1)),
    "image.random_saturation": lambda x, step: mean(tf.image.random_saturation(colours(x), 0.5, 0.9)),
    "image.random_jpeg_quality": lambda x, step: mean(
        tf.image.random_jpeg_quality(tf.cast(colours(x)[0], tf.uint8), 75, 95)
    ),
    "image.resize": lambda x, step: mean(tf.image.resize(image(x), [6, 6])),
    "image.sample_distorted_bounding_box": lambda x, step: mean(
        tf.image.sample_distorted_bounding_box(
            [12, 12, 1], tf.zeros([1, 1, 4]), seed=3, use_image_if_no_bounding_boxes=True
        )[0]
    ),
    "image.rot90": lambda x, step: mean(tf.image.rot90(image(x))),
    "image.extract_patches": lambda x, step: mean(
        tf.image.extract_patches(image(x), [1, 3, 3, 1], [1, 2, 2, 1], [1, 1, 1, 1], "VALID")
    ),
    "image.crop_and_resize": lambda x, step: mean(
        tf.image.crop_and_resize(image(x), [[0.1, 0.1, 0.9, 0.9]], [0], [5, 5])
    ),
    "image.non_max_suppression": lambda x, step: mean(
        tf.image.non_max_suppression(tf.constant([[0.0, 0, 1, 1], [0, 0, 0.9, 0.9]]), [0.5, 0.4], 2)
    ),
    "image.psnr": lambda x, step: mean(tf.image.psnr(image(x), image(x) * 0.9, 12.0)) * 0.1,
    "image.sobel_edges": lambda x, step: mean(tf.image.sobel_edges(image(x))),
    "lookup.StaticHashTable": lambda x, step: TABLE.lookup(tf.constant([1, 2, 3])) * 0.1,
    "gather": lambda x, step: tf.gather(x, [1, 0, 2, 3]),
    "gather_nd": lambda x, step: tf.gather_nd(x, [[0], [1], [2], [3]]),
    "where": lambda x, step: mean(tf.where(x > 0.3)),
    "unique": lambda x, step: mean(tf.unique(tf.reshape(x, [-1]))[0]),
    "dynamic_partition": lambda x, step: tf.dynamic_stitch(
        [[0, 2], [1, 3]], tf.dynamic_partition(x, [0, 1, 0, 1], 2)
    ),
    "math.segment_sum": lambda x, step: tf.math.segment_sum(x, [0, 0, 1, 1])[:1],
    "math.unsorted_segment_mean": lambda x, step: tf.math.unsorted_segment_mean(x, [0, 1, 0, 1], 2)[:1],
    "math.top_k": lambda x, step: tf.math.top_k(x, 2)[0][:, :1],
    "sort": lambda x, step: tf.sort(x),
    "argsort": lambda x, step: tf.gather(x, tf.argsort(x[:, 0])),
    "cumsum": lambda x, step: tf.cumsum(x),
    "einsum": lambda x, step: tf.einsum("ij,jk->ik", x, tf.eye(3)),
    "linalg.svd": lambda x, step: tf.linalg.svd(x, compute_uv=False)[:3],
    "linalg.qr": lambda x, step: tf.linalg.qr(x)[0],
    "linalg.inv": lambda x, step: x @ tf.linalg.inv(tf.eye(3) * 2.0),
    "linalg.cholesky": lambda x, step: x @ tf.linalg.cholesky(tf.eye(3) * 2.0),
    "linalg.det": lambda x, step: tf.linalg.det(tf.eye(3)),
    "linalg.lstsq": lambda x, step: x @ tf.linalg.lstsq(tf.eye(3), tf.eye(3)),
    "linalg.expm": lambda x, step: x @ tf.linalg.expm(tf.eye(3) * 0.1),
    "linalg.eigh": lambda x, step: x @ tf.linalg.eigh(tf.eye(3))[1],
    "norm": lambda x, step: x / tf.norm(x),
    "signal.fft": lambda x, step: tf.math.real(tf.signal.fft(tf.cast(x, tf.complex64))),
    "signal.rfft": lambda x, step: tf.abs(tf.signal.rfft(x))[:, :1],
    "signal.stft": lambda x, step: mean(tf.abs(tf.signal.stft(tf.reshape(x, [12]), 4, 2))),
    "signal.dct": lambda x, step: tf.signal.dct(x),
    "signal.hann_window": lambda x, step: mean(tf.signal.hann_window(8)),
    "RaggedTensor": lambda x, step: mean(tf.RaggedTensor.from_row_lengths(x, [1, 3]).to_tensor()),
    "sparse.sparse_dense_matmul": lambda x, step: tf.sparse.sparse_dense_matmul(
        tf.sparse.from_dense(tf.eye(4)), x
    ),
    "sparse.softmax": lambda x, step: tf.sparse.to_dense(tf.sparse.softmax(tf.sparse.from_dense(x + 1.0))),
    "strings.length": lambda x, step: mean(tf.strings.length(tf.strings.as_string(step))),
    "strings.regex_replace": lambda x, step: tf.strings.to_number(tf.strings.regex_replace("a2", "a", "")),
    "strings.to_hash_bucket_fast": lambda x, step: mean(tf.strings.to_hash_bucket_fast("ab", 10)),
    "edit_distance": lambda x, step: mean(
        tf.edit_distance(tf.sparse.from_dense([[1, 2]]), tf.sparse.from_dense([[1, 3]]))
    ),
    "py_function": lambda x, step: tf.py_function(lambda a: a.numpy() * 2, [x], tf.float32),
    "numpy_function": lambda x, step: tf.numpy_function(lambda a: a * 2, [x], tf.float32),
    "map_fn": lambda x, step: tf.map_fn(tf.tanh, x),
    "scan": lambda x, step: tf.scan(lambda a, b: tf.tanh(a + b), x),
    "foldl": lambda x, step: tf.foldl(lambda a, b: tf.tanh(a + b), x),
    "while_loop": lambda x, step: tf.while_loop(
        lambda i, a: i < 3, lambda i, a: (i + 1, tf.tanh(a)), [tf.constant(0), x]
    )[1],
    "cond": lambda x, step: tf.cond(mean(x) > 0, lambda: x * 2, lambda: x),
    "case": lambda x, step: tf.case([(mean(x) > 99.0, lambda: x)], default=lambda: x * 0.5),
    "switch_case": lambda x, step: tf.switch_case(tf.constant(1), [lambda: x, lambda: x * 0.3]),
    "TensorArray": lambda x, step: tf.TensorArray(tf.float32, 4).unstack(x).stack(),
    "clip_by_global_norm": lambda x, step: tf.clip_by_global_norm([x, x], 1.0)[0],
    "clip_by_norm": lambda x, step: tf.clip_by_norm(x, 1.0),
    "debugging.assert_equal": lambda x, step: (tf.debugging.assert_equal(x, x), x)[1],
    "debugging.assert_all_finite": lambda x, step: tf.debugging.assert_all_finite(x, "x"),
    "histogram_fixed_width": lambda x, step: mean(tf.histogram_fixed_width(x, [0.0, 1.0], 5)[0]),
    "math.bincount": lambda x, step: mean(tf.math.bincount([1, 2, 1])),
    "math.confusion_matrix": lambda x, step: mean(tf.math.confusion_matrix([1, 0], [1, 1])),
    "math.betainc": lambda x, step: tf.math.betainc(1.0, 2.0, 0.3),
    "math.bessel_i0": lambda x, step: tf.math.bessel_i0(0.5),
    "meshgrid": lambda x, step: tf.meshgrid([1.0, 2, 3], [1.0, 2, 3, 4])[0],
    "tensor_scatter_nd_update": lambda x, step: tf.tensor_scatter_nd_update(x, [[0]], [[1.0, 2, 3]]),
    "sequence_mask": lambda x, step: tf.cast(tf.sequence_mask([1, 2, 3, 2], 3), tf.float32),
    "reverse_sequence": lambda x, step: tf.reverse_sequence(x, [1, 2, 3, 2], 1),
    "quantization.fake_quant_with_min_max_args": lambda x, step: tf.quantization.fake_quant_with_min_max_args(
        x, 0.0, 12.0
    ),
    "bitcast": lambda x, step: tf.bitcast(tf.bitcast(x, tf.int32), tf.float32),
    "experimental.numpy.tanh": lambda x, step: tf.experimental.numpy.tanh(x),
    "stop_gradient": lambda x, step: tf.stop_gradient(x),
    "io.decode_raw": lambda x, step: tf.io.decode_raw(tf.constant(b"\0\0\x80?"), tf.float32),
    "io.parse_tensor": lambda x, step: tf.io.parse_tensor(tf.io.serialize_tensor(x), tf.float32),
    "io.decode_png": lambda x, step: mean(tf.io.decode_png(tf.io.encode_png(tf.zeros([2, 2, 1], tf.uint8)))),
}
EXPLAINED = {
    "vectorized_map": lambda x, step: tf.vectorized_map(lambda row: row * 2.0, x),
    "Generator.split": lambda x, step: RNG.split(1)[0].normal([4, 3]),
}
"""Those that make a graph or a variable in every step."""


def training(use):
    """A program whose step uses a function under a tape."""

    def program(see):
        w = tf.Variable(tf.eye(3))
        RNG.reset_from_seed(5)
        for step in range(STEPS):
            x = tf.constant(np.arange(12, dtype="float32").reshape(4, 3) * (0.05 + 0.01 * (step % 7)))
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.tanh(x * use(x, step) @ w))
            w.assign_sub(0.1 * tape.gradient(loss, w))
            see(loss)
        return w

    return program


@pytest.mark.parametrize("name", QUICK)
def test_steps_with_it_are_co_executed(name):
    both_ways(training(QUICK[name]), co_executed=10)


@pytest.mark.skipif(not ALL, reason="a minute and a half: with `make fuzz`")
@pytest.mark.parametrize("name", OTHERS)
def test_steps_with_any_function_are_co_executed(name):
    both_ways(training(OTHERS[name]), co_executed=10)


@pytest.mark.skipif(not ALL, reason="with `make fuzz`")
@pytest.mark.parametrize("name", EXPLAINED)
def test_steps_with_these_are_given_back(name):
    report = both_ways(training(EXPLAINED[name]), co_executed=0)
    assert report["anchors"][0]["state"] == "given up"
    assert report["anchors"][0]["given_up"].startswith("unsettled")

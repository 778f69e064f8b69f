import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from highway_jax import data

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)


@settings(max_examples=25)
@given(arrays(np.uint8, (3, 5, 4, 2)), st.integers(0, 255))
def test_global_contrast_normalization_is_pylearn2s(images, grey):
    images = np.concatenate([images, np.full((1, 5, 4, 2), grey, np.uint8)])
    flat = images.reshape(len(images), -1).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    norm = np.sqrt((flat**2).sum(axis=1, keepdims=True)) / 55
    norm[norm < 1e-8] = 1
    expected = (flat / norm).reshape(images.shape)
    np.testing.assert_allclose(data.global_contrast_normalize(images), expected, rtol=1e-4, atol=1e-4)


def test_a_cifar_image_gets_a_standard_deviation_of_one_and_a_grey_one_none():
    images = np.concatenate([IMAGES, np.full((1, 32, 32, 3), 201, np.uint8)])
    normalized = np.asarray(jax.jit(data.global_contrast_normalize)(images))
    np.testing.assert_allclose(normalized[:-1].std(axis=(1, 2, 3)), 1, atol=0.01)
    np.testing.assert_array_equal(normalized[-1], 0)


def test_the_mean_image_is_that_of_the_preprocessed_images():
    scale = functools.partial(data.rescale, max_value=255)
    np.testing.assert_allclose(data.mean_image(IMAGES, scale), (IMAGES / 255.0).mean(axis=0), rtol=1e-5)


@settings(max_examples=10)
@given(st.integers(0, 3), st.integers(0, 99))
def test_a_crop_is_one_of_the_zero_padded_image(padding, seed):
    images = np.arange(1, 4 * 5 * 6 * 2 + 1, dtype=np.float32).reshape(4, 5, 6, 2)
    crops = np.asarray(data.random_crop(jax.random.key(seed), images, padding))
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    for crop, image in zip(crops, padded, strict=True):
        corners = [(i, j) for i in range(2 * padding + 1) for j in range(2 * padding + 1)]
        assert any(np.array_equal(crop, image[i : i + 5, j : j + 6]) for i, j in corners)


def test_augmentation_follows_from_its_key_and_reaches_every_position():
    @jax.jit
    def augment(key, images):
        crop, mirror = jax.random.split(key)
        return data.random_mirror(mirror, data.random_crop(crop, images, padding=1))

    images = jnp.asarray(np.repeat(IMAGES[:1], 500, axis=0), jnp.float32)
    first, again, other = augment(KEY, images), augment(KEY, images), augment(jax.random.key(1), images)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert len(np.unique(np.asarray(first).reshape(500, -1), axis=0)) == 3 * 3 * 2
    mirrored = np.asarray(data.random_mirror(KEY, images))
    left, right = (mirrored == images).all(axis=(1, 2, 3)), (mirrored == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (left ^ right).all()
    assert 0.4 < left.mean() < 0.6

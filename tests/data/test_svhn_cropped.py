"""Drawn house numbers: labels, class frequencies, pixels that repeat."""

from __future__ import annotations

import numpy as np

from headwise.data.synthetic import svhn_cropped as svhn


def test_golden_labels() -> None:
    """Raise REVISION with these: results of other digits must not share a fingerprint."""
    assert svhn.REVISION == 1
    drawn = [row["label"] for row in svhn.examples("train", np.arange(16))]
    assert drawn == [3, 3, 5, 8, 4, 3, 8, 4, 1, 2, 1, 3, 1, 4, 4, 5]


def test_classes_are_as_frequent_as_upstream() -> None:
    counts = np.bincount([row["label"] for row in svhn.examples("train", np.arange(2000))], minlength=10)
    expected = 2000 * np.array(svhn.PRIOR) / sum(svhn.PRIOR)
    assert np.abs(counts - expected).max() < 4 * np.sqrt(expected.max())


def test_pixels_repeat_and_vary() -> None:
    indices = np.array([5, 9, 200])
    images = svhn.render("train", indices)
    assert images.shape == (3, 32, 32, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(images, svhn.render("train", indices))
    np.testing.assert_array_equal(images[1], svhn.render("train", indices[1:2])[0])
    assert not np.array_equal(images, svhn.render("test", indices))
    assert svhn.render("train", np.array([], dtype=np.int64)).shape == (0, 32, 32, 3)


def test_the_digit_is_in_the_middle() -> None:
    """The contrast of the middle exceeds that of the corners, on average."""
    images = svhn.render("train", np.arange(60)).astype(float).mean(axis=3)
    middle, corner = images[:, 6:26, 10:22].std(axis=(1, 2)), images[:, :5, :5].std(axis=(1, 2))
    assert middle.mean() > 2 * corner.mean()

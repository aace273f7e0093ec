"""The 8 x 8 digits that come with scikit-learn: 1,797 grey images, no download.

    pixel = round(value * 255 / 16), of values from 0 to 16

There is no published split. Here a fifth of each class, rounded, is for testing: the rows whose
hash is least, which is the same with every version of every library.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmidd.datasets.encoded import Decoding
from cmidd.datasets.images import Dataset, ImageSet
from cmidd.datasets.statistics import channel_statistics
from cmidd.seeds import seed_of

_TEST_SHARE = 0.2


def load(name: str, root: Path, decoding: Decoding) -> Dataset:
    """The digits of scikit-learn, which brings them itself: nothing is read from `root`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
    is_test = np.zeros(len(images), bool)
    for c in range(10):
        rows = np.flatnonzero(digits.target == c).tolist()
        rows.sort(key=lambda row: seed_of("digits", "test", row))
        is_test[rows[: round(len(rows) * _TEST_SHARE)]] = True
    train = ImageSet.from_arrays(images[~is_test], digits.target[~is_test], num_classes=10)
    test = ImageSet.from_arrays(images[is_test], digits.target[is_test], num_classes=10)
    mean, std = channel_statistics(train.images)
    return Dataset(name, train, test, tuple("0123456789"), mean, std, mirror=False)

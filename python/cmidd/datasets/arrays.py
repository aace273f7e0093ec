"""One `.npz` of arrays: train_images, train_labels, test_images and test_labels.

Images are uint8 in any layout of `ImageSet.from_arrays`, labels integers from 0. Arrays of objects
are pickles and are not read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmidd.datasets.encoded import Decoding
from cmidd.datasets.files import find, reading
from cmidd.datasets.images import Dataset, ImageSet
from cmidd.datasets.statistics import channel_statistics


def load(name: str, root: Path, decoding: Decoding) -> Dataset:
    """Read the file that `arrays:PATH.npz` names; the classes are those of the training labels."""
    path = find(name, [Path(name.partition(":")[2]).expanduser()])
    with reading(path), path.open("rb") as file:
        try:
            content = np.load(file, allow_pickle=False)
        except ValueError:  # numpy takes what it does not know for a pickle
            raise ValueError("expected a file that numpy.savez has written") from None
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise ValueError("is one array, expected a file that numpy.savez has written")
        with content:
            keys = [
                f"{split}_{kind}" for split in ("train", "test") for kind in ("images", "labels")
            ]
            missing = [key for key in keys if key not in content]
            if missing:
                raise ValueError(
                    f"lacks {', '.join(missing)}; has {', '.join(content) or 'nothing'}"
                )
            arrays = {key: content[key] for key in keys}
    with reading(f"{path}, train"):
        first = int(arrays["train_labels"].min())
        if first > 0:
            raise ValueError(f"expected labels from 0 on, got {first} as the first; subtract it")
        num_classes = int(arrays["train_labels"].max()) + 1
        train = ImageSet.from_arrays(arrays["train_images"], arrays["train_labels"], num_classes)
    with reading(f"{path}, test"):
        test = ImageSet.from_arrays(arrays["test_images"], arrays["test_labels"], num_classes)
    mean, std = channel_statistics(train.images)
    class_names = tuple(map(str, range(num_classes)))
    return Dataset(name, train, test, class_names, mean, std, mirror=True)

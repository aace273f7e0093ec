"""Mean and deviation of the pixels of a dataset."""

from __future__ import annotations

import torch

from cmidd import ranks
from cmidd.datasets.streamed import Images, StreamedImages, one_after_another
from cmidd.progress import progress

_LEAST_STD = 1 / 255  # one grey level: images of one colour are not divided by zero
_BATCH = 512


def channel_statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels in [0, 1], exact to float64.

    Pixels are counted by value first, so no image is turned into floating point, and ranks of a
    command that decode pictures on demand count a share each.
    """
    channels = images.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.int64)
    if isinstance(images, StreamedImages):
        shared = ranks.are_of_a_command()
        rows = torch.arange(len(images))[ranks.slice_of(len(images)) if shared else slice(None)]
        batches = progress(
            torch.split(rows, _BATCH), desc="mean and deviation", unit="batch", leave=False
        )
        pieces = one_after_another(images, batches)
    else:
        shared, pieces = False, iter([images])
    for piece in pieces:
        for channel in range(channels):
            counts[channel] += torch.bincount(piece[:, channel].flatten(), minlength=256)
    if shared:
        ranks.add_up(counts)
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = counts / counts.sum(dim=1, keepdim=True, dtype=torch.float64)
    mean, std = [], []
    for share in shares:
        centre = (share * values).sum()
        mean.append(float(centre))
        std.append(max(float((share * (values - centre) ** 2).sum().sqrt()), _LEAST_STD))
    return tuple(mean), tuple(std)

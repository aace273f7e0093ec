"""DSA, gradient matching with augmentation (Zhao and Bilen, ICML 2021); `dc` goes without.

An update moves the images so that the gradient of each class comes nearer to that of real images,
in a network that trains on the synthetic images between updates and has fresh random weights in
every iteration. Synthetic and real images of a class are augmented alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from cmidd.options.dc import DCOptions
from cmidd.options.fields import option
from cmidd.options.recipe import DSA


@dataclass(frozen=True)
class DSAOptions(DCOptions):  # noqa: D101
    __doc__ = DCOptions.__doc__

    augmentation: str = option(DSA, names="augmentation")

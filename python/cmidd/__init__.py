"""A dataset distiller around the CMI regulariser: `cmidd pretrain | distill | evaluate | score`.

The rooms, in the order of a run: `datasets` hold real images, `networks` see them, `pretrained`
keeps networks trained on them, `augment` changes images, `synthetic` is the distilled set and its
file, `methods` has a file for each method, `distill` is the loop around them, `regularization` its
CMI, `storage` its files, `evaluate` trains fresh networks on the result, `report` draws it. `cli`
has the commands.
"""

from __future__ import annotations

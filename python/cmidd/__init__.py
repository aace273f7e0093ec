"""A dataset distiller around the CMI regulariser: `cmidd pretrain | distill | evaluate | score`.

The rooms, in the order of a run: `datasets` hold real images, `networks` see them, `bank` keeps
networks trained on them, `augment` changes images, `synthetic` is the distilled set and its file,
`dm` distils, `evaluate` trains fresh networks on the result, `report` draws it. `cli` is the door.
"""

from __future__ import annotations

"""A dataset distiller around the CMI regulariser: `cmidd pretrain | distill | evaluate | score`.

The rooms, in the order of a run: `datasets` hold real images, `networks` see them, `bank` keeps
networks trained on them and `experts` their way there, `augment` changes images, `synthetic` is the
distilled set and its file, `dm`, `dc` and `mtt` are methods, `distill` the loop around them, `cmi`
its regulariser, `evaluate` trains fresh networks on the result, `report` draws it. `cli` is the
door.
"""

from __future__ import annotations

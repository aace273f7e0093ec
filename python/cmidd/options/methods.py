"""The options of each method by its name; a method's own file is in `cmidd.methods`."""

from __future__ import annotations

from cmidd.options.dc import DCOptions
from cmidd.options.dm import DMOptions
from cmidd.options.dsa import DSAOptions
from cmidd.options.fields import Options
from cmidd.options.idc import IDCOptions
from cmidd.options.idm import IDMOptions
from cmidd.options.iid import IIDOptions
from cmidd.options.mtt import MTTOptions
from cmidd.options.ncfm import NCFMOptions

METHOD_OPTIONS: dict[str, type[Options]] = {
    "dm": DMOptions,
    "dc": DCOptions,
    "dsa": DSAOptions,
    "mtt": MTTOptions,
    "idc": IDCOptions,
    "idm": IDMOptions,
    "iid": IIDOptions,
    "ncfm": NCFMOptions,
}
"""`cmidd.register` adds to it. The docstring of a class's file is the help of its command."""

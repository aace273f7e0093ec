"""Distilled sets from other tools and for them.

`convert` makes a set of a file of another tool: `untrusted` reads files with nothing in them
executed, `peers` knows what each tool writes, `conversion` brings it to our form. `exports` writes
what other tools read, `hub_folder` and `dataset_card` what the Hugging Face hub takes.
"""

from __future__ import annotations

from cmidd.exchange.conversion import convert
from cmidd.exchange.exports import check_folders, export_ddranking, export_png, export_pt

__all__ = ["check_folders", "convert", "export_ddranking", "export_png", "export_pt"]

"""Data, oracles and comparisons that tests share."""

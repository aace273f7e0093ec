"""Sets of other tools."""

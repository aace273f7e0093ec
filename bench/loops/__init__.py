"""Whole loops of the distiller against plain ones, and their parts."""

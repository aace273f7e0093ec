"""Tests of `CMIRegularizer`."""

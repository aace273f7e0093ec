"""Tests of the methods, one by one and as a table."""

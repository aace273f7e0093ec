"""Tests of banks and experts."""

"""The contract of cmikernels, one behaviour a test, over every backend that can run here."""

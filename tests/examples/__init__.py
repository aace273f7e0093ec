"""The examples are run as a user runs them."""

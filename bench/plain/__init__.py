"""The plain loops, structured as the published ones: oracle of the tests and rival in the race."""

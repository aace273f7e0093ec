"""What all benchmarks share: the race, records, tables."""

"""What only a GPU needs: the suite, graphs, counters, a model of time, the report's columns."""

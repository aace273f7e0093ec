"""What only a GPU needs: the suite, graphs, counters, a model, the report's columns."""

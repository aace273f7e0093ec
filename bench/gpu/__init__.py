"""What only a GPU needs: the suite, graphs, launches, counters, a model, reports."""

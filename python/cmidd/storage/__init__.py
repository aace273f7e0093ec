"""Three ways to be on disk: a file of tensors, a file that grows item by item, a run's folder."""

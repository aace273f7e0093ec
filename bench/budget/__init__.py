"""What the loops ask of a GPU, counted on torch's device `meta`, which computes nothing."""

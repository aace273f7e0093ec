"""Recovery of images from trained networks."""

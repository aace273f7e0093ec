"""What a GPU alone can show, and the tools that check kernels there."""

"""What is particular to one backend, and how they are built and chosen."""

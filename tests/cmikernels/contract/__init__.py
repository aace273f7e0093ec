"""What `fused_cmi` promises, one behaviour a test, over every backend that can run here."""

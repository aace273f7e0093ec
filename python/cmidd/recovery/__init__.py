"""Images that are recovered from trained networks, batch by batch (SRe2L and its kin)."""

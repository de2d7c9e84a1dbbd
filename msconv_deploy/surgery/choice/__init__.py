"""Whether a rewrite pays: extents, a cost estimate, and measuring on the user's machine."""

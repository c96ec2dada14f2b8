"""A small world whose best policy is known."""

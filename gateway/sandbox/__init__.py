"""A synthetic county for newcomers and tests. Nothing here belongs to a real person."""

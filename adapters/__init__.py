"""Partner dialects: one file each, pure translation, loaded by configured name."""

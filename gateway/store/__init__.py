"""SQL beside its few functions, one file per aggregate."""

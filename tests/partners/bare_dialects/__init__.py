"""Dialects that translate nothing, so that what a call costs is the engine's: engine_cost.py."""

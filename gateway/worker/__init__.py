"""Bounded background loops."""

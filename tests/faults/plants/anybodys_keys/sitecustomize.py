"""Planted bug: keys of Ed25519 for which anybody can sign are taken."""

from gateway.crypto import ed25519_points


def refuse_unfit(encoded: bytes) -> None:
    return


setattr(ed25519_points, "refuse_unfit", refuse_unfit)  # noqa: B010

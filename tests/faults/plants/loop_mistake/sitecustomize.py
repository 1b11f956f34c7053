"""Planted bug: a loop of every process breaks."""

from gateway.directory import Directory


async def watch(self: Directory) -> None:
    raise ZeroDivisionError


setattr(Directory, "watch", watch)  # noqa: B010

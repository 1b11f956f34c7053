"""An answer as handlers give it, and as it goes out: by aiohttp's request cycle, or past it (hot_lane.py)."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple

from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time

SERVER = "yikatong"
JSON = "application/json"
JSON_HEADERS: Mapping[str, str] = {"Content-Type": JSON}
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}


class Reply(NamedTuple):
    """`headers` are those of this answer alone: what every answer has is added on its way out."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = JSON_HEADERS
    request_id: str = ""
    """middleware.py fills it in."""
    closes: bool = False
    """The connection ends with it."""

    def response(self) -> web.Response:
        """For aiohttp's request cycle."""
        headers = {**self.headers, "X-Request-Id": self.request_id, "Server": SERVER}
        response = web.Response(body=self.body, status=self.status, headers=headers)
        if self.closes:
            response.force_close()
        return response

    def to_bytes(self) -> bytes:
        """As it is written to a connection that stays open."""
        return "".join((
            _STATUS_LINES[self.status], *[f"{name}: {value}\r\n" for name, value in self.headers.items()],
            f"X-Request-Id: {self.request_id}\r\nServer: {SERVER}\r\n"
            f"Content-Length: {len(self.body)}\r\nDate: {rfc822_formatted_time()}\r\n\r\n",
        )).encode() + self.body  # fmt: skip

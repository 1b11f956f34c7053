"""A port that somebody else took after the start had asked for it."""

import socket

import pytest

from gateway.app import _listen
from gateway.domain.errors import CannotStart


def test_a_worker_names_the_port_and_not_the_database() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(CannotStart, match=rf"^127\.0\.0\.1:{port}: .*; set PORT to another port$"):
            _listen("127.0.0.1", port)
    _listen("127.0.0.1", port).close()

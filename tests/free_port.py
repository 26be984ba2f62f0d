"""A port of this machine that nobody listens on."""

import socket


def free_port() -> int:
    """It may be taken again before it is used; tests do not run beside each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

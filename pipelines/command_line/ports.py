"""A port that a server of ours is to listen on."""

import socket

from metalearn_core.errors import MetalearnError


def check_free(host: str, port: int) -> None:
    """Raise an error of one line where nothing can listen on this port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise MetalearnError(f"--port {port} on {host}: {reason}: give another") from None

"""Addresses of servers, checked where they are given instead of at the first request."""

from urllib.parse import urlsplit


def checked_url(url: str) -> str:
    """``url``, if a request can be sent to it.

    Raises:
        ValueError: it has no scheme, another one than http, no host, or a port that is none.
    """
    parts = urlsplit(url)
    try:
        complete = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        complete = False
    if not complete:
        raise ValueError(f"{url!r} is no address of a server; write http://HOST:PORT or https://…")
    return url

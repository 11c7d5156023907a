"""Who may ask. Keys come as ``Authorization: Bearer``; the protocols of other trainers can carry
one only in their URL, so those routes take ``?token=`` too. A key is never logged.
"""

import hmac
from collections.abc import Sequence
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Receive, Scope, Send

from service.answers import error_response
from service.errors import Unauthorized

OPEN_PATHS = frozenset({"/", "/health", "/ready"})
"""For probes, which carry no key, and the page, on which people type theirs."""


class Authentication:
    """ASGI middleware: 401 before a byte of the body is read. No keys means everybody may ask."""

    def __init__(
        self, app: ASGIApp, keys: Sequence[str], token_paths: frozenset[str] = frozenset()
    ) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._token_paths = token_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._admits(scope):
            await self._app(scope, receive, send)
        else:
            error = Unauthorized("no key or a wrong one: send Authorization: Bearer KEY")
            await error_response(error)(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        if not self._keys or scope["path"] in OPEN_PATHS:
            return True
        return self._known(_bearer(scope)) or self._known(self._token(scope))

    def _token(self, scope: Scope) -> bytes | None:
        if scope["path"] not in self._token_paths:
            return None
        tokens = parse_qs(scope["query_string"]).get(b"token")
        return tokens[0] if tokens else None

    def _known(self, given: bytes | None) -> bool:
        """Compare with every key in a time that tells nothing about them."""
        if given is None:
            return False
        matches = [hmac.compare_digest(given, key) for key in self._keys]
        return any(matches)


def _bearer(scope: Scope) -> bytes | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            return key.strip() if scheme.lower() == b"bearer" else None
    return None

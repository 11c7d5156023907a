"""``GET /``: the page for people. One file, no other host, no key needed to read it.

What it shows it asks of ``/v1/models``, ``/score``, ``/v1/trace`` and ``/metrics``, with the key
that its reader types in.
"""

import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files

from fastapi import APIRouter, Response

from service.context import Context

PATH = "/"


def page_router(context: Context) -> APIRouter:
    router = APIRouter()
    html = files("service").joinpath("page/index.html").read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": _policy(html),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    @router.get(PATH, include_in_schema=False)
    async def page() -> Response:
        return Response(html, media_type="text/html", headers=headers)

    return router


def _policy(html: str) -> str:
    """This script and no other, and no host but ours."""
    script = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)[0]
    digest = b64encode(sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )

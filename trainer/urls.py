"""URLs among settings: what is none is refused by name, before anything starts."""

from typing import Annotated, TypeVar

from pydantic import AfterValidator

from service.url import checked_url

T = TypeVar("T", str, list[str], str | list[str] | None)


def _checked(value: T) -> T:
    for url in [value] if isinstance(value, str) else value or []:
        checked_url(url)
    return value


Url = Annotated[str, AfterValidator(_checked)]
Urls = Annotated[list[str], AfterValidator(_checked)]
UrlOrUrls = Annotated[str | list[str] | None, AfterValidator(_checked)]
"""One server, several alike, or none."""

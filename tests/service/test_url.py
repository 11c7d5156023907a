"""Which texts are addresses of servers."""

import re

import pytest

from service.url import checked_url


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8000",
        "https://host/v1/",
        "http://10.0.0.1",
        "http://[::1]:8000/get_reward?key=1",
        "http://user:secret@host:80",
    ],
)
def test_an_address_stays_as_it_is(url: str) -> None:
    assert checked_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "host",
        "/score",
        "http:/host",
        "http://:80",
        "http://h:x",
        "http://h:99999",
    ],
)
def test_what_is_none_is_named(url: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{url!r} is no address of a server")):
        checked_url(url)

"""Certificate and key are tried before anything is loaded, and never silently left out."""

from pathlib import Path

import pytest

from reward_model.errors import UsageError
from service.deployment import build
from service.tls import check_tls
from tests.certificates import needs_openssl, self_signed

pytestmark = needs_openssl


def test_a_pair_and_both_in_one_file(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    check_tls(None, None)
    check_tls(certificate, key)
    both = tmp_path / "both.pem"
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    check_tls(both, None)


def test_what_would_not_be_https_is_refused(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    _, other = self_signed(tmp_path / "other")
    _, locked = self_signed(tmp_path / "locked", password="secret")
    with pytest.raises(UsageError, match="ssl_keyfile: needs ssl_certfile too"):
        check_tls(None, key)
    with pytest.raises(UsageError, match=r"ssl_keyfile .*nothing\.pem: no such file"):
        check_tls(certificate, tmp_path / "nothing.pem")
    for wrong in (None, other, certificate):
        with pytest.raises(UsageError, match="not a certificate and its key"):
            check_tls(certificate, wrong)
    with pytest.raises(UsageError, match="without a password"):
        check_tls(tmp_path / "locked/cert.pem", locked)


def test_a_serve_file_says_it_in_its_own_place(tmp_path: Path) -> None:
    certificate, _ = self_signed(tmp_path)
    with pytest.raises(UsageError, match="give them to http_options"):
        build({"model": [str(tmp_path)], "ssl_certfile": str(certificate)})

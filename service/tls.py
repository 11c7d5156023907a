"""The certificate and key of HTTPS, tried before anything is loaded."""

import ssl
from pathlib import Path

from reward_model.errors import UsageError


def check_tls(certfile: Path | None, keyfile: Path | None) -> None:
    """See that the pair can be served with. Without a certificate there is no HTTPS.

    Raises:
        UsageError: a key without a certificate (which would be plain HTTP), a missing file, a key
            with a password, or two files that do not belong together.
    """
    if certfile is None:
        if keyfile is not None:
            raise UsageError("ssl_keyfile: needs ssl_certfile too; without it nothing is encrypted")
        return
    for name, path in (("ssl_certfile", certfile), ("ssl_keyfile", keyfile)):
        if path is not None and not path.is_file():
            raise UsageError(f"{name} {path}: no such file")
    try:
        # Where there is a password, nobody is there to type it in.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, keyfile, lambda: "")
    except (ssl.SSLError, OSError) as error:
        raise UsageError(
            f"ssl_certfile {certfile}, ssl_keyfile {keyfile or certfile}: not a certificate and "
            f"its key without a password, in PEM: {error}"
        ) from None

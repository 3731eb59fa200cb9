"""What p2pl asks of the web, trackers and `url-list`: how a URL is read, and whom HTTPS trusts."""

import ssl
from pathlib import Path

import httpx

from p2pl.errors import InputError, wrong

CERTIFICATE_REFUSED = "CERTIFICATE_VERIFY_FAILED"  # OpenSSL's word in what httpx raises


def parse_url(text: str) -> httpx.URL:
    """Returns the URL in `text`, its host checked, so that nothing later trips over it.

    Raises:
        InputError: it is no URL, or its host is no name that can be looked up.
    """
    try:
        url = httpx.URL(text)
        name = url.host  # decodes xn-- labels
        url.raw_host.decode("ascii").encode("idna")  # as the look-up does
    except (httpx.InvalidURL, ValueError) as fault:
        allowed = "http(s)://HOST[:PORT][/PATH], HOST a valid (internationalised) name"
        raise InputError(wrong("URL", got=text, allowed=f"{allowed} ({fault})")) from fault
    if not name or (url.port or 1) > 65_535:
        raise InputError(wrong("URL", got=text, allowed="a host, and a port up to 65535"))
    return url


def trust(authorities: Path | None) -> ssl.SSLContext:
    """Returns whom HTTPS connections trust.

    Args:
        authorities: a PEM file of certificate authorities that are trusted, and no others; None:
            those of this machine, and those that httpx brings.

    Raises:
        InputError: the file cannot be read, or holds no certificate.
    """
    if authorities is None:
        context = httpx.create_ssl_context(trust_env=False)
        context.load_default_certs()
        return context
    try:
        return ssl.create_default_context(cafile=authorities)
    except OSError as fault:  # an ssl.SSLError is one
        raise InputError(
            wrong(
                "--ca",
                got=f"{authorities} ({fault.strerror or fault})",
                allowed="a file of certificates in PEM form",
                hint="SSL_CERT_FILE names it where --ca does not",
            )
        ) from fault


def advice(fault: Exception) -> str:
    """Returns what a person can do about a failure of HTTPS; "" where there is nothing to say."""
    if CERTIFICATE_REFUSED not in str(fault):
        return ""
    return "; if you trust who signed its certificate, name their file with --ca or SSL_CERT_FILE"

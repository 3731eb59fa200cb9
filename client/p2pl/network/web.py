"""What p2pl asks of the web, trackers and `url-list`: how a URL is read, and whom HTTPS trusts.

Trackers are asked through the proxies that the environment names, as every user of httpx expects:
where a network lets nothing else out, a peer would otherwise be alone. `url-list` is not, for its
addresses are looked up and judged here (`download`). What is on this machine is never asked through
a proxy.
"""

import ssl
from collections.abc import Iterable
from pathlib import Path
from urllib import request as system

import httpx

from p2pl.errors import InputError, wrong

KEEP_ALIVE_S = 10.0  # shorter than the tracker's, so that no announce meets a closing connection
HERE = ("localhost", "127.0.0.1", "::1")
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


def is_proxied(url: httpx.URL) -> bool:
    """Returns whether the environment sends requests for a URL through a proxy."""
    proxies = system.getproxies_environment()
    if url.host in HERE or system.proxy_bypass(url.host):
        return False
    return url.scheme in proxies or "all" in proxies


def proxy_for(host: str, port: int) -> str | None:
    """Returns the proxy through which TLS to a host goes, as the environment says; None: directly.

    Args:
        host: a name or an IP address, of a relay.
        port: 1..65535.
    """
    if not is_proxied(httpx.URL(scheme="https", host=host, port=port)):
        return None
    proxies = system.getproxies_environment()
    named = proxies.get("https") or proxies.get("all") or ""
    return named if "://" in named else f"http://{named}"


def without_password(url: str) -> str:
    """Returns a proxy's URL for a person to read."""
    scheme, _, rest = url.rpartition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if scheme else rest.rpartition("@")[2]


def client(trust: ssl.SSLContext, urls: Iterable[str], *, deadline_s: float) -> httpx.AsyncClient:
    """Returns a client that follows no redirect and wastes no bytes.

    Args:
        trust: whom HTTPS trusts.
        urls: what it will ask; where all are on this machine, the environment is not read.
        deadline_s: for each step of a request.

    Raises:
        InputError: the environment names a proxy that cannot be used.
    """
    try:
        made = httpx.AsyncClient(
            verify=trust,
            trust_env=not all(_is_here(url) for url in urls),
            mounts={f"all://{f'[{host}]' if ':' in host else host}": None for host in HERE},
            follow_redirects=False,
            timeout=deadline_s,
            limits=httpx.Limits(max_connections=8, keepalive_expiry=KEEP_ALIVE_S),
        )
    except (ImportError, ValueError, httpx.InvalidURL) as fault:
        raise InputError(_proxy_refused(fault)) from fault
    for name in ("accept", "accept-encoding", "connection"):
        del made.headers[name]
    made.headers["user-agent"] = "p2pl"
    return made


def _is_here(url: str) -> bool:
    try:
        return parse_url(url).host in HERE
    except InputError:
        return True  # nobody asks it


def _proxy_refused(fault: Exception) -> str:
    """Returns what is wrong with the proxies of the environment, and what to do."""
    named = {name: url for name, url in system.getproxies_environment().items() if name != "no"}
    shown = ", ".join(f"{name}={without_password(url)}" for name, url in sorted(named.items()))
    is_socks = isinstance(fault, ImportError)
    hint = "pip install 'httpx[socks]' brings SOCKS" if is_socks else str(fault)
    return wrong(
        "proxy (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY)",
        got=shown,
        allowed="http://HOST:PORT, or socks5://HOST:PORT with the package socksio",
        hint=f"{hint}; or unset the variable",
    )

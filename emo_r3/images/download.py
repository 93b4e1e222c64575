"""Bytes from an http(s) address, bounded in size and time, and never from a private network unless asked."""

from __future__ import annotations

import http.client
import io
import ipaddress
import queue
import re
import socket
import ssl
import string
import threading
import time
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from ..errors import ImageError, UnavailableError

MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def fetch(url: str, *, max_bytes: int, timeout: float, allow_private_hosts: bool = False) -> bytes:
    """
    Downloads one file over http or https.

    Every hop of a redirect is checked again; each host name is resolved once and the connection goes to the address
    that was checked. Proxy settings are not used, since behind a proxy that check would mean nothing.

    Args:
        url (`str`): the address; one that carries a user name or a password is refused.
        max_bytes (`int`): the most that the body may hold, whatever the server announces.
        timeout (`float`): seconds for everything together: names, redirects, headers and body.
        allow_private_hosts (`bool`, *optional*, defaults to `False`): also fetch from loopback, private, link-local
            and reserved addresses.

    Returns:
        `bytes`: the body of the answer.

    Raises:
        [`UnavailableError`]: if trying again later may help: no connection, a time-out, a body cut short, or an answer
            such as 429 or 503.
        [`ImageError`]: for anything else. Messages show no query string, as it may hold a token.
    """
    deadline = time.monotonic() + timeout
    where = public_name(url)
    try:
        for _ in range(MAX_REDIRECTS + 1):
            target = _parse(url, where)
            with _connect(target, where, deadline, allow_private_hosts) as connection:
                response = _ask(connection, target, deadline)
                location = response.getheader("Location")
                if response.status not in _REDIRECTS or not location:
                    return _body(response, where, max_bytes)
            # The header was read as Latin-1; quoting it so gives back the bytes that were sent.
            url = _follow(url, quote(location, safe=string.punctuation, encoding="iso-8859-1"), where)
            where = f"{public_name(url)} (redirected)"
    except TimeoutError as error:
        raise UnavailableError(f"{where}: not there within {timeout:g} s; try again, or raise timeout") from error
    except ssl.SSLError as error:
        raise ImageError(f"{where}: no secure connection ({error.reason}); check the address") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise UnavailableError(f"{where}: the download failed ({reason}); check the address and try again") from error
    raise ImageError(f"{where}: more than {MAX_REDIRECTS} redirects; give the address of the image itself")


def public_name(url: str) -> str:
    """The part of a URL that is safe to print: scheme, host and path, without query, fragment and credentials."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return f"{url.partition(':')[0]}://..."
    host = f"[{host}]" if ":" in host else host
    shown = f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{parts.path}"
    shown = "".join(c if c.isprintable() else "?" for c in shown)
    return shown if len(shown) <= 200 else f"{shown[:200]}..."


class _Target(NamedTuple):
    scheme: str
    host: str
    port: int
    authority: str
    request: str


def _parse(url: str, where: str) -> _Target:
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode("ascii")
        port = parts.port
    except ValueError:  # its text may quote what stands before the host, so it isn't passed on
        raise ImageError(f"{where}: not a valid address; check its spelling") from None
    if parts.scheme not in ("http", "https"):
        raise ImageError(f"{where}: only http and https addresses are fetched; download the file and give its path")
    if "@" in parts.netloc:
        raise ImageError(f"{where}: the address holds a user name or password; download the file and give its path")
    if not re.fullmatch(r"[\w.:%-]+", host, re.ASCII):
        raise ImageError(f"{where}: not a valid host name; check the address")
    request = quote(parts.path or "/", safe=string.punctuation)
    if parts.query:
        request += "?" + quote(parts.query, safe=string.punctuation)
    authority = f"[{host}]" if ":" in host else host
    if port is not None:
        authority += f":{port}"
    return _Target(parts.scheme, host, port or (443 if parts.scheme == "https" else 80), authority, request)


def _follow(url: str, location: str, where: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise ImageError(f"{where}: redirects to no valid address; give the address of the image itself") from None


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _resolve(host: str, port: int, deadline: float) -> list[tuple[Any, ...]]:
    """The addresses of a host. The system's resolver knows no deadline, so it works on a thread of its own."""
    answers: queue.SimpleQueue[list[tuple[Any, ...]] | Exception] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answers.put(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=look_up, name="emo-r3-resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=_left(deadline))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _is_public(address: str) -> bool:
    """Whether an address belongs to the open internet, also when it wraps an IPv4 address in an IPv6 one."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in _NAT64:
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if embedded:
            return _is_public(str(embedded))
        if ip.is_site_local:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


def _connect(target: _Target, where: str, deadline: float, allow_private_hosts: bool) -> socket.socket:
    addresses = _resolve(target.host, target.port, deadline)
    if not allow_private_hosts and not all(_is_public(address[4][0]) for address in addresses):
        raise ImageError(
            f"{where}: the host has a private or reserved address, which is not fetched; download the file and give "
            "its path, or pass allow_private_hosts=True"
        )
    failure: OSError = OSError("the host has no address")
    for position, (family, kind, protocol, _, address) in enumerate(addresses):
        connection = None
        try:
            connection = socket.socket(family, kind, protocol)
            # An address that swallows packets may use up its share of the time, not that of the others.
            connection.settimeout(_left(deadline) / (len(addresses) - position))
            connection.connect(address)
            if target.scheme == "http":
                return connection
            connection.settimeout(_left(deadline))
            return ssl.create_default_context().wrap_socket(connection, server_hostname=target.host)
        except OSError as error:
            if connection is not None:
                connection.close()
            failure = error
    raise failure


class _TimedReader(io.RawIOBase):
    """A connection's bytes; each read gets only what is left of the deadline, so a dripping server can't hold us."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        """What `http.client.HTTPResponse` asks a socket for."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(_left(self._deadline))
        return self._connection.recv_into(buffer)


def _ask(connection: socket.socket, target: _Target, deadline: float) -> http.client.HTTPResponse:
    connection.settimeout(_left(deadline))
    connection.sendall(
        f"GET {target.request} HTTP/1.1\r\nHost: {target.authority}\r\nUser-Agent: emo-r3\r\n"
        "Accept: image/*\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n".encode("ascii")
    )
    reader: Any = _TimedReader(connection, deadline)
    response = http.client.HTTPResponse(reader, method="GET")
    response.begin()
    return response


def _body(response: http.client.HTTPResponse, where: str, max_bytes: int) -> bytes:
    if response.status != HTTPStatus.OK:
        phrase = http.client.responses.get(response.status, "")
        message = f"{where}: the server answered {response.status} {phrase}".rstrip()
        if response.status in TEMPORARY:
            raise UnavailableError(f"{message}; try again later", retry_seconds(response.getheader("Retry-After")))
        raise ImageError(f"{message}; check the address")
    body = b"" if (response.length or 0) > max_bytes else response.read(max_bytes + 1)
    if len(body) + (response.length or 0) > max_bytes:
        raise ImageError(f"{where}: larger than {max_bytes:,} bytes; use a smaller image, or raise max_bytes")
    if response.length:
        missing = f"{response.length:,} of {response.length + len(body):,} bytes are missing"
        raise UnavailableError(f"{where}: the download ended early ({missing}); try again")
    return body


def retry_seconds(retry_after: str | None) -> float | None:
    """The wait that a Retry-After header asks for: it is a number of seconds or a date."""
    if retry_after is None:
        return None
    try:
        if retry_after.strip().isdecimal():
            return float(retry_after)
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None

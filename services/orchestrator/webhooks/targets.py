"""Where messages may go: public hosts over https. Asked when an endpoint is made, and again at every try.

A host is looked up once a try and just the addresses that were checked are connected to, so that a name which leads
elsewhere a moment later (DNS rebinding) gains nothing.
"""

import ipaddress
from typing import NamedTuple
from urllib.parse import urlsplit

from services.common.public_address import is_public
from services.orchestrator.webhooks.ports import Sender, SendFailed

MOST_URL_CHARS = 2048
# Metadata services of clouds, also for installations that may send to private addresses: AWS and most others, AWS over IPv6, Alibaba,
# Oracle's older one, Azure's host (a public address that is reachable from Azure's machines only).
_METADATA = frozenset(map(ipaddress.ip_address, ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")))
_PORTS = {"https": 443, "http": 80}


class Target(NamedTuple):
    """Where a URL leads, as far as it says itself."""

    url: str
    secure: bool
    host: str
    port: int


def parsed(url: str, allow_private: bool) -> Target:
    """What stands in a URL. Raises ValueError with what is wrong with it, and never the URL itself."""
    if not url or len(url) > MOST_URL_CHARS:
        raise ValueError(f"must be 1 to {MOST_URL_CHARS} characters")
    # Whatever urlsplit drops or leaves to guess is refused, line breaks above all.
    if not url.isascii() or any(c <= " " or c in '\\"<>^`{|}\x7f' for c in url):
        raise ValueError("must hold only characters of a URL in ASCII")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("is no URL") from None
    if parts.scheme not in _PORTS or not parts.hostname or port == 0:
        raise ValueError("must be an https URL with a host")
    if parts.scheme != "https" and not allow_private:
        raise ValueError("must be an https URL")
    if "@" in parts.netloc:
        raise ValueError("must hold no user and no password")
    if "#" in url:
        raise ValueError("must hold no fragment")
    if "%" in parts.netloc:
        raise ValueError("must name its host plainly")
    return Target(url, parts.scheme == "https", parts.hostname, port or _PORTS[parts.scheme])


def allowed(address: str, allow_private: bool) -> bool:
    """Whether an address may be sent to."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip in _METADATA:
        return False
    if not allow_private:
        return is_public(address)
    return not (ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip == ipaddress.ip_address("255.255.255.255"))


async def checked(sender: Sender, target: Target, allow_private: bool) -> list[str]:
    """Addresses of the target, all of which may be sent to. Raises SendFailed (unknown_host, address_refused)."""
    addresses = await sender.addresses(target.host, target.port)
    # One private address among public ones is how rebinding begins; it is nothing that a receiver needs.
    if not all(allowed(address, allow_private) for address in addresses):
        raise SendFailed("address_refused")
    return addresses

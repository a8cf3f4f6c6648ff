"""IP addresses: which are of the public internet, and which a text or a connection means."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
_PUBLIC_IPV6 = IPv6Network("2000::/3")  # all that is given out


def address_of(text: str) -> IPAddress:
    """Return the address that a text holds; one of IPv4 that is written as IPv6 comes as itself.

    Raises:
        ValueError: It holds none.
    """
    found = ip_address(text)
    return getattr(found, "ipv4_mapped", None) or found


def network_of(text: str) -> IPNetwork:
    """Return the network that a text holds, 192.0.2.0/24 say; an address is a network of one.

    Raises:
        ValueError: It holds none, or an address with more bits than the mask leaves.
    """
    found = ip_network(text)
    if isinstance(found, IPv6Network) and found.subnet_of(_MAPPED):
        return IPv4Network((int(found.network_address) & 0xFFFFFFFF, found.prefixlen - 96))
    return found


def address_of_host(host: str) -> IPAddress | None:
    """Return the address that the host of a URL is, or None if it is a name.

    Takes also what the C library takes for an IPv4 address: 127.1, 0x7f.1, 2130706433.
    """
    try:
        return address_of(host)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeEncodeError):
        return None


def is_public(address: IPAddress) -> bool:
    """Tell whether an address is one of the public internet.

    Loopback, private, link-local, multicast and reserved ones are not, in whichever form of IPv6
    they are wrapped: mapped, 6to4, NAT64.
    """
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast and not address.is_reserved
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    wrapped = address.ipv4_mapped or address.sixtofour
    if wrapped is not None:
        return is_public(wrapped)
    return address in _PUBLIC_IPV6 and address.is_global

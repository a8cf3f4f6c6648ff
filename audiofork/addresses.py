"""IP addresses: parses them from text and hosts, and decides which are public."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
_MULTICAST_IPV4 = IPv4Network("224.0.0.0/4")
_PUBLIC_IPV6 = IPv6Network("2000::/3")  # all that IANA has allocated

# The IANA IPv4 and IPv6 Special-Purpose Address Registries of 2025 (the last entry was
# 100:0:0:1::/64): whether each block is globally reachable. N/A in a registry counts as False. The
# smallest block that holds an address decides. They are listed here because `ipaddress` differs
# from one release of Python to the next.
_SPECIAL: dict[str, bool] = {
    "0.0.0.0/8": False,  # "This network"
    "10.0.0.0/8": False,  # Private-Use
    "100.64.0.0/10": False,  # Shared Address Space
    "127.0.0.0/8": False,  # Loopback
    "169.254.0.0/16": False,  # Link Local
    "172.16.0.0/12": False,  # Private-Use
    "192.0.0.0/24": False,  # IETF Protocol Assignments, 192.0.0.8 (dummy address) among them
    "192.0.0.9/32": True,  # Port Control Protocol Anycast
    "192.0.0.10/32": True,  # Traversal Using Relays around NAT Anycast
    "192.0.2.0/24": False,  # Documentation (TEST-NET-1)
    "192.31.196.0/24": True,  # AS112-v4
    "192.52.193.0/24": True,  # AMT
    "192.88.99.0/24": False,  # Deprecated (6to4 Relay Anycast), 192.88.99.2 (6a44) among them
    "192.168.0.0/16": False,  # Private-Use
    "192.175.48.0/24": True,  # Direct Delegation AS112 Service
    "198.18.0.0/15": False,  # Benchmarking
    "198.51.100.0/24": False,  # Documentation (TEST-NET-2)
    "203.0.113.0/24": False,  # Documentation (TEST-NET-3)
    "240.0.0.0/4": False,  # Reserved, 255.255.255.255 (Limited Broadcast) among them
    "::/128": False,  # Unspecified Address
    "::1/128": False,  # Loopback Address
    "64:ff9b:1::/48": False,  # IPv4-IPv6 Translat. for local use
    "100::/64": False,  # Discard-Only Address Block
    "100:0:0:1::/64": False,  # Dummy IPv6 Prefix
    "2001::/23": False,  # IETF Protocol Assignments
    "2001:1::1/128": True,  # Port Control Protocol Anycast
    "2001:1::2/128": True,  # Traversal Using Relays around NAT Anycast
    "2001:1::3/128": True,  # DNS-SD Service Registration Protocol Anycast
    "2001:2::/48": False,  # Benchmarking
    "2001:3::/32": True,  # AMT
    "2001:4:112::/48": True,  # AS112-v6
    "2001:10::/28": False,  # Deprecated (ORCHID)
    "2001:20::/28": True,  # ORCHIDv2
    "2001:30::/28": True,  # Drone Remote ID Protocol Entity Tags
    "2001:db8::/32": False,  # Documentation
    "2620:4f:8000::/48": True,  # Direct Delegation AS112 Service
    "3fff::/20": False,  # Documentation
    "5f00::/16": False,  # Segment Routing (SRv6) SIDs
    "fc00::/7": False,  # Unique-Local
    "fe80::/10": False,  # Link-Local Unicast
}
_BLOCKS = sorted(
    ((ip_network(block), reachable) for block, reachable in _SPECIAL.items()),
    key=lambda one: -one[0].prefixlen,
)


def address_of(text: str) -> IPAddress:
    """Return the address that a text holds; an IPv4-mapped IPv6 address becomes the IPv4 one.

    Raises:
        ValueError: The text is no address.
    """
    found = ip_address(text)
    return getattr(found, "ipv4_mapped", None) or found


def is_among(text: str, networks: tuple[IPNetwork, ...]) -> bool:
    """Return whether the address in a text belongs to one of some networks; no text does not."""
    return bool(text) and any(address_of(text) in network for network in networks)


def network_of(text: str) -> IPNetwork:
    """Return the network that a text holds, such as 192.0.2.0/24; an address is a network of one.

    Raises:
        ValueError: The text is no network, or its address has bits set beyond the mask.
    """
    found = ip_network(text)
    if isinstance(found, IPv6Network) and found.subnet_of(_MAPPED):
        return IPv4Network((int(found.network_address) & 0xFFFFFFFF, found.prefixlen - 96))
    return found


def address_of_host(host: str) -> IPAddress | None:
    """Return the address that the host of a URL stands for; None: it is a name.

    Accepts the forms of IPv4 that the C library does: 127.1, 0x7f.1, 2130706433.
    """
    try:
        return address_of(host)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeEncodeError):
        return None


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine alone, as far as that shows without a look-up."""
    address = address_of_host(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def is_public(address: IPAddress) -> bool:
    """Return whether an address belongs to the public internet.

    Loopback, private, link-local, multicast and reserved addresses do not; nor do IPv6 addresses
    that contain one: mapped, 6to4, Teredo, NAT64.
    """
    if isinstance(address, IPv6Address) and (wrapped := _wrapped_in(address)):
        return all(is_public(one) for one in wrapped)
    for block, reachable in _BLOCKS:
        if address in block:
            return reachable
    if isinstance(address, IPv4Address):
        return address not in _MULTICAST_IPV4
    return address in _PUBLIC_IPV6


def _wrapped_in(address: IPv6Address) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses that an IPv6 address contains, to which packets for it may go."""
    if address in _NAT64:
        return (IPv4Address(int(address) & 0xFFFFFFFF),)
    if address.teredo is not None:
        return address.teredo
    wrapped = address.ipv4_mapped or address.sixtofour
    return () if wrapped is None else (wrapped,)


def listen_tcp(host: str, port: int, backlog: int = 128) -> list[socket.socket]:
    """Return sockets that listen at all addresses of a host, at one port.

    Raises:
        OSError: One of the addresses cannot be used.
    """
    found = dict.fromkeys(
        (family, address)
        for family, _, _, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    )
    listening: list[socket.socket] = []
    try:
        for family, address in found:
            if port == 0 and listening:  # the port that the first one got
                address = (address[0], listening[0].getsockname()[1], *address[2:])
            one = socket.socket(family, socket.SOCK_STREAM)
            listening.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)
            one.listen(backlog)
    except BaseException:
        for one in listening:
            one.close()
        raise
    return listening

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest

from audiofork.addresses import address_of, address_of_host, is_public, network_of


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "2606:4700::1111",
        "::ffff:8.8.8.8",
        "2002:808:808::1",  # 6to4 of 8.8.8.8
        "64:ff9b::808:808",  # NAT64 of 8.8.8.8
        "2001:0:808:808::f7f7:f7f7",  # Teredo, of server and client 8.8.8.8
        # What the registries of IANA say is globally reachable, and what is beside a block.
        *("192.0.0.9", "192.0.0.10", "192.31.196.1", "192.52.193.1", "192.175.48.1"),
        *("2001:1::1", "2001:1::2", "2001:1::3", "2001:3::1", "2001:4:112::1", "2001:20::1"),
        *("2001:30::1", "2620:4f:8000::1", "2001:200::1", "3fff:1000::1", "2003::1"),
        *("1.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.0.0.1"),
        *("128.0.0.0", "172.15.0.1", "172.32.0.1", "192.0.1.0", "192.88.98.1", "192.88.100.1"),
        *("198.17.255.255", "198.20.0.0", "223.255.255.255", "192.169.0.1"),
    ],
)
def test_public_address_is_public(address: str) -> None:
    assert is_public(ip_address(address))
    assert is_public(address_of(address))


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.0.1", "10.0.0.1", "172.31.0.1", "192.168.0.1", "169.254.169.254"),
        *("0.0.0.0", "0.1.2.3", "100.64.0.1", "192.0.2.1", "198.18.0.1"),
        *("224.0.0.1", "239.1.2.3", "224.0.1.1", "240.0.0.1", "255.255.255.255"),
        *("::1", "::", "fe80::1", "fe80::1%1", "fc00::1", "fd12::1", "fec0::1"),
        *("ff02::1", "ff0e::1", "2001:db8::1", "2001:0:1::1", "4000::1", "100::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:224.0.1.1", "::127.0.0.1", "::8.8.8.8"),
        *("2002:7f00:1::1", "2002:a00:1::1", "2002:c0a8:1::1"),
        *("64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::808:808"),
        *("192.0.0.0", "192.0.0.7", "192.0.0.8", "192.0.0.11", "192.0.0.170", "192.0.0.171"),
        *("192.0.0.255", "192.88.99.1", "192.88.99.2", "198.51.100.1", "203.0.113.1"),
        *("100:0:0:1::1", "2001:1::", "2001:1::4", "2001:2::1", "2001:10::1", "2001:40::1"),
        *("2001:4:113::1", "2001:1ff:ffff::1", "3fff::1", "3fff:fff::1", "5f00::1"),
        *("::ffff:192.0.0.8", "2002:c000:8::1", "64:ff9b::c000:8", "64:ff9b::c058:6301"),
        "2001:0:808:808::80ff:fffe",  # Teredo, of the client 127.0.0.1
        "2001:0:a00:1::f7f7:f7f7",  # Teredo, of the server 10.0.0.1
    ],
)
def test_address_that_is_not_of_the_internet_is_not_public(address: str) -> None:
    assert not is_public(ip_address(address))
    assert not is_public(address_of(address))


def test_mapped_address_comes_as_itself() -> None:
    assert address_of("::ffff:10.0.0.1") == IPv4Address("10.0.0.1")
    assert address_of("::1") == IPv6Address("::1")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "0x7f.1", "0x7f000001", "2130706433"])
def test_host_that_the_c_library_takes_for_a_number_is_its_address(host: str) -> None:
    assert address_of_host(host) == IPv4Address("127.0.0.1")


@pytest.mark.parametrize("host", ["example.org", "localhost", "1.2.3.4.5", "0x7g.1", "\u0661"])
def test_host_that_is_a_name_has_no_address_yet(host: str) -> None:
    assert address_of_host(host) is None


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.0.2.0/24", IPv4Network("192.0.2.0/24")),
        ("192.0.2.7", IPv4Network("192.0.2.7/32")),
        ("2001:db8::/32", IPv6Network("2001:db8::/32")),
        ("::/0", IPv6Network("::/0")),
        ("::ffff:10.0.0.0/104", IPv4Network("10.0.0.0/8")),
        ("::ffff:10.0.0.7", IPv4Network("10.0.0.7/32")),
    ],
)
def test_network_of_a_text(text: str, network: IPv4Network | IPv6Network) -> None:
    assert network_of(text) == network


@pytest.mark.parametrize("text", ["192.0.2.1/24", "example.org", "7", "192.0.2.0/33", ""])
def test_text_that_is_no_network_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="has host bits set|does not appear to be an IPv4 or IPv6"):
        network_of(text)

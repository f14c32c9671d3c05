"""Which IP addresses are the public internet: the rule for every request that goes where somebody outside has said."""

import ipaddress

# A metadata service under an address that counts as public: Azure's host, which only Azure's machines reach.
_HOSTS = frozenset({ipaddress.ip_address("168.63.129.16")})
# NAT64, 6to4 and Teredo reach IPv4 addresses under a public IPv6 one.
_CARRIERS = tuple(ipaddress.ip_network(n) for n in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"))


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet. Raises ValueError for what is none."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif ip.is_reserved or ip.is_site_local or any(ip in network for network in _CARRIERS):
            # Reserved are also the old forms that carry an IPv4 address, as ::127.0.0.1.
            return False
    return ip.is_global and not ip.is_multicast and ip not in _HOSTS

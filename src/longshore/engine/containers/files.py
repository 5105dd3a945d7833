"""/etc/hosts, /etc/hostname and /etc/resolv.conf of containers."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path

from longshore.engine.errors import SystemFailure

_LOCAL = "127.0.0.1\tlocalhost\n"
_LOCAL6 = (
    "::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::\tip6-localnet\n"
    "ff00::\tip6-mcastprefix\n"
    "ff02::1\tip6-allnodes\n"
    "ff02::2\tip6-allrouters\n"
)
EMBEDDED_DNS = "127.0.0.11"


def hosts(own: Sequence[tuple[str, str]], extra: Sequence[tuple[str, str]] = (), *, ipv6: bool = True) -> str:
    """The content of /etc/hosts. own, extra: (address, names). ipv6: whether there is a loopback address of IPv6."""
    return _LOCAL + (_LOCAL6 if ipv6 else "") + "".join(f"{address}\t{names}\n" for address, names in (*extra, *own))


def host_resolver() -> tuple[list[str], list[str], list[str]]:
    """(nameservers, search, options) that the host itself uses; those of a local stub are replaced by the stub's own."""
    path = Path("/etc/resolv.conf")
    servers, search, options = _parse(path)
    if servers == ["127.0.0.53"]:
        servers, search, options = _parse(Path("/run/systemd/resolve/resolv.conf"))
    return servers, search, options


def _parse(path: Path) -> tuple[list[str], list[str], list[str]]:
    servers: list[str] = []
    search: list[str] = []
    options: list[str] = []
    try:
        text = path.read_text()
    except OSError:
        return servers, search, options
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "nameserver" and rest.split():
            servers.append(rest.split()[0])
        elif word in ("search", "domain"):
            search = rest.split()
        elif word == "options":
            options = rest.split()
    return servers, search, options


def check_nameservers(servers: Sequence[str]) -> None:
    """Raises SystemFailure with dockerd's text for what is no address."""
    for server in servers:
        try:
            ipaddress.ip_address(server)
        except ValueError:
            raise SystemFailure(f'bad nameserver address {server}: ParseAddr("{server}"): unable to parse IP') from None


def resolver_of(
    dns: Sequence[str], search: Sequence[str], options: Sequence[str], *, host_network: bool
) -> tuple[list[str], list[str], list[str]]:
    """The resolver settings of a container: what was asked for, else the host's without loopback servers."""
    servers, host_search, host_options = host_resolver()
    if dns:
        servers = list(dns)
    elif not host_network:
        servers = [s for s in servers if not loopback(s)]
    chosen_search = list(search) if search else host_search
    if list(search) == ["."]:
        chosen_search = []
    return servers, chosen_search, list(options) if options else host_options


def loopback(text: str) -> bool:
    """Whether a nameserver is the host's own; what is no address counts as one."""
    try:
        return ipaddress.ip_address(text.partition("%")[0]).is_loopback
    except ValueError:
        return True


def resolv_conf(servers: Sequence[str], search: Sequence[str], options: Sequence[str]) -> str:
    """The content of /etc/resolv.conf."""
    text = "".join(f"nameserver {server}\n" for server in servers)
    if search:
        text += f"search {' '.join(search)}\n"
    if options:
        text += f"options {' '.join(options)}\n"
    return text

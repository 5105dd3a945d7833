"""Links of the default bridge: a container finds another by an alias, in its hosts file and in its environment.

In user-defined networks a link is one more name there (networks.resolver) and none of this applies.
Source: docker run --link ("Legacy container links"); the texts of errors are dockerd's.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from longshore.engine.errors import EngineError, InvalidParameter, SystemFailure
from longshore.engine.networks.firewall import LinkRule

from .model import Container

if TYPE_CHECKING:
    from .service import ContainerService

Json = dict[str, Any]

_PREDEFINED = ("", "default", "bridge", "host", "none")


def parse(text: str) -> tuple[str, str]:
    """ "name:alias" or "name" as (name, alias); also the form that inspect shows, "/name:/holder/alias". Raises SystemFailure."""
    parts = text.split(":")
    if len(parts) > 2 or not parts[0]:
        raise SystemFailure(f"bad format for links: {text}")
    name = parts[0].lstrip("/")
    alias = parts[-1].rpartition("/")[2] if parts[0].startswith("/") else parts[-1]
    return name, alias.strip("/") or name


def register(service: ContainerService, host: Json) -> dict[str, str]:
    """The links of a new container, alias to the id of the container it leads to; HostConfig.Links keeps those of
    user-defined networks only. Raises InvalidParameter, SystemFailure."""
    found: dict[str, str] = {}
    if not host["Links"] or (host["NetworkMode"] not in _PREDEFINED):
        return found
    for text in host["Links"]:
        name, alias = parse(text)
        try:
            target = service.store.find(name)
            while target.network_mode.startswith("container:"):
                target = service.store.find(target.network_mode.partition(":")[2])
        except EngineError as error:
            raise InvalidParameter(f"could not get container for {name}: {error.message}") from None
        if target.network_mode == "host":
            raise InvalidParameter(
                "conflicting options: host type networking can't be used with links. This would result in undefined behavior"
            )
        # The first of two links by one name holds, as in dockerd.
        found.setdefault(alias, target.id)
    host["Links"] = None
    return found


def targets(service: ContainerService, container: Container) -> list[tuple[str, Container]]:
    """(alias, container) of a container's links that lead somewhere."""
    pairs = ((alias, service.store.get(id)) for alias, id in container.links.items())
    return [(alias, other) for alias, other in pairs if other is not None]


def shown(service: ContainerService, container: Container) -> list[str] | None:
    """HostConfig.Links as inspect gives it."""
    listed = [f"{other.name}:{container.name}/{alias}" for alias, other in targets(service, container)]
    given: list[str] | None = container.host["Links"]
    return listed or given


def names(service: ContainerService, container: Container) -> list[str]:
    """The names under which links of other containers lead to this one."""
    return [
        f"{other.name}/{alias}" for other in service.store for alias, id in other.links.items() if id == container.id
    ]


def find(service: ContainerService, name: str) -> tuple[Container, str]:
    """(holder, alias) of a link's name, "holder/alias". Raises SystemFailure."""
    full = "/" + name.lstrip("/")
    parent, _, alias = full.rpartition("/")
    if not parent:
        raise SystemFailure("Conflict, cannot remove the default link name of the container")
    try:
        holder = service.store.find(parent)
    except EngineError:
        raise SystemFailure(f"Cannot get parent {parent} for link name {full}") from None
    return holder, alias


def environment(service: ContainerService, container: Container) -> list[str]:
    """The variables that tell a container where its links lead: ALIAS_NAME, ALIAS_PORT_80_TCP and so on.

    Raises SystemFailure for a link to a container that does not run or has no address in the default network.
    """
    own = container.networks.get("bridge")
    if own is None:
        return []
    result: list[str] = []
    for alias, other in targets(service, container):
        full = f"{container.name}/{alias}"
        if not other.state.running:
            raise SystemFailure(f"Cannot link to a non running container: {other.name} AS {full}")
        settings = other.networks.get("bridge")
        if settings is None:
            raise SystemFailure(f"container {other.id} not attached to default bridge network")
        result += variables(
            full, settings["IPAddress"], other.config["Env"] or [], list(other.config.get("ExposedPorts") or {})
        )
    return result


def variables(name: str, address: str, env: list[str], exposed: list[str]) -> list[str]:
    """The variables of one link. name: "/holder/alias"; env and exposed: of the container it leads to."""
    alias = name.rpartition("/")[2].upper().replace("-", "_")
    ports = []
    for text in exposed:
        number, _, protocol = text.partition("/")
        if number.isdecimal():
            ports.append((protocol or "tcp", int(number)))
    ports.sort(key=lambda port: (port[0] != "tcp", port))
    result: list[str] = []
    if ports:
        result.append(f"{alias}_PORT={ports[0][0]}://{address}:{ports[0][1]}")
    for protocol, port in ports:
        prefix = f"{alias}_PORT_{port}_{protocol.upper()}"
        result += [
            f"{prefix}={protocol}://{address}:{port}",
            f"{prefix}_ADDR={address}",
            f"{prefix}_PORT={port}",
            f"{prefix}_PROTO={protocol}",
        ]
    for (protocol, first), (_, end) in _runs(ports):
        prefix = f"{alias}_PORT_{first}_{protocol.upper()}"
        result += [
            f"{prefix}_START={protocol}://{address}:{first}",
            f"{prefix}_PORT_START={first}",
            f"{prefix}_END={protocol}://{address}:{end}",
            f"{prefix}_PORT_END={end}",
        ]
    result.append(f"{alias}_NAME={name}")
    for entry in env:
        key, equals, value = entry.partition("=")
        if equals and key not in ("HOME", "PATH"):
            result.append(f"{alias}_ENV_{key}={value}")
    return result


def _runs(ports: list[tuple[str, int]]) -> list[tuple[tuple[str, int], tuple[str, int]]]:
    """(first, last) of each row of two or more consecutive ports of one protocol."""
    rows: list[list[tuple[str, int]]] = []
    for port in ports:
        if rows and rows[-1][-1] == (port[0], port[1] - 1):
            rows[-1].append(port)
        else:
            rows.append([port])
    return [(row[0], row[-1]) for row in rows if len(row) > 1]


def hosts(service: ContainerService, container: Container) -> list[tuple[str, str]]:
    """(address, names) for the hosts file of a container."""
    entries = []
    for alias, other in targets(service, container):
        address = next((s["IPAddress"] for s in other.networks.values() if s["IPAddress"]), "")
        if address:
            entries.append((address, " ".join(dict.fromkeys([alias, other.config["Hostname"], other.name[1:]]))))
    return entries


def permit(service: ContainerService, container: Container) -> None:
    """Let a running container reach the exposed ports of those that it links to, where the default bridge keeps
    containers apart (icc). Raises NftablesError."""
    network = service.networks.resolve("bridge")
    if network.options.get("com.docker.network.bridge.enable_icc") != "false":
        return
    own = service.networks.connected(network, container)
    if own is None or not own.ipv4:
        return
    rules = []
    for _, other in targets(service, container):
        address: str = (other.networks.get("bridge") or {}).get("IPAddress") or ""
        for text in (other.config.get("ExposedPorts") or {}) if address else ():
            number, _, protocol = text.partition("/")
            if number.isdecimal():
                rules.append(LinkRule(own.ipv4, address, protocol or "tcp", int(number)))
    service.networks.publishing.link(own, rules)


def forgotten(service: ContainerService, holder: Container, alias: str) -> None:
    """A link has been taken from a container: a running one has no name and no way there any more."""
    if not holder.state.running:
        return
    permit(service, holder)
    path = holder.folder / "hosts"
    with contextlib.suppress(OSError):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if line.split()[1:2] != [alias]))


def moved(service: ContainerService, container: Container) -> None:
    """Tell the running containers that link to this one of its address, in their hosts files."""
    address = (container.networks.get("bridge") or {}).get("IPAddress")
    if not address:
        return
    for other in service.store:
        if not other.state.running:
            continue
        aliases = {alias for alias, id in other.links.items() if id == container.id}
        if aliases:
            permit(service, other)
            with contextlib.suppress(OSError):
                _readdress(other, aliases, address)


def _readdress(holder: Container, aliases: set[str], address: str) -> None:
    # Written in place: the file is bound into the container.
    path = holder.folder / "hosts"
    lines = path.read_text().splitlines(keepends=True)
    for number, line in enumerate(lines):
        words = line.split()
        if len(words) > 1 and words[1] in aliases:
            lines[number] = f"{address}\t{' '.join(words[1:])}\n"
    path.write_text("".join(lines))

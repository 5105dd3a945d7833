"""Host ports for containers: chosen, held by a bound socket so that nobody else takes them, and rendered as rules."""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Any

from longshore.engine.errors import SystemFailure

from .carrying import Carrier
from .firewall import PortRule

Json = dict[str, Any]

_KINDS = {"tcp": (socket.SOCK_STREAM, 0), "udp": (socket.SOCK_DGRAM, 0), "sctp": (socket.SOCK_SEQPACKET, 132)}


def _host_ip(text: str) -> str:
    """The address of a binding; what is no address means all, as in dockerd."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""


class Ports:
    """The host ports of all containers of this engine. carry: whether what netfilter cannot translate is carried too."""

    def __init__(self, *, carry: bool = True) -> None:
        self._carry = carry
        self._carriers: dict[tuple[str, str, int], Carrier] = {}
        self._held: dict[tuple[str, str, int], list[socket.socket]] = {}
        self._owner: dict[str, list[tuple[str, str, int]]] = {}

    def _taken(self, protocol: str, ip: str, port: int) -> bool:
        for other_protocol, other_ip, other_port in self._held:
            if other_protocol == protocol and other_port == port and (not ip or not other_ip or ip == other_ip):
                return True
        return False

    def _bind(self, protocol: str, ip: str, port: int) -> tuple[int, list[socket.socket]]:
        """Bind a host port (0: any). Returns the port and the sockets that hold it."""
        kind, number = _KINDS[protocol]
        sockets: list[socket.socket] = []
        addresses = [ip] if ip else ["0.0.0.0", "::"]
        try:
            for address in addresses:
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                try:
                    sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, number)
                except OSError as error:
                    if error.errno == errno.EAFNOSUPPORT and len(addresses) > 1 and family == socket.AF_INET6:
                        continue
                    raise
                sockets.append(sock)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                if protocol != "udp":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    sock.bind((address, port))
                except OSError as error:
                    if error.errno == errno.EADDRNOTAVAIL and len(addresses) > 1 and family == socket.AF_INET6:
                        sockets.pop().close()
                        continue
                    raise
                port = port or sock.getsockname()[1]
                if protocol == "tcp":
                    # A port that is bound but does not listen could still be bound by another with SO_REUSEADDR.
                    sock.listen(1)
        except OSError:
            for sock in sockets:
                sock.close()
            raise
        return port, sockets

    def take(self, owner: str, protocol: str, binding: Json) -> tuple[str, int]:
        """Take the host port of one binding; returns (address, port). Raises SystemFailure with dockerd's text."""
        if protocol not in _KINDS:
            raise SystemFailure("unknown protocol")
        ip = _host_ip(binding.get("HostIp") or "")
        if ip in ("0.0.0.0", "::"):
            ip = "" if ip == "0.0.0.0" else ip
        text = binding.get("HostPort") or ""
        low, _, high = text.partition("-")
        first = int(low or 0)
        last = int(high or first)
        shown = ip or "0.0.0.0"
        error: OSError | None = None
        if first == 0:
            for _ in range(64):
                try:
                    port, sockets = self._bind(protocol, ip, 0)
                except OSError as failure:
                    error = failure
                    if failure.errno != errno.EADDRINUSE:
                        break
                    continue
                return self._keep(owner, protocol, ip, port, sockets)
        for port in range(first, last + 1) if first else ():
            if self._taken(protocol, ip, port):
                if first == last:
                    raise SystemFailure(f"Bind for {ip or '::'}:{port} failed: port is already allocated")
                continue
            try:
                _, sockets = self._bind(protocol, ip, port)
            except OSError as failure:
                error = failure
                continue
            return self._keep(owner, protocol, ip, port, sockets)
        if error is None:
            raise SystemFailure(f"Bind for {ip or '::'}:{first} failed: port is already allocated")
        reason = (error.strerror or str(error)).lower()
        if error.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
            raise SystemFailure(
                f"error starting userland proxy: failed to listen on {shown}:{first}: protocol not supported"
            )
        raise SystemFailure(f"failed to bind host port {shown}:{first}/{protocol}: {reason}")

    def _keep(self, owner: str, protocol: str, ip: str, port: int, sockets: list[socket.socket]) -> tuple[str, int]:
        key = (protocol, ip, port)
        self._held[key] = sockets
        self._owner.setdefault(owner, []).append(key)
        return ip, port

    def give(self, owner: str, other: str) -> None:
        """Let another owner have all ports of one."""
        self._owner.setdefault(other, []).extend(self._owner.pop(owner, []))

    def lead(self, shown: Json, ipv4: str, ipv6: str) -> None:
        """Where the taken ports of a container (NetworkSettings.Ports) lead: "" for a family that it has no address of."""
        for port, bindings in shown.items():
            number, _, protocol = port.partition("/")
            for binding in bindings or []:
                host = int(binding["HostPort"] or 0)
                keys = [(protocol, ip, host) for ip in ("", binding["HostIp"])]
                key = next((key for key in keys if key in self._held), None)
                if key is None:
                    continue
                address = (ipv6 or ipv4) if ":" in binding["HostIp"] else (ipv4 or ipv6)
                target = (address, int(number)) if address and self._carry else None
                if key in self._carriers:
                    self._carriers[key].target = target
                else:
                    self._carriers[key] = Carrier(protocol, self._held[key], target)

    def release(self, owner: str) -> None:
        """Give all ports of an owner back."""
        for key in self._owner.pop(owner, []):
            carrier = self._carriers.pop(key, None)
            if carrier is not None:
                carrier.close()
            for sock in self._held.pop(key, []):
                sock.close()

    def close(self) -> None:
        for owner in list(self._owner):
            self.release(owner)


def rules(shown: Json, ipv4: str, ipv6: str) -> list[PortRule]:
    """The rules behind NetworkSettings.Ports ({"80/tcp": [{"HostIp", "HostPort"}]}), a binding to the address of its
    family; "" for a family that the container has no address of."""
    result = []
    for port, bindings in shown.items():
        number, _, protocol = port.partition("/")
        for binding in bindings or []:
            container_ip = ipv6 if ":" in binding["HostIp"] else ipv4
            if container_ip:
                result.append(
                    PortRule(protocol, binding["HostIp"], int(binding["HostPort"] or 0), container_ip, int(number))
                )
    return result

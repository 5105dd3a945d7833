"""What policies mean for the pods of this node, as rules with owners. Pure.

A pod that a policy selects is isolated in that policy's directions: its address is in a verdict map that leads to a chain with
everything that any of its policies allows, and a drop at its end. Pods with the same allowances share the chain. Peers are sets of
addresses, one a selector, kept up as pods come and go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable

from longshore.machinery.ruleset import Element, Rules, RuleSet
from longshore.node.policy.model import Allowance, Block, Group, Labels, Pod, Policy, Port

ANCHORS = ("forward",)


def rule_set(table: str, family: int) -> RuleSet:
    """An empty table of one IP family."""
    ip, address = ("ip", "ipv4_addr") if family == 4 else ("ip6", "ipv6_addr")
    # Packets of the node itself and to it are always allowed, so only what is forwarded is looked at. What goes in a flow's
    # first direction is looked at packet by packet: a policy that comes later cuts what it does not allow.
    text = f"""table {ip} {table} {{
  comment "NetworkPolicies, by Longshore"
  map ingress {{ type {address} : verdict; }}
  map egress {{ type {address} : verdict; }}
  set themselves {{ type {address} . {address}; }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    ct direction reply accept
    ct state related accept
    {ip} saddr . {ip} daddr @themselves accept
    {ip} saddr vmap @egress
    {ip} daddr vmap @ingress
  }}
}}
"""
    return RuleSet(ip, table, text, anchors=ANCHORS)


def digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]


class PolicyState:
    """Pods, namespaces and policies as they are; `take()` gives the owners whose rules have changed."""

    def __init__(self) -> None:
        self.pods: dict[str, Pod] = {}
        self.namespaces: dict[str, Labels] = {}
        self.policies: dict[str, Policy] = {}
        self._members: dict[Group, set[str]] = {}
        self._users: dict[Group, set[str]] = {}
        # Which named ports of a group's members egress rules speak of.
        self._named: dict[Group, dict[tuple[str, str], int]] = {}
        self._used_by_policy: dict[str, tuple[set[Group], set[tuple[Group, str, str]]]] = {}
        self._dirty_pods: set[str] = set()
        self._dirty_groups: set[Group] = set()

    # What the API server says.

    def set_pod(self, key: str, pod: Pod | None) -> None:
        """A pod as it is now; None: it has no address of its own (any more)."""
        old = self.pods.get(key)
        if pod == old:
            return
        if pod is None:
            self.pods.pop(key, None)
        else:
            self.pods[key] = pod
        for group, members in self._members.items():
            was = key in members
            now = pod is not None and group.matches(pod, self.namespaces)
            if was or now:
                self._dirty_groups.add(group)
                (members.add if now else members.discard)(key)
        if (pod is not None and pod.local) or (old is not None and old.local):
            self._dirty_pods.add(key)

    def set_namespace(self, name: str, labels: Labels | None) -> None:
        if labels == self.namespaces.get(name):
            return
        if labels is None:
            self.namespaces.pop(name, None)
        else:
            self.namespaces[name] = labels
        for group, members in self._members.items():
            if group.namespaces:
                for key, pod in self.pods.items():
                    if pod.namespace == name:
                        self._dirty_groups.add(group)
                        (members.add if group.matches(pod, self.namespaces) else members.discard)(key)

    def set_policy(self, key: str, policy: Policy | None) -> None:
        old = self.policies.get(key)
        if policy == old:
            return
        for one in (old, policy):
            if one is not None:
                self._dirty_pods |= {
                    k for k, pod in self.pods.items() if pod.local and one.selects.matches(pod, self.namespaces)
                }
        groups, named = self._used_by_policy.pop(key, (set(), set()))
        for group in groups:
            self._users[group].discard(key)
        for group, protocol, name in named:
            self._named[group][(protocol, name)] -= 1
        if policy is None:
            self.policies.pop(key, None)
        else:
            self.policies[key] = policy
            self._use(key, policy)
        for group in groups:
            if not self._users[group]:
                del self._users[group], self._members[group]
                self._named.pop(group, None)
            self._dirty_groups.add(group)

    def _use(self, key: str, policy: Policy) -> None:
        """Keep the sets of a policy's peers."""
        groups: set[Group] = set()
        named: set[tuple[Group, str, str]] = set()
        for allowance in (*(policy.ingress or ()), *(policy.egress or ())):
            groups |= {peer for peer in allowance.peers or () if isinstance(peer, Group)}
        for allowance in policy.egress or ():
            for port in allowance.ports or ():
                if port.name:
                    for peer in allowance.peers if allowance.peers is not None else (EVERYBODY,):
                        if isinstance(peer, Group):
                            groups.add(peer)
                            named.add((peer, port.protocol, port.name))
        self._used_by_policy[key] = groups, named
        for group in groups:
            self._users.setdefault(group, set()).add(key)
            if group not in self._members:
                self._members[group] = {k for k, pod in self.pods.items() if group.matches(pod, self.namespaces)}
            self._dirty_groups.add(group)
        for group, protocol, name in named:
            table = self._named.setdefault(group, {})
            table[(protocol, name)] = table.get((protocol, name), 0) + 1

    # What follows from it.

    def take(self, family: int) -> list[tuple[Hashable, Rules | None]]:
        """The owners that have changed since `clear`, with their rules in one IP family."""
        changes: list[tuple[Hashable, Rules | None]] = [(g, self._group_rules(g, family)) for g in self._dirty_groups]
        changes += [(key, self._pod_rules(key, family)) for key in self._dirty_pods]
        return changes

    def clear(self) -> None:
        self._dirty_pods.clear()
        self._dirty_groups.clear()

    @property
    def dirty(self) -> bool:
        return bool(self._dirty_pods or self._dirty_groups)

    def _group_rules(self, group: Group, family: int) -> Rules | None:
        members = self._members.get(group)
        if members is None:
            return None
        rules = Rules(sets=group_sets(group, self._named.get(group, {}), family))
        name = set_name(group)
        for key in members:
            pod = self.pods[key]
            for ip in pod.ips:
                if (":" in ip) != (family == 6):
                    continue
                rules.elements.add(Element(name, ip))
                for (protocol, port), count in self._named.get(group, {}).items():
                    if count:
                        rules.elements.update(
                            Element(named_set(group, protocol, port), f"{ip} . {number}")
                            for word, kind, number in pod.ports
                            if (word, kind) == (port, protocol)
                        )
        return rules

    def _pod_rules(self, key: str, family: int) -> Rules | None:
        pod = self.pods.get(key)
        if pod is None or not pod.local:
            return None
        policies = [p for p in self.policies.values() if p.selects.matches(pod, self.namespaces)]
        ips = [ip for ip in pod.ips if (":" in ip) == (family == 6)]
        if not policies or not ips:
            return None
        rules = Rules()
        for direction in ("ingress", "egress"):
            spoken = [(p.key, getattr(p, direction)) for p in policies if getattr(p, direction) is not None]
            if not spoken:
                continue
            allowances = [allowance for _, found in sorted(spoken) for allowance in found]
            body = tuple(dict.fromkeys(self._body(allowances, direction, pod, family, rules)))
            name = f"{direction}-{digest(body)}"
            rules.chains[name] = (*body, "drop")
            rules.elements.update(Element(direction, ip, f"jump {name}") for ip in ips)
        rules.elements.update(Element("themselves", f"{ip} . {ip}") for ip in ips)
        return rules

    def _body(
        self, allowances: Iterable[Allowance], direction: str, pod: Pod, family: int, rules: Rules
    ) -> Iterable[str]:
        ip = "ip" if family == 4 else "ip6"
        side = "saddr" if direction == "ingress" else "daddr"
        for allowance in allowances:
            numbers = _port_words(allowance.ports, pod if direction == "ingress" else None)
            for peer in allowance.peers if allowance.peers is not None else (None,):
                if isinstance(peer, Block) and peer.family != family:
                    continue
                where = ""
                if isinstance(peer, Group):
                    where = f"{ip} {side} @{set_name(peer)} "
                    rules.sets |= group_sets(peer, self._named.get(peer, {}), family)
                elif isinstance(peer, Block):
                    where = f"{ip} {side} {peer.cidr} "
                    excepts = [e for e in peer.excepts if (":" in e) == (family == 6)]
                    if excepts:
                        where += f"{ip} {side} != {{ {', '.join(excepts)} }} "
                for words in numbers:
                    yield f"{where}{words}return"
                if direction == "egress" and not isinstance(peer, Block):
                    group = peer if peer is not None else EVERYBODY
                    for port in allowance.ports or ():
                        if port.name:
                            rules.sets |= group_sets(group, self._named.get(group, {}), family)
                            named = named_set(group, port.protocol, port.name)
                            yield f"{ip} daddr . {port.protocol} dport @{named} return"


EVERYBODY = Group("", "{}", "{}")


def set_name(group: Group) -> str:
    return f"pods-{digest(tuple(group))}"


def named_set(group: Group, protocol: str, name: str) -> str:
    return f"ports-{digest((*group, protocol, name))}"


def group_sets(group: Group, named: dict[tuple[str, str], int], family: int) -> dict[str, str]:
    """The definitions of a group's sets."""
    address = "ipv4_addr" if family == 4 else "ipv6_addr"
    found = {set_name(group): f"set {{ type {address}; }}"}
    for (protocol, name), count in named.items():
        if count:
            found[named_set(group, protocol, name)] = f"set {{ type {address} . inet_service; }}"
    return found


def _port_words(ports: tuple[Port, ...] | None, pod: Pod | None) -> list[str]:
    """Matches on protocols and ports; named ones as the pod's containers name them (pod None: left to sets)."""
    if ports is None:
        return [""]
    numbers: dict[str, list[str]] = {}
    found: list[str] = []
    for port in ports:
        if port.name:
            if pod is not None:
                wanted = [n for name, kind, n in pod.ports if (name, kind) == (port.name, port.protocol)]
                numbers.setdefault(port.protocol, []).extend(map(str, wanted))
        elif port.first:
            text = str(port.first) if port.first == port.last else f"{port.first}-{port.last}"
            numbers.setdefault(port.protocol, []).append(text)
        else:
            found.append(f"meta l4proto {port.protocol} ")
    for protocol, texts in numbers.items():
        # One match a port: ranges of one policy may overlap, which elements of one set may not.
        found += [f"{protocol} dport {text} " for text in dict.fromkeys(texts)]
    return found

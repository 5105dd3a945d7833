"""Protobuf messages and gRPC services from a compact text table: no protoc, no generated code.

A table has a line for each service, enum and message; a line that begins with a space continues the one before.

    service KV: Range, Watch(~WatchRequest)~WatchResponse     # a bare name means NameRequest and NameResponse; ~ streams
    enum Protocol: TCP UDP SCTP                               # numbered from 0
    PortMapping: 1 protocol Protocol, 2 container_port int32  # number, name, type
    Pod: 1 names *string, 2 labels {string:string}            # *T repeated, {K:V} map
    RequestOp: 1 range RangeRequest @request                  # @name: member of a oneof
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_SCALARS = {
    name: getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{name.upper()}")
    for name in (
        "double", "float", "int64", "uint64", "int32", "fixed64", "fixed32", "bool", "string", "bytes", "uint32",
        "sfixed32", "sfixed64", "sint32", "sint64",
    )
}  # fmt: skip
_METHOD = re.compile(r"(\w+)(?:\((~?)([\w.]+)\)(~?)([\w.]+))?$")


@dataclass(frozen=True, slots=True)
class Method:
    """One gRPC method: its path on the wire, message classes, and which sides stream."""

    name: str
    path: str
    request: Any
    reply: Any
    client_streaming: bool
    server_streaming: bool


@dataclass(frozen=True, slots=True)
class Service:
    """One gRPC service; `name` is the full one ("runtime.v1.RuntimeService")."""

    name: str
    methods: dict[str, Method]


class Schema:
    """The messages, enums and services of one protobuf package, as attributes by their names.

    A message's attribute is its class; an enum's value is an attribute too (`schema.SANDBOX_READY`), as protobuf
    scopes enum values like their enum; a service's attribute is a `Service`. Raises ValueError for a wrong table.
    """

    def __init__(self, package: str, table: str) -> None:
        """package: protobuf package of the table's messages and services; table: see the module's text."""
        file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
        services: list[tuple[str, str]] = []
        fields: list[tuple[Any, str]] = []
        self.values: dict[str, int] = {}
        self.enums: dict[str, tuple[str, ...]] = {}
        for head, body in _lines(table):
            kind, _, name = head.rpartition(" ")
            if kind == "service":
                services.append((name, body))
            elif kind == "enum":
                enum = file.enum_type.add(name=name)
                self.enums[name] = tuple(body.split())
                for number, value in enumerate(self.enums[name]):
                    enum.value.add(name=value, number=number)
                    self.values[value] = number
            elif not kind:
                fields.append((file.message_type.add(name=name), body))
            else:
                raise ValueError(f"unknown kind of line: {head!r}")
        for message, body in fields:
            for field in filter(None, (part.strip() for part in body.split(","))):
                self._field(package, message, field)
        pool = descriptor_pool.DescriptorPool()
        pool.Add(file)
        self.messages: dict[str, Any] = {
            message.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{message.name}"))
            for message, _ in fields
        }
        self.services = {name: self._service(f"{package}.{name}", body) for name, body in services}

    def _field(self, package: str, message: Any, text: str) -> None:
        words = text.split()
        if len(words) not in (3, 4):
            raise ValueError(f"{message.name}: not a field: {text!r}")
        number, name, kind = words[:3]
        field = message.field.add(name=name, number=int(number), label=field_label(kind.startswith(("*", "{"))))
        if len(words) == 4:
            group = words[3].removeprefix("@")
            names = [oneof.name for oneof in message.oneof_decl]
            if group not in names:
                message.oneof_decl.add(name=group)
                names.append(group)
            field.oneof_index = names.index(group)
        if kind.startswith("{"):
            key, _, value = kind[1:-1].partition(":")
            entry = message.nested_type.add(name="".join(w[:1].upper() + w[1:] for w in name.split("_")) + "Entry")
            entry.options.map_entry = True
            for index, (part, of) in enumerate((("key", key), ("value", value)), 1):
                self._type(package, entry.field.add(name=part, number=index, label=field_label(False)), of)
            field.type = field.TYPE_MESSAGE
            field.type_name = f".{package}.{message.name}.{entry.name}"
        else:
            self._type(package, field, kind.removeprefix("*"))

    def _type(self, package: str, field: Any, kind: str) -> None:
        if kind in _SCALARS:
            field.type = _SCALARS[kind]
            return
        field.type = field.TYPE_ENUM if kind in self.enums else field.TYPE_MESSAGE
        field.type_name = f".{package}.{kind}"

    def _service(self, full: str, body: str) -> Service:
        methods: dict[str, Method] = {}
        for part in filter(None, (p.strip() for p in body.split(","))):
            match = _METHOD.match(part)
            if match is None:
                raise ValueError(f"{full}: not a method: {part!r}")
            name, upward, request, downward, reply = match.groups()
            request, reply = request or f"{name}Request", reply or f"{name}Response"
            methods[name] = Method(
                name, f"/{full}/{name}", self.messages[request], self.messages[reply], bool(upward), bool(downward)
            )
        return Service(full, methods)

    def __getattr__(self, name: str) -> Any:
        for known in (self.messages, self.values, self.services):
            if name in known:
                return known[name]
        raise AttributeError(f"no message, enum value or service {name!r} in this schema")

    def value_name(self, enum: str, number: int) -> str:
        """The name of an enum's value; an unknown number is shown as itself."""
        names = self.enums[enum]
        return names[number] if 0 <= number < len(names) else str(number)


def field_label(repeated: bool) -> int:
    """The descriptor's label of a field."""
    kind = descriptor_pb2.FieldDescriptorProto
    return int(kind.LABEL_REPEATED if repeated else kind.LABEL_OPTIONAL)


def _lines(table: str) -> list[tuple[str, str]]:
    joined: list[str] = []
    for raw in table.splitlines():
        line = raw.split("#", 1)[0].rstrip()
        if not line:
            continue
        if line[0].isspace():
            if not joined:
                raise ValueError("a table cannot begin with a continuation")
            joined[-1] += " " + line.strip()
        else:
            joined.append(line)
    result: list[tuple[str, str]] = []
    for line in joined:
        head, colon, body = line.partition(":")
        if not colon:
            raise ValueError(f"not a line of a table: {line!r}")
        result.append((head.strip(), body.strip()))
    return result

"""CEL source to a syntax tree (github.com/google/cel-spec, doc/langdef.md).

A node is a tuple: kind, position (offset in the source), and what belongs to the kind.
"""

from __future__ import annotations

import re
from typing import Any

Node = tuple[Any, ...]
MAX_DEPTH = 250


class SyntaxProblem(ValueError):
    """The source is no CEL; position is where that shows."""

    def __init__(self, position: int, text: str) -> None:
        super().__init__(text)
        self.position = position


_TOKENS = re.compile(
    r"""(?P<space>[ \t\r\n\f]+|//[^\n]*)
    |(?P<float>(?:\d+\.\d+(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|\.\d+(?:[eE][+-]?\d+)?))
    |(?P<int>0x[0-9a-fA-F]+[uU]?|\d+[uU]?)
    |(?P<string>[rRbB]{0,2}(?:\"\"\"(?s:.*?)\"\"\"|'''(?s:.*?)'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))
    |(?P<ident>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<quoted>`[A-Za-z0-9_.\-/ ]+`)
    |(?P<op>&&|\|\||==|!=|<=|>=|\[\?|\.\?|[-+*/%!<>?:.,()\[\]{}=|])""",
    re.VERBOSE,
)
_RAW_STRING = re.compile(r"([rRbB]*)(\"\"\"|'''|\"|')(.*)\2", re.DOTALL)
_ESCAPE = re.compile(
    r"\\(x[0-9a-fA-F]{2}|X[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-3][0-7]{2}|[abfnrtv\\?\"'`])"
)
_SIMPLE = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "\\": "\\",
    "?": "?",
    '"': '"',
    "'": "'",
    "`": "`",
}
_BINARY = ({"||"}, {"&&"}, {"<", "<=", ">=", ">", "==", "!=", "in"}, {"+", "-"}, {"*", "/", "%"})
RESERVED = frozenset(
    (
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    )
)


def _tokens(text: str) -> list[tuple[str, str, int]]:
    out = []
    at = 0
    while at < len(text):
        match = _TOKENS.match(text, at)
        if match is None:
            raise SyntaxProblem(at, f"token recognition error at: '{text[at]}'")
        kind = str(match.lastgroup)
        if kind != "space":
            out.append((kind, match[0], at))
        at = match.end()
    out.append(("end", "", len(text)))
    return out


def _unescape(prefix: str, body: str, at: int) -> Any:
    raw, binary = "r" in prefix.lower(), "b" in prefix.lower()
    if raw:
        return body.encode() if binary else body
    out = bytearray()
    end = 0
    for match in _ESCAPE.finditer(body):
        gap = body[end : match.start()]
        if "\\" in gap:
            raise SyntaxProblem(at, "unable to unescape string")
        out += gap.encode()
        code = match[1]
        if code[0] in "xX" or code.isdigit():
            number = int(code[1:], 16) if code[0] in "xX" else int(code, 8)
            out += bytes([number]) if binary else chr(number).encode()
        elif code[0] in "uU":
            out += chr(int(code[1:], 16)).encode()
        else:
            out += _SIMPLE[code].encode()
        end = match.end()
    if "\\" in body[end:]:
        raise SyntaxProblem(at, "unable to unescape string")
    out += body[end:].encode()
    return bytes(out) if binary else out.decode("utf-8", "surrogatepass")


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens = _tokens(text)
        self.index = 0
        self.depth = 0

    def peek(self) -> tuple[str, str, int]:
        return self.tokens[self.index]

    def take(self) -> tuple[str, str, int]:
        token = self.tokens[self.index]
        self.index += 1
        return token

    def accept(self, text: str) -> bool:
        kind, value, _ = self.peek()
        if value == text and kind in ("op", "ident"):
            self.index += 1
            return True
        return False

    def expect(self, text: str) -> int:
        kind, value, at = self.peek()
        if kind not in ("op", "ident") or value != text:
            raise SyntaxProblem(at, f"missing '{text}' at '{value or '<EOF>'}'")
        self.index += 1
        return at

    def expression(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise SyntaxProblem(self.peek()[2], "expression recursion limit exceeded: 250")
        try:
            condition = self.binary(0)
            _, _, at = self.peek()
            if self.accept("?"):
                yes = self.binary(0)
                self.expect(":")
                return ("cond", at, condition, yes, self.expression())
            return condition
        finally:
            self.depth -= 1

    def binary(self, level: int) -> Node:
        if level == len(_BINARY):
            return self.unary()
        left = self.binary(level + 1)
        while True:
            kind, value, at = self.peek()
            if value not in _BINARY[level] or kind not in ("op", "ident"):
                return left
            self.index += 1
            left = ("op", at, value, left, self.binary(level + 1))

    def unary(self) -> Node:
        _, value, at = self.peek()
        if value in ("!", "-") and self.peek()[0] == "op":
            self.index += 1
            if value == "-" and self.peek()[0] in ("int", "float") and self.peek()[2] == at + 1:
                kind, text, _ = self.take()
                return self.member(_number(kind, "-" + text, at))
            return ("not" if value == "!" else "neg", at, self.unary())
        return self.member(self.primary())

    def member(self, node: Node) -> Node:
        while True:
            _, value, at = self.peek()
            if self.accept(".") or self.accept(".?"):
                kind, name, where = self.take()
                if kind not in ("ident", "quoted"):
                    raise SyntaxProblem(where, f"no viable alternative at input '.{name}'")
                name = name.strip("`")
                if value == ".?":
                    node = ("optsel", at, node, name)
                elif self.accept("("):
                    node = ("mcall", self.tokens[self.index - 1][2], node, name, self.arguments(")"))
                else:
                    node = ("sel", at, node, name)
            elif self.accept("[") or self.accept("[?"):
                index = self.expression()
                self.expect("]")
                node = ("optidx" if value == "[?" else "idx", at, node, index)
            elif value == "{" and node[0] in ("id", "sel") and _is_message(_type_name(node)):
                self.take()
                node = ("msg", at, _type_name(node), self.fields())
            else:
                return node

    def fields(self) -> list[tuple[str, Node, bool]]:
        out = []
        while not self.accept("}"):
            optional = self.accept("?")
            kind, name, where = self.take()
            if kind not in ("ident", "quoted"):
                raise SyntaxProblem(where, f"mismatched input '{name}'")
            self.expect(":")
            out.append((name.strip("`"), self.expression(), optional))
            if not self.accept(","):
                self.expect("}")
                break
        return out

    def arguments(self, close: str) -> list[Node]:
        out: list[Node] = []
        while not self.accept(close):
            out.append(self.expression())
            if not self.accept(","):
                self.expect(close)
                break
        return out

    def primary(self) -> Node:
        kind, value, at = self.take()
        if kind in ("int", "float"):
            return _number(kind, value, at)
        if kind == "string":
            match = _RAW_STRING.fullmatch(value)
            assert match is not None
            text = _unescape(match[1], match[3], at)
            return ("lit", at, text, "bytes" if isinstance(text, bytes) else "string")
        if kind == "ident":
            if value in ("true", "false"):
                return ("lit", at, value == "true", "bool")
            if value == "null":
                return ("lit", at, None, "null_type")
            if value in RESERVED or value == "in":
                raise SyntaxProblem(at, f"reserved identifier: {value}")
            if self.accept("("):
                return ("call", self.tokens[self.index - 1][2], value, self.arguments(")"))
            return ("id", at, value)
        if value == "(":
            inner = self.expression()
            self.expect(")")
            return inner
        if value == "[":
            items: list[tuple[Node, bool]] = []
            while not self.accept("]"):
                optional = self.accept("?")
                items.append((self.expression(), optional))
                if not self.accept(","):
                    self.expect("]")
                    break
            return ("list", at, items)
        if value == "{":
            pairs: list[tuple[Node, Node, bool]] = []
            while not self.accept("}"):
                optional = self.accept("?")
                key = self.expression()
                self.expect(":")
                pairs.append((key, self.expression(), optional))
                if not self.accept(","):
                    self.expect("}")
                    break
            return ("map", at, pairs)
        if value == "." and self.peek()[0] == "ident":
            return self.primary()
        raise SyntaxProblem(at, f"mismatched input '{value or '<EOF>'}'")


def _is_message(name: str) -> bool:
    return name[:1].isupper() or name.rpartition(".")[2][:1].isupper()


def _type_name(node: Node) -> str:
    if node[0] == "id":
        return str(node[2])
    if node[0] == "sel":
        left = _type_name(node[2])
        return f"{left}.{node[3]}" if left else ""
    return ""


def _number(kind: str, text: str, at: int) -> Node:
    if kind == "float":
        return ("lit", at, float(text), "double")
    unsigned = text[-1] in "uU"
    value = int(text.rstrip("uU"), 16) if "0x" in text else int(text.rstrip("uU"))
    if unsigned:
        if not 0 <= value < 2**64:
            raise SyntaxProblem(at, "invalid uint literal")
        return ("lit", at, value, "uint")
    if not -(2**63) <= value < 2**63:
        raise SyntaxProblem(at, "invalid int literal")
    return ("lit", at, value, "int")


def parse(text: str) -> Node:
    """The tree of an expression; SyntaxProblem when it is none."""
    parser = _Parser(text)
    node = parser.expression()
    kind, value, at = parser.peek()
    if kind != "end":
        raise SyntaxProblem(at, f"mismatched input '{value}' expecting <EOF>")
    return node

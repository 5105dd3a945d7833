"""What the parsers of LogQL's parts share: the words, and where the next one is."""

from __future__ import annotations

from longshore.node.logs.logql.ast import LogQLError
from longshore.node.logs.logql.lexer import Word, place, words


class Cursor:
    """The words of a query, taken one after another."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.words = words(source)
        self.at = 0

    @property
    def next(self) -> Word:
        return self.words[self.at]

    def take(self) -> Word:
        word = self.words[self.at]
        self.at += 1
        return word

    def fail(self, wanted: str = "") -> LogQLError:
        word = self.next
        seen = "$end" if word.kind == "end" else (word.text if word.kind == "op" else word.kind.upper())
        more = f", expecting {wanted}" if wanted else ""
        return LogQLError(f"parse error at {place(self.source, word.position)}: syntax error: unexpected {seen}{more}")

    def is_(self, text: str, kind: str = "op") -> bool:
        return self.next.kind == kind and self.next.text == text

    def accept(self, text: str, kind: str = "op") -> bool:
        if self.is_(text, kind):
            self.at += 1
            return True
        return False

    def expect(self, text_or_kind: str) -> Word:
        word = self.next
        if word.kind == text_or_kind or (word.kind == "op" and word.text == text_or_kind):
            return self.take()
        raise self.fail(text_or_kind)

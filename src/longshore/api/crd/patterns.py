"""Go's regular expressions (RE2) in Python's syntax."""

from __future__ import annotations

import functools
import re

_POSIX = {
    "alnum": "A-Za-z0-9", "alpha": "A-Za-z", "ascii": r"\x00-\x7f", "blank": r"\t ", "cntrl": r"\x00-\x1f\x7f", "digit": "0-9",
    "graph": "!-~", "lower": "a-z", "print": " -~", "punct": r"!-/:-@\[-`{-~", "space": r"\t\n\v\f\r ", "upper": "A-Z", "word": r"\w",
    "xdigit": "0-9A-Fa-f",
}  # fmt: skip
# Letters, digits and so on of all scripts: what Python's classes come close to, for use within and outside of brackets.
_CATEGORIES = {"L": r"^\W\d_", "N": r"\d", "Nd": r"\d", "Lu": "A-Z\u00c0-\u00d6\u00d8-\u00de", "Ll": "a-z\u00df-\u00f6\u00f8-\u00ff"}  # fmt: skip
_FLAGS = re.compile(r"\(\?([imsU]*)(?:-([imsU]+))?([:)])")
_COUNT = re.compile(r"\{(\d+)(?:,(\d*))?\}")
_ESCAPE = re.compile(r"\\(x\{([0-9A-Fa-f]+)\}|[pP]\{(\^?)(\w+)\}|[pP](\w)|.)", re.DOTALL)
_LITERAL = frozenset("AabBCdDfnrsStvwWxzQE01234567")


class PatternError(ValueError):
    """A pattern that Go does not take; str() is Go's complaint."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"error parsing regexp: {what}: `{where}`")


@functools.lru_cache(maxsize=1024)
def compile_go(text: str) -> re.Pattern[str]:
    """The pattern as Go understands it. PatternError."""
    translated = translate(text)
    try:
        return re.compile(translated)
    except (re.error, OverflowError, RecursionError) as error:
        words = {
            "missing ), unterminated subpattern": "missing closing )",
            "unterminated character set": "missing closing ]",
            "nothing to repeat": "missing argument to repetition operator",
            "unbalanced parenthesis": "unexpected )",
        }
        said = str(getattr(error, "msg", error))
        raise PatternError(words.get(said, said), text) from None


def translate(text: str) -> str:
    """The pattern in Python's syntax. PatternError."""
    out: list[str] = []
    # Of every open group: the flags set in its midst, each a group of its own, and whether $ stands for ends of lines.
    opened: list[list[str]] = [[]]
    lines = [False]
    at, repeated = 0, ""
    while at < len(text):
        char = text[at]
        if char in "*+?" or (char == "{" and _COUNT.match(text, at)):
            found = _COUNT.match(text, at)
            token = found[0] if char == "{" and found else char
            if found and char == "{" and max(int(n) for n in found.groups() if n) > 1000:
                raise PatternError("invalid repeat count", token)
            if repeated and not (token == "?" and not repeated.endswith("?")):
                raise PatternError("invalid nested repetition operator", repeated + token)
            repeated += token
            out.append(token)
            at += len(token)
            continue
        repeated = ""
        if char == "\\":
            piece, at = _escaped(text, at, inside=False)
            out.append(piece)
            continue
        if char == "[":
            piece, at = _brackets(text, at)
            out.append(piece)
            continue
        at += 1
        if char == "(":
            at = _open(text, at - 1, out, opened, lines)
        elif char == ")":
            out.append(")" * len(opened.pop()) + ")")
            lines.pop()
            if not opened:
                raise PatternError("unexpected )", text)
        elif char == "|":
            out.append(")" * len(opened[-1]) + "|" + "".join(opened[-1]))
        elif char == "$":
            out.append("$" if lines[-1] else r"\Z")
        else:
            out.append(r"\{" if char == "{" else char)
    out.append(")" * len(opened[0]))
    return "(?a:" + "".join(out) + ")" if len(opened) == 1 else "".join(out)


def _open(text: str, at: int, out: list[str], opened: list[list[str]], lines: list[bool]) -> int:
    flags = _FLAGS.match(text, at)
    if flags is not None and flags[0] != "(?)":
        on, off = flags[1].replace("U", ""), (flags[2] or "").replace("U", "")
        start = f"(?{on}{'-' + off if off else ''}:"
        multiline = "m" in on or (lines[-1] and "m" not in off)
        if flags[3] == ":":
            opened.append([])
            lines.append(multiline)
        else:
            opened[-1].append(start)
            lines[-1] = multiline
        out.append(start)
        return flags.end()
    named = re.compile(r"\(\?P?<(\w+)>").match(text, at)
    if named is None and text.startswith("(?", at):
        raise PatternError("invalid or unsupported Perl syntax", text[at : at + 3])
    opened.append([])
    lines.append(lines[-1])
    out.append(f"(?P<{named[1]}>" if named else "(")
    return named.end() if named else at + 1


def _escaped(text: str, at: int, *, inside: bool) -> tuple[str, int]:
    """A backslash and what it stands for; the place behind it."""
    match = _ESCAPE.match(text, at)
    if match is None:
        raise PatternError("trailing backslash at end of expression", "")
    letter = match[1][0]
    if match[2]:
        code = int(match[2], 16)
        return f"\\U{code:08x}", match.end()
    if letter in "pP" and (match[4] or match[5]):
        name = match[4] or match[5]
        negated = (letter == "P") != bool(match[3])
        content = _CATEGORIES.get(name)
        if content is None:
            # A script or category that Python has no name for: whatever is not plain.
            content = r"\u0080-\U0010ffff"
        if inside:
            return (r"A-Za-z\u00c0-\U0010ffff" if content.startswith("^") else content), match.end()
        if content.startswith("^"):
            content, negated = content[1:], not negated
        return f"(?u:[{'^' if negated else ''}{content}])", match.end()
    if letter == "Q" and not inside:
        end = text.find(r"\E", match.end())
        stop = len(text) if end < 0 else end
        return re.escape(text[match.end() : stop]), stop if end < 0 else end + 2
    if letter.isalnum() and letter.isascii() and letter not in _LITERAL:
        raise PatternError("invalid escape sequence", match[0][:2])
    if letter.isdigit() and letter != "0" and not re.match(r"[0-7]{2}", text[at + 1 :]):
        raise PatternError("invalid escape sequence", match[0][:2])
    return {"z": r"\Z", "C": "."}.get(letter, match[0]), match.end()


def _brackets(text: str, at: int) -> tuple[str, int]:
    """A class in brackets; the place behind it."""
    start = at
    at += 1
    out = ["["]
    if text.startswith("^", at):
        out.append("^")
        at += 1
    first = True
    while at < len(text):
        char = text[at]
        if char == "]" and not first:
            return "".join(out) + "]", at + 1
        first = False
        posix = re.compile(r"\[:(\^?)(\w+):\]").match(text, at)
        if posix is not None:
            content = _POSIX.get(posix[2])
            if content is None:
                raise PatternError("invalid character class range", posix[0])
            out.append(content)
            at = posix.end()
        elif char == "\\":
            piece, at = _escaped(text, at, inside=True)
            out.append(piece)
        else:
            out.append("\\" + char if char in "[]&|~" else char)
            at += 1
    raise PatternError("missing closing ]", text[start:])

"""Tar as layers and archives use it: ustar, PAX records, GNU long names and sparse files, read as a stream and written.

No I/O of its own: the reader pulls bytes through a callable that it is given, the writer returns header bytes.
Source: POSIX.1-2017 pax; GNU tar manual, "Basic Tar Format" and "Storing Sparse Files"; star's SCHILY.xattr records.
Error texts are those of Go's archive/tar, because clients see them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)
END = bytes(2 * BLOCK)

REGULAR, HARDLINK, SYMLINK, CHAR, BLOCKDEV, DIRECTORY, FIFO = "0", "1", "2", "3", "4", "5", "6"
_PAX_LOCAL, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK, _GNU_SPARSE = "x", "g", "L", "K", "S"
_DATALESS = {HARDLINK, SYMLINK, CHAR, BLOCKDEV, DIRECTORY, FIFO}
XATTR_PREFIX = "SCHILY.xattr."
# A header that describes one file has no reason to be longer; what is longer is an attack on memory.
SPECIAL_LIMIT = 1 << 20
_PIECE = 1 << 18


class TarError(ValueError):
    """The archive is broken or exceeds a limit."""


@dataclass(slots=True)
class Entry:
    """One member. Times are nanoseconds since the epoch; size is the length of the file's content (sparse: expanded)."""

    name: str
    type: str = REGULAR
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    linkname: str = ""
    uname: str = ""
    gname: str = ""
    devmajor: int = 0
    devminor: int = 0
    xattrs: dict[str, bytes] = field(default_factory=dict)
    sparse: list[tuple[int, int]] | None = None  # (offset, length) of stored pieces
    stored: int = 0  # bytes of payload in the archive

    @property
    def is_file(self) -> bool:
        return self.type == REGULAR


def _number(raw: bytes) -> int:
    """A numeric header field: octal text, or base-256 when the top bit is set."""
    if raw and raw[0] & 0x80:
        value = int.from_bytes(raw, "big") & ((1 << (8 * len(raw) - 1)) - 1)
        if raw[0] & 0x40:
            value -= 1 << (8 * len(raw) - 1)
        return value
    text = raw.strip(b" \0")
    if not text:
        return 0
    try:
        return int(text, 8)
    except ValueError:
        raise TarError("archive/tar: invalid tar header") from None


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def parse_pax(data: bytes) -> dict[str, bytes]:
    """PAX records ("LENGTH KEY=VALUE\\n") as a mapping; the last of equal keys holds. Raises TarError."""
    records: dict[str, bytes] = {}
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 20)
        if space < 0 or not data[position:space].isdigit():
            raise TarError("archive/tar: invalid tar header")
        end = position + int(data[position:space])
        if end > len(data) or end <= space + 1 or data[end - 1] != 0x0A:
            raise TarError("archive/tar: invalid tar header")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise TarError("archive/tar: invalid tar header")
        records[key.decode("utf-8", "surrogateescape")] = value
        position = end
    return records


def _pax_time(raw: bytes) -> int:
    whole, _, fraction = raw.decode("ascii", "replace").partition(".")
    try:
        nanoseconds = int((fraction + "000000000")[:9]) if fraction else 0
        seconds = int(whole)
    except ValueError:
        raise TarError("archive/tar: invalid tar header") from None
    return seconds * 10**9 + (-nanoseconds if whole.startswith("-") else nanoseconds)


def _pax_int(raw: bytes) -> int:
    try:
        return int(raw)
    except ValueError:
        raise TarError("archive/tar: invalid tar header") from None


class TarReader:
    """Reads an archive from front to back.

    read: returns up to n bytes, b"" at the end of the stream. Use: `while (entry := reader.next()): ... reader.read()`.
    Raises TarError("unexpected EOF") where the stream ends inside a member.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._source = read
        self._buffer = b""
        self._position = 0
        self._left = 0  # payload bytes of the current member not yet read
        self._padding = 0
        self._globals: dict[str, bytes] = {}
        self._ended = False

    def _fill(self) -> bool:
        data = self._source(_PIECE)
        if not data:
            return False
        rest = self._buffer[self._position :]
        self._buffer = rest + data if rest else data
        self._position = 0
        return True

    def _exact(self, count: int) -> bytes:
        while len(self._buffer) - self._position < count:
            if not self._fill():
                raise TarError("unexpected EOF")
        start = self._position
        self._position = start + count
        return self._buffer[start : start + count]

    def read(self, limit: int = _PIECE) -> bytes:
        """The next piece of the current member's stored payload, b"" at its end."""
        if self._left == 0:
            return b""
        if self._position >= len(self._buffer) and not self._fill():
            raise TarError("unexpected EOF")
        start = self._position
        end = min(len(self._buffer), start + min(limit, self._left))
        self._position = end
        self._left -= end - start
        return self._buffer[start:end] if start or end < len(self._buffer) else self._buffer

    def skip(self) -> None:
        """Pass over what is left of the current member."""
        left, padding = self._left, self._padding
        self._left = self._padding = 0
        if self._pass(left):
            raise TarError("unexpected EOF")
        self._pass(padding)  # docker build -f sends an archive that ends with the last member's payload

    def _pass(self, todo: int) -> int:
        """Pass over so many bytes; how many the stream lacks."""
        while todo:
            have = len(self._buffer) - self._position
            if have >= todo:
                self._position += todo
                return 0
            todo -= have
            self._position = len(self._buffer)
            if not self._fill():
                break
        return todo

    def drain(self) -> None:
        """Read the stream to its end (what follows the end mark belongs to the archive's digest)."""
        self._buffer, self._position = b"", 0
        while self._source(_PIECE):
            pass

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self.next()) is not None:
            yield entry

    def _special(self, size: int) -> bytes:
        if size > SPECIAL_LIMIT:
            raise TarError("archive/tar: header field too long")
        data = self._exact(size)
        self._exact(-size % BLOCK)
        return data

    def next(self) -> Entry | None:
        """The next member's header, None after the last. What was not read of the one before is skipped."""
        if self._ended:
            return None
        self.skip()
        pax: dict[str, bytes] = {}
        name = link = None
        specials = 0
        while True:
            if self._position >= len(self._buffer) and not self._fill():
                self._ended = True
                return None
            block = self._exact(BLOCK)
            if block == ZERO_BLOCK:
                self._ended = True
                if self._position < len(self._buffer) or self._fill():
                    self._exact(BLOCK)  # the second block of the end, which a cut archive has in part only
                return None
            self.check(block)
            size = _number(block[124:136])
            if size < 0:
                raise TarError("archive/tar: invalid tar header")
            kind = chr(block[156])
            if kind not in (_PAX_LOCAL, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK):
                return self._member(block, kind, size, {**self._globals, **pax}, name, link)
            specials += 1
            if specials > 16:
                raise TarError("archive/tar: invalid tar header")
            data = self._special(size)
            if kind == _PAX_LOCAL:
                pax.update(parse_pax(data))
            elif kind == _PAX_GLOBAL:
                self._globals.update(parse_pax(data))
                if len(self._globals) > 1024:
                    raise TarError("archive/tar: header field too long")
            elif kind == _GNU_NAME:
                name = _text(data)
            else:
                link = _text(data)

    @staticmethod
    def check(block: bytes) -> None:
        """Is this a header by its checksum? Raises TarError."""
        wanted = _number(block[148:156])
        total = sum(block) - sum(block[148:156]) + 8 * 0x20
        if total != wanted:
            # Old tars summed signed characters.
            signed = total - 256 * sum(1 for b in block[:148] + block[156:] if b > 127)
            if signed != wanted:
                raise TarError("archive/tar: invalid tar header")

    def _member(
        self, block: bytes, kind: str, size: int, pax: dict[str, bytes], name: str | None, link: str | None
    ) -> Entry:
        entry = Entry(_text(block[:100]))
        magic = block[257:263]
        if magic == b"ustar\0":
            prefix = _text(block[345:500])
            if prefix:
                entry.name = f"{prefix}/{entry.name}"
        if magic[:5] == b"ustar":
            entry.uname, entry.gname = _text(block[265:297]), _text(block[297:329])
            entry.devmajor, entry.devminor = _number(block[329:337]), _number(block[337:345])
        entry.mode = _number(block[100:108]) & 0o7777
        entry.uid, entry.gid = _number(block[108:116]), _number(block[116:124])
        entry.mtime = _number(block[136:148]) * 10**9
        entry.linkname = link if link is not None else _text(block[157:257])
        if name is not None:
            entry.name = name
        for key, value in pax.items():
            if key == "path":
                entry.name = value.decode("utf-8", "surrogateescape")
            elif key == "linkpath":
                entry.linkname = value.decode("utf-8", "surrogateescape")
            elif key == "size":
                size = _pax_int(value)
            elif key == "uid":
                entry.uid = _pax_int(value)
            elif key == "gid":
                entry.gid = _pax_int(value)
            elif key == "uname":
                entry.uname = value.decode("utf-8", "replace")
            elif key == "gname":
                entry.gname = value.decode("utf-8", "replace")
            elif key == "mtime":
                entry.mtime = _pax_time(value)
            elif key.startswith(XATTR_PREFIX):
                entry.xattrs[key[len(XATTR_PREFIX) :]] = value
        if "\0" in entry.name or "\0" in entry.linkname or size < 0 or entry.uid < 0 or entry.gid < 0:
            raise TarError("archive/tar: invalid tar header")
        if kind in ("\0", REGULAR, "7"):
            kind = DIRECTORY if entry.name.endswith("/") else REGULAR
        if kind in _DATALESS and not (kind == HARDLINK and "size" in pax):
            size = 0
        entry.type, entry.size, entry.stored = kind, size, size
        self._left, self._padding = size, -size % BLOCK
        if kind == _GNU_SPARSE:
            entry.type = REGULAR
            self._gnu_sparse(block, entry)
        elif "GNU.sparse.major" in pax or "GNU.sparse.map" in pax or "GNU.sparse.size" in pax:
            self._pax_sparse(entry, pax)
        return entry

    def _gnu_sparse(self, block: bytes, entry: Entry) -> None:
        """The old GNU form: the map is in the header and in extension blocks after it."""
        pieces: list[tuple[int, int]] = []
        entry.size = _number(block[483:495])
        table, count, more = block[386:482], 4, block[482]
        # The extension blocks come before the payload and are not part of its size.
        while True:
            for i in range(count):
                raw = table[24 * i : 24 * i + 24]
                if raw[0] == 0:
                    break
                pieces.append((_number(raw[:12]), _number(raw[12:])))
            if not more:
                break
            if len(pieces) > 1 << 20:
                raise TarError("archive/tar: header field too long")
            extension = self._exact(BLOCK)
            table, count, more = extension[:504], 21, extension[504]
        self._set_sparse(entry, pieces)

    def _pax_sparse(self, entry: Entry, pax: dict[str, bytes]) -> None:
        if b"GNU.sparse.name" and "GNU.sparse.name" in pax:
            entry.name = pax["GNU.sparse.name"].decode("utf-8", "surrogateescape")
        entry.size = _pax_int(pax.get("GNU.sparse.realsize", pax.get("GNU.sparse.size", b"0")))
        numbers: list[int]
        if pax.get("GNU.sparse.major") == b"1":
            before = self._left
            text = b""

            def line() -> int:
                nonlocal text
                while b"\n" not in text:
                    if self._left < BLOCK or before - self._left > SPECIAL_LIMIT * 16:
                        raise TarError("archive/tar: invalid sparse file map")
                    self._left -= BLOCK
                    text += self._exact(BLOCK)
                word, _, text = text.partition(b"\n")
                return _pax_int(word)

            numbers = [line() for _ in range(2 * line())]
            entry.stored = self._left
        else:
            if "GNU.sparse.map" not in pax:
                raise TarError("archive/tar: invalid sparse file map")
            numbers = [_pax_int(word) for word in pax["GNU.sparse.map"].split(b",") if word]
        if len(numbers) % 2:
            raise TarError("archive/tar: invalid sparse file map")
        self._set_sparse(entry, list(zip(numbers[::2], numbers[1::2], strict=True)))

    @staticmethod
    def _set_sparse(entry: Entry, pieces: list[tuple[int, int]]) -> None:
        end = 0
        for offset, length in pieces:
            if offset < end or length < 0 or offset + length > entry.size:
                raise TarError("archive/tar: invalid sparse file map")
            end = offset + length
        if sum(length for _, length in pieces) != entry.stored:
            raise TarError("archive/tar: invalid sparse file map")
        entry.sparse = pieces


def _octal(value: int, width: int) -> bytes | None:
    if value < 0 or value >= 8 ** (width - 1):
        return None
    return b"%0*o\0" % (width - 1, value)


def pax_record(key: str, value: bytes) -> bytes:
    """One "LENGTH KEY=VALUE\\n" record; the length counts itself."""
    body = b" " + key.encode("utf-8", "surrogateescape") + b"=" + value + b"\n"
    length = len(body) + len(str(len(body)))
    if len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def _split_name(raw: bytes) -> tuple[bytes, bytes] | None:
    """ustar's (prefix, name) of a name over 100 bytes, if a slash falls right."""
    if len(raw) <= 100:
        return b"", raw
    cut = raw.rfind(b"/", 0, 156)
    while cut > 0:
        if cut <= 155 and 0 < len(raw) - cut - 1 <= 100:
            return raw[:cut], raw[cut + 1 :]
        if len(raw) - cut - 1 > 100:
            return None
        cut = raw.rfind(b"/", 0, cut)
    return None


def _block(entry: Entry, name: bytes, prefix: bytes, link: bytes, size: int, mtime: int, uid: int, gid: int) -> bytes:
    head = b"".join(
        (
            name.ljust(100, b"\0"),
            b"%07o\0" % entry.mode,
            _octal(uid, 8) or b"0000000\0",
            _octal(gid, 8) or b"0000000\0",
            _octal(size, 12) or b"00000000000\0",
            _octal(mtime, 12) or b"00000000000\0",
            b"        ",
            entry.type.encode(),
            link.ljust(100, b"\0"),
            b"ustar\x0000",
            entry.uname.encode()[:32].ljust(32, b"\0"),
            entry.gname.encode()[:32].ljust(32, b"\0"),
            b"%07o\0" % entry.devmajor,
            b"%07o\0" % entry.devminor,
            prefix.ljust(155, b"\0"),
            bytes(12),
        )
    )
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def header(entry: Entry, *, subsecond: bool = False) -> bytes:
    """The header blocks of a member: ustar, preceded by a PAX header where ustar cannot say it.

    entry.size bytes of payload must follow, padded with padding(size). subsecond: keep the time's fraction (PAX).
    """
    name = entry.name.encode("utf-8", "surrogateescape")
    link = entry.linkname.encode("utf-8", "surrogateescape")
    records: list[tuple[str, bytes]] = []
    split = _split_name(name) if name.isascii() else None
    if split is None:
        records.append(("path", name))
        split = b"", name[:100]
    if len(link) > 100 or not link.isascii():
        records.append(("linkpath", link))
        link = link[:100]
    seconds, fraction = divmod(entry.mtime, 10**9)
    if subsecond and fraction and seconds >= 0:
        records.append(("mtime", b"%d.%s" % (seconds, b"%09d" % fraction)))
    elif _octal(seconds, 12) is None:
        records.append(("mtime", b"%d" % seconds))
    records += [
        (key, b"%d" % value)
        for key, value, width in (("size", entry.size, 12), ("uid", entry.uid, 8), ("gid", entry.gid, 8))
        if _octal(value, width) is None
    ]
    records += [(XATTR_PREFIX + key, value) for key, value in sorted(entry.xattrs.items())]
    block = _block(entry, split[1], split[0], link, entry.size, max(seconds, 0), entry.uid, entry.gid)
    if not records:
        return block
    data = b"".join(pax_record(key, value) for key, value in sorted(records))
    base = entry.name.rstrip("/").rpartition("/")[2].encode("ascii", "replace")[:80]
    pax = _block(Entry("", type="x", mode=0), b"PaxHeaders.0/" + base, b"", b"", len(data), 0, 0, 0)
    return pax + data + padding(len(data)) + block


def padding(size: int) -> bytes:
    """The zero bytes that follow a payload of `size` bytes."""
    return bytes(-size % BLOCK)

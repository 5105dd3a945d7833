"""Records after a lost power supply, as far as it can be played: what was not synced is empty afterwards."""

from __future__ import annotations

import os
from pathlib import Path

from longshore.engine import durable


def write(record: Path, data: bytes) -> None:
    temporary = record.with_name(".new")
    temporary.write_bytes(data)
    os.replace(temporary, record)


def test_an_acknowledged_record_outlives_an_unsynced_replacement(tmp_path: Path) -> None:
    record = tmp_path / "box" / "record.json"
    record.parent.mkdir()
    write(record, b"first")
    durable.keep(record)
    durable.keep(record)
    write(record, b"second")
    assert list(durable.copies(record)) == [b"second", b"first"]
    record.unlink()
    record.touch()  # what a file system may make of a rename whose data never came to the disk
    assert list(durable.copies(record)) == [b"", b"first"]
    write(record, b"third")
    durable.keep(record)
    assert list(durable.copies(record)) == [b"third", b"third"]
    assert sorted(p.name for p in record.parent.iterdir()) == ["record.json", "record.json.kept"]


def test_a_removed_record_stays_removed(tmp_path: Path) -> None:
    record = tmp_path / "box" / "record.json"
    record.parent.mkdir()
    write(record, b"first")
    durable.keep(record)
    durable.remove(record)
    assert list(durable.copies(record)) == [] and list(record.parent.iterdir()) == []
    durable.keep(record)

"""CRI log records: round trips, partial lines, hostile input."""

from hypothesis import given
from hypothesis import strategies as st

from longshore.wire import crilog

TIMES = st.integers(min_value=0, max_value=4_000_000_000 * 10**9)
MESSAGES = st.binary(max_size=200).map(lambda b: b.replace(b"\n", b""))
STREAMS = st.sampled_from([b"stdout", b"stderr"])


@given(TIMES, STREAMS, MESSAGES, st.booleans())
def test_a_written_record_reads_back(time, stream, message, full):
    raw = crilog.format_line(time, stream, message, full)
    assert crilog.parse_line(raw[:-1]) == crilog.Line(time, stream, full, message)


@given(st.lists(st.tuples(TIMES, STREAMS, st.lists(MESSAGES, min_size=1, max_size=4))))
def test_partial_records_join_to_whole_lines(lines):
    block = b"".join(
        crilog.format_line(time, stream, part, full=index == len(parts) - 1)
        for time, stream, parts in lines
        for index, part in enumerate(parts)
    )
    assert list(crilog.joined(crilog.lines(block))) == [
        crilog.Line(time, stream, True, b"".join(parts)) for time, stream, parts in lines
    ]


@given(st.binary(max_size=400))
def test_whatever_comes_is_read_or_passed_over(data):
    for line in crilog.joined(crilog.lines(data)):
        assert line.stream in (b"stdout", b"stderr")


def test_offsets_and_short_fractions():
    assert crilog.parse_time(b"1970-01-01T01:00:00.5+01:00") == 500_000_000
    assert crilog.parse_time(b"1970-01-01T00:00:01Z") == 1_000_000_000


RECORDS = st.lists(
    st.tuples(st.sampled_from([b"stdout", b"stdout", b"stderr"]), st.booleans() | st.just(True), MESSAGES), max_size=8
)


def block_of(records, zone=b"Z"):
    return b"".join(
        b"2024-01-02T03:04:05.123456789%b %b %b %b\n" % (zone, stream, b"F" if full else b"P", message)
        for stream, full, message in records
    )


@given(RECORDS, st.sampled_from([b"Z", b"+00:00"]))
def test_a_blocks_text_at_once_is_that_of_its_lines(records, zone):
    block = block_of(records, zone)
    found = crilog.text_of(block)
    if records and len({stream for stream, _, _ in records}) == 1:
        assert found == (records[0][0], b"".join(m + b"\n" if full else m for _, full, m in records))
    else:
        assert found is None


@given(RECORDS, st.sampled_from([b"Z", b"+00:00"]))
def test_columns_of_a_block_are_its_records(records, zone):
    block = block_of(records, zone)
    found = crilog.columns(block)
    if not records:
        assert found is None
        return
    times, rest, count, whole = found
    assert count == len(records) and whole == all(full for _, full, _ in records)
    width = len(times) // count
    lines = rest.split(b"\n")
    assert b"".join(times[n * width : (n + 1) * width] + lines[n] + b"\n" for n in range(count)) == block


@given(st.binary(max_size=100))
def test_other_octets_are_left_to_be_read_line_by_line(data):
    crilog.columns(data)
    crilog.text_of(data)
    assert crilog.text_of(b"2024-01-02T03:04:05Z stdout X a\n") is None
    assert crilog.columns(b"2024-01-02T03:04:05Z stdout F a\n2024-01-02T03:04:05.1Z stdout F b\n") is None

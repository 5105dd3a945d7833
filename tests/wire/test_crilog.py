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

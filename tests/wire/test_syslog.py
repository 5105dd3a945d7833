"""Syslog in both forms, RFC examples among them, and its framing over TCP."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.wire import syslog


def test_rfc5424_with_structured_data():
    m = syslog.parse(
        b"<165>1 2003-10-11T22:14:15.003Z mymachine.example.com evntslog - ID47 "
        b'[exampleSDID@32473 iut="3" eventSource="Appl\\"ic\\]ation"][x@1 class="high"] \xef\xbb\xbfAn application event'
    )
    assert (m.facility, m.severity, m.host, m.ident, m.pid, m.msgid) == (
        "local4", "notice", "mymachine.example.com", "evntslog", "", "ID47",
    )  # fmt: skip
    assert m.data == {"exampleSDID@32473": {"iut": "3", "eventSource": 'Appl"ic]ation'}, "x@1": {"class": "high"}}
    assert m.message == "An application event" and m.time == 1065910455003000000


def test_rfc3164_gets_its_year_from_now():
    now = time.mktime((2024, 1, 2, 0, 0, 0, 0, 0, -1))
    m = syslog.parse(b"<34>Dec 31 22:14:15 mymachine su[12]: 'su root' failed\n", now=now)
    assert (m.host, m.ident, m.pid, m.message) == ("mymachine", "su", "12", "'su root' failed")
    assert m.time == int(time.mktime((2023, 12, 31, 22, 14, 15, 0, 0, -1))) * 10**9
    local = syslog.parse(b"<34>Jan  1 22:14:15 su: hello", now=now)
    assert (local.host, local.ident, local.message) == ("", "su", "hello")


@pytest.mark.parametrize("raw", [b"", b"hello", b"<999>x", b"<13", b'<13>1 - - - - - [a b="c'])
def test_what_is_no_message_is_refused(raw):
    with pytest.raises(syslog.SyslogError):
        syslog.parse(raw)


@given(st.binary())
def test_any_octets_parse_or_are_refused(data):
    for raw in (data, b"<13>" + data, b"<13>1 - - - - - " + data):
        try:
            syslog.parse(raw)
        except syslog.SyslogError:
            pass


@given(st.lists(st.binary(min_size=1).map(lambda b: b"<" + b.replace(b"\n", b"")), max_size=6), st.integers(1, 9))
def test_both_framings_come_apart_the_same(messages, step):
    for wire in (b"".join(b"%d %s" % (len(m), m) for m in messages), b"".join(m + b"\n" for m in messages)):
        framer, found = syslog.Framer(), []
        for at in range(0, len(wire), step):
            found += framer.feed(wire[at : at + step])
        assert found == messages


def test_endless_frames_are_refused():
    for data in (b"<" * 100, b"99999 x", b"1" * 20):
        with pytest.raises(syslog.SyslogError):
            syslog.Framer(50).feed(data)

"""DNS messages: round trips, truncation, hostile packets."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.wire import dns

LABELS = st.binary(min_size=1, max_size=20)
NAMES = st.lists(LABELS, max_size=6).map(dns.name_of)
DATA = {
    dns.A: st.integers(0, 2**32 - 1).map(lambda n: str(ipaddress.IPv4Address(n))),
    dns.AAAA: st.integers(0, 2**128 - 1).map(lambda n: str(ipaddress.IPv6Address(n))),
    dns.CNAME: NAMES,
    dns.PTR: NAMES,
    dns.SRV: st.tuples(*[st.integers(0, 65535)] * 3, NAMES),
    dns.MX: st.tuples(st.integers(0, 65535), NAMES),
    dns.TXT: st.lists(st.binary(max_size=255), min_size=1, max_size=3).map(tuple),
    dns.SOA: st.tuples(NAMES, NAMES, *[st.integers(0, 2**32 - 1)] * 5),
    99: st.binary(max_size=50),
}
RECORDS = st.sampled_from(sorted(DATA)).flatmap(
    lambda kind: st.builds(dns.Record, NAMES, st.just(kind), st.integers(0, 2**31), DATA[kind])
)
MESSAGES = st.builds(
    dns.Message,
    id=st.integers(0, 65535),
    flags=st.sampled_from([0, dns.RD, dns.QR | dns.AA | dns.RA]),
    rcode=st.integers(0, 5),
    questions=st.lists(st.builds(dns.Question, NAMES, st.sampled_from([dns.A, dns.SRV])), max_size=2),
    answers=st.lists(RECORDS, max_size=4),
    authority=st.lists(RECORDS, max_size=2),
    additional=st.lists(RECORDS, max_size=2),
    edns=st.none() | st.integers(512, 4096),
)


@given(MESSAGES)
def test_a_message_reads_back(message):
    assert dns.decode(dns.encode(message)) == message


@given(MESSAGES, st.integers(512, 1200))
def test_a_long_answer_is_cut_at_a_record_and_says_so(message, limit):
    if len(dns.encode(dns.Message(questions=message.questions, edns=message.edns))) > limit:
        return
    data = dns.encode(message, limit)
    cut = dns.decode(data)
    assert len(data) <= limit
    assert cut.answers == message.answers[: len(cut.answers)]
    assert (cut.answers, cut.authority) == (message.answers, message.authority) or cut.flags & dns.TC


@given(st.binary(max_size=300))
def test_any_packet_is_a_message_or_an_error(data):
    try:
        message = dns.decode(data)
    except dns.DNSError:
        return
    dns.decode(dns.encode(message)) if not any(len(q.name) > 250 for q in message.questions) else None


@given(MESSAGES, st.data())
def test_a_damaged_packet_is_a_message_or_an_error(message, data):
    packet = bytearray(dns.encode(message))
    for _ in range(data.draw(st.integers(1, 5))):
        packet[data.draw(st.integers(0, len(packet) - 1))] = data.draw(st.integers(0, 255))
    try:
        dns.decode(bytes(packet))
    except dns.DNSError:
        pass


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\0" * 11,
        b"\0\1\0\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1",  # a name that points at itself
        b"\0\1\0\0\0\1\0\0\0\0\0\0\xc0\xff\0\1\0\1",  # past the end
        b"\0\1\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\0\1\0\0\0\1\0\0\0\0\0\0\x41a\0\0\1\0\1",  # label kind 01
    ],
)
def test_hostile_packets(packet):
    with pytest.raises(dns.DNSError):
        dns.decode(packet)


def test_names_are_compressed():
    message = dns.Message(
        questions=[dns.Question("a.example.org.", dns.A)],
        answers=[dns.Record("a.example.org.", dns.A, 5, f"10.0.0.{n}") for n in range(3)],
    )
    assert len(dns.encode(message)) == 12 + 15 + 4 + 3 * 16


def test_names_that_differ_in_case_stay_so():
    records = [
        dns.Record("Www.Example.", dns.CNAME, 5, "www.example."),
        dns.Record("www.Example.", dns.CNAME, 5, "Example."),
    ]
    assert dns.decode(dns.encode(dns.Message(answers=records))).answers == records

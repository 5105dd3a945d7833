"""Snappy's block format, as a real compressor wrote it and as hostile senders might."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.wire.snappy import SnappyError, decompress


def test_what_a_real_compressor_wrote():
    # cramjam.snappy.compress_raw of these octets: literals, a copy that overlaps what it writes, long copies
    block = bytes.fromhex("d001307b6170703d2274696c6c227d7bfe0c007a0c000061fe01008a0100")
    assert decompress(block, 1000) == b'{app="till"}' * 9 + b"a" * 100


@given(st.binary(max_size=100))
def test_any_octets_are_a_block_or_refused(data):
    try:
        assert len(decompress(data, 10_000)) <= 10_000
    except SnappyError:
        pass


@pytest.mark.parametrize(
    "block",
    [b"", b"\xff" * 9, b"\xff\xff\xff\x7f\x00a", b"\x05\x00a", b"\x01\x04ab", b"\x05\x00a\x01\x09", b"\x02\xf0"],
)
def test_what_is_cut_or_leads_outside_is_refused(block):
    with pytest.raises(SnappyError):
        decompress(block, 1000)

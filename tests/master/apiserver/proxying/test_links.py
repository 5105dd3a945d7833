from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.master.apiserver.proxying.links import Links, Page

LINKS = Links("/api/p/proxy", frozenset(("10.0.0.1:80", "api:6443")))


@pytest.mark.parametrize(
    ("link", "wanted"),
    [
        ("/x", "/api/p/proxy/x"),
        ("/x/?q=1#f", "/api/p/proxy/x/?q=1#f"),
        ("/", "/api/p/proxy/"),
        ("x", "x"),
        ("../x", "../x"),
        ("?q", "?q"),
        ("#f", "#f"),
        ("http://10.0.0.1:80/x", "/api/p/proxy/x"),
        ("https://api:6443/x", "/api/p/proxy/x"),
        ("http://example.com/x", "http://example.com/x"),
        ("//example.com/x", "//example.com/x"),
        ("/api/p/proxy/x", "/api/p/proxy/x"),
        ("http://[bad", "http://[bad"),
        ("", ""),
    ],
)
def test_links(link: str, wanted: str) -> None:
    assert LINKS.change(link) == wanted


PAGE = (
    b'<!DOCTYPE html><HTML><a href="/rewriteme">test</a> <a class=c href=/bare>x</a><img src=\'/i.png\' alt="/no">'
    b'<!-- <a href="/comment"> --><script src="/s.js">if (a < b) { "<a href=\\"/not\\">" }</script>'
    b'<p title="a > b" href="/no">1 < 2 &amp; 3</p><form action="/f?a=1&amp;b=2"><a href="rel">'
    b"<link\n rel=x\n href='/c.css'/>\xff"
)
WANTED = (
    b'<!DOCTYPE html><HTML><a href="/api/p/proxy/rewriteme">test</a> <a class=c href="/api/p/proxy/bare">x</a>'
    b'<img src="/api/p/proxy/i.png" alt="/no">'
    b'<!-- <a href="/comment"> --><script src="/api/p/proxy/s.js">if (a < b) { "<a href=\\"/not\\">" }</script>'
    b'<p title="a > b" href="/no">1 < 2 &amp; 3</p><form action="/api/p/proxy/f?a=1&amp;b=2"><a href="rel">'
    b'<link\n rel=x\n href="/api/p/proxy/c.css"/>\xff'
)


@given(st.integers(1, len(PAGE)))
def test_a_page_in_any_pieces(step: int) -> None:
    page = Page(LINKS)
    out = b"".join(page.feed(PAGE[i : i + step]) for i in range(0, len(PAGE), step)) + page.finish()
    assert out == WANTED


@given(st.text("<>a/\"'!- =sript", max_size=80).map(str.encode), st.integers(1, 30))
def test_noise_goes_through_the_same_in_any_pieces(data: bytes, step: int) -> None:
    whole = Page(LINKS)
    wanted = whole.feed(data) + whole.finish()
    page = Page(LINKS)
    assert b"".join(page.feed(data[i : i + step]) for i in range(0, len(data), step)) + page.finish() == wanted

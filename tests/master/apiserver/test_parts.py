"""The small pure parts: paths, negotiation, tokens, YAML, cached bytes."""

from __future__ import annotations

import orjson
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from longshore.machinery.errors import StatusError
from longshore.master.apiserver import tokens, yamlout
from longshore.master.apiserver.cache import ResourceCache, change_version, with_version
from longshore.master.apiserver.negotiation import JSON, PROTOBUF, Form, negotiate
from longshore.master.apiserver.paths import parse

VALUE = orjson.dumps(
    {"kind": "A", "apiVersion": "v1", "metadata": {"name": "x", "uid": "u-1", "labels": {"a": "b"}}, "data": {}}
)


def test_paths() -> None:
    pod = parse("/api/v1/namespaces/n/pods/x/log")
    assert (pod.namespace, pod.resource, pod.name, pod.subresource) == ("n", "pods", "x", "log")
    assert parse("/api/v1/namespaces/n")[5:8] == ("namespaces", "n", "")
    assert parse("/api/v1/namespaces/n/finalize")[5:8] == ("namespaces", "n", "finalize")
    assert parse("/apis/apps/v1/watch/deployments").legacy_watch
    proxy = parse("/api/v1/namespaces/n/services/s:80/proxy/a/b%2Fc")
    assert (proxy.name, proxy.subresource, proxy.rest) == ("s:80", "proxy", "/a/b%2Fc")
    assert not parse("/version").is_resource
    assert parse("/api/v1/namespaces/n/pods/a%2Fb").bad


def test_negotiation() -> None:
    assert negotiate("") == Form(JSON)
    assert negotiate("application/vnd.kubernetes.protobuf,application/json") == Form(PROTOBUF)
    assert negotiate("application/vnd.kubernetes.protobuf,application/json", custom=True) == Form(JSON)
    table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
    assert negotiate(table) == Form(JSON, "Table", "v1")
    with pytest.raises(StatusError):
        negotiate("text/html")


@given(
    st.text(min_size=1).filter(lambda s: not s.startswith("/") and ".." not in s.split("/") and s.isprintable()),
    st.integers(1, 2**53),
)
def test_continue_tokens(key: str, version: int) -> None:
    assert tokens.decode(tokens.encode(key, version)) == (key + "\0", version)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
    )
)
def test_yaml_reads_back(value: object) -> None:
    assert yaml.safe_load(yamlout.dump(value)) == value or not str(value).isprintable()


def test_versions_in_bodies() -> None:
    body = with_version(VALUE, 7)
    assert orjson.loads(b"{" + body)["metadata"]["resourceVersion"] == "7"
    assert orjson.loads(b"{" + change_version(body, 7, 9))["metadata"]["resourceVersion"] == "9"


def test_the_cache_keeps_order_and_recent_events() -> None:
    cache = ResourceCache("things")
    for version, name in enumerate(("b/x", "a/y", "a/x"), 2):
        cache.apply(cache.prefix + name.encode(), version, VALUE)
    assert list(cache.keys) == ["a/x", "a/y", "b/x"]
    assert [cache.count("a"), cache.count("", "a/y"), cache.count("c")] == [2, 2, 0]
    assert [i.key for i in cache.walk("", "a/x\0")] == ["a/y", "b/x"]
    assert [i.key for i in cache.select("a")] == ["a/x", "a/y"]
    cache.apply(cache.prefix + b"a/x", 5, None)
    events = cache.since(3)
    assert events is not None and [(e.type, e.item.key) for e in events] == [("ADDED", "a/x"), ("DELETED", "a/x")]
    assert orjson.loads(b"{" + events[1].item.body)["metadata"]["resourceVersion"] == "5"

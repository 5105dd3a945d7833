"""Filters and parsers: what becomes of a record on its way."""

import json

import pytest

from longshore.node.logs.fluentd import config
from node.logs.fluentd.pipelines import OUT, Pipeline, read, through
from node.logs.test_inputs import settle


async def test_record_transformer(tmp_path):
    text = """
<filter a.**>
  @type record_transformer
  remove_keys secret
  <record>
    where ${tag_parts[1]}/${tag_suffix[1]}
    n ${record["n"]}
    text n=${record["n"]} deep=${record["d"]["e"]}
  </record>
</filter>"""
    (found,) = await through(tmp_path, text, "a.b.c", {"n": 5, "d": {"e": "x"}, "secret": 1})
    assert found == {"n": 5, "d": {"e": "x"}, "where": "b/b.c", "text": "n=5 deep=x"}


async def test_grep_parser_and_throttle(tmp_path):
    text = """
<filter **>
  @type grep
  <regexp>
    key log
    pattern /^(?<first>[a-z])/
  </regexp>
  <exclude>
    key $.deep.level
    pattern debug
  </exclude>
</filter>
<filter **>
  @type parser
  key_name log
  reserve_data true
  remove_key_name_field true
  <parse>
    @type logfmt
    types n:integer
  </parse>
</filter>
<filter **>
  @type throttle
  group_key host
  group_bucket_limit 1
</filter>"""
    sent = [
        {"log": 'n=1 m="a b"', "host": "h"}, {"log": "9"}, {"log": "n=2", "deep": {"level": "debug"}},
        {"log": "n=3", "host": "h"}, {"log": "n=4", "host": "i"},
    ]  # fmt: skip
    found = await through(tmp_path, text, "a", *sent, count=2)
    assert found == [{"host": "h", "n": 1, "m": "a b"}, {"host": "i", "n": 4}]


async def test_concat_joins_and_flushes_what_stays(tmp_path):
    text = """
<filter **>
  @type concat
  key log
  multiline_start_regexp /^\\S/
  flush_interval 0.1s
</filter>"""
    sent = [{"log": line} for line in ("Error", " at a", " at b", "next", " more")]
    assert await through(tmp_path, text, "a", *sent, count=2) == [
        {"log": "Error\n at a\n at b"},
        {"log": "next\n more"},
    ]


@pytest.mark.parametrize(
    ("section", "line", "expected"),
    [
        ("@type json", '{"a":1,"time":1.5}', {"a": 1}),
        ("@type regexp\n expression /^(?<a>\\d+) (?<b>.*)$/\n types a:integer", "12 x y", {"a": 12, "b": "x y"}),
        (
            "@type apache2",
            '1.2.3.4 - - [10/Oct/2000:13:55:36 -0700] "GET /a HTTP/1.0" 200 2326 "-" "curl"',
            {"host": "1.2.3.4", "user": None, "method": "GET", "path": "/a", "code": 200, "size": 2326, "referer": None, "agent": "curl"},
        ),
        (
            "@type nginx",
            '127.0.0.1 - - [28/Feb/2013:12:00:00 +0900] "GET / HTTP/1.1" 200 777 "-" "Opera/12.0" -',
            {"remote": "127.0.0.1", "host": "-", "user": "-", "method": "GET", "path": "/", "code": "200", "size": "777", "referer": "-", "agent": "Opera/12.0", "http_x_forwarded_for": "-"},
        ),
        ("@type csv\n keys a,b", '"x, y",2', {"a": "x, y", "b": "2"}),
        ("@type ltsv", "a:1\tb:x:y", {"a": "1", "b": "x:y"}),
        ("@type cri", "2024-01-01T00:00:00.5Z stdout F hello you", {"stream": "stdout", "logtag": "F", "message": "hello you"}),
        ("@type none", "as it is", {"message": "as it is"}),
        ("@type syslog", "<13>Jan  1 00:00:00 host app[1]: hi", {"host": "host", "ident": "app", "pid": "1", "message": "hi"}),
    ],
)  # fmt: skip
async def test_parsers(section, line, expected):
    from longshore.node.logs.fluentd.parsers import make_parser

    parse, _ = make_parser(config.parse(f"<parse>\n{section}\n</parse>").children[0])
    when, record = parse(line)
    assert record == expected
    if "2000" in line:
        assert when == 971211336 * 10**9


async def test_traces_become_one_event(tmp_path):
    text = "<filter **>\n  @type detect_exceptions\n  multiline_flush_interval 0.1s\n</filter>"
    python = ["Traceback (most recent call last):", '  File "a.py", line 1', "    x()", "NameError: x"]
    java = ["java.lang.RuntimeException: no", "\tat a.B.c(B.java:1)", "Caused by: java.io.IOException: y", "\tat d"]
    sent = [{"log": line} for line in ("before", *python, "between", *java)]
    found = await through(tmp_path, text, "a", *sent, count=4)
    assert [r["log"] for r in found] == ["before", "\n".join(python), "between", "\n".join(java)]


async def test_records_carry_what_the_api_server_knows_of_their_pod(tmp_path):
    from longshore.machinery.http import Response, Server

    asked = []
    pod = {
        "metadata": {
            "name": "front-1",
            "uid": "u1",
            "labels": {"app": "front"},
            "annotations": {"team/a": "x", "b": "y"},
        },
        "spec": {"nodeName": "n1", "containers": [{"name": "httpd", "image": "busybox"}]},
        "status": {"podIP": "10.0.0.1", "containerStatuses": [{"name": "httpd", "imageID": "sha256:1"}]},
    }
    namespace = {"metadata": {"name": "shop", "uid": "u2", "labels": {"tier": "gold"}}}

    def api(request):
        asked.append((request.path, request.headers.get("authorization")))
        if request.path == "/api/v1/namespaces/shop/pods/front-1":
            return Response.json(pod)
        if request.path == "/api/v1/namespaces/shop":
            return Response.json(namespace)
        return Response.json({"kind": "Status", "code": 404, "reason": "NotFound", "message": "no"}, 404)

    server = Server(api)
    port = await server.listen_tcp("127.0.0.1", 0)
    (tmp_path / "token").write_text("secret")
    text = f"""
<filter **>
  @type kubernetes_metadata
  kubernetes_url http://127.0.0.1:{port}
  bearer_token_file {tmp_path}/token
  annotation_match ["^team"]
</filter>""" + OUT.replace("path DIR/out/${tag}", "path DIR/out/all")
    tag = "var.log.containers.{}_shop_httpd-" + "a" * 64 + ".log"
    async with Pipeline(text, tmp_path) as p:
        await p.emit(tag.format("front-1"), {"log": "hello"})
        await p.emit(tag.format("front-1"), {"log": "again"})
        await p.emit(tag.format("gone-1"), {"log": "late"})
        await p.emit("other", {"log": "as it is"})
        await settle(lambda: len(read(tmp_path)) == 4)
    first, second, late, other = sorted(
        read(tmp_path), key=lambda r: ["hello", "again", "late", "as it is"].index(r["log"])
    )
    assert first["kubernetes"] == second["kubernetes"] == {
        "pod_name": "front-1", "namespace_name": "shop", "container_name": "httpd", "container_image": "busybox",
        "container_image_id": "sha256:1", "pod_id": "u1", "pod_ip": "10.0.0.1", "host": "n1", "labels": {"app": "front"},
        "annotations": {"team/a": "x"}, "namespace_id": "u2", "namespace_labels": {"tier": "gold"},
        "master_url": f"http://127.0.0.1:{port}/api",
    }  # fmt: skip
    assert first["docker"] == {"container_id": "a" * 64}
    assert late["kubernetes"]["pod_name"] == "gone-1" and "pod_id" not in late["kubernetes"]
    assert other == {"log": "as it is"}
    assert sum(path.endswith("front-1") for path, _ in asked) == 1 and asked[0][1] == "Bearer secret"
    await server.close()


@pytest.mark.parametrize(
    ("section", "text", "expected"),
    [
        ("time_format %Y-%m-%d %H:%M:%S\n timezone +09:00", "2024-01-01 09:00:00", 1704067200),
        ("time_format %Y-%m-%d %H:%M:%S\n timezone America/New_York", "2024-07-01 08:00:00", 1719835200),
        ("time_format %Y-%m-%d %H:%M:%S\n utc true", "2024-01-01 00:00:00", 1704067200),
        ("time_format %Y-%m-%dT%H:%M:%S.%N%z", "2024-01-01T09:00:00.000000000+09:00", 1704067200),
        ("time_format %d/%b/%Y:%H:%M:%S %z", "01/Jan/2024:02:00:00 +0200", 1704067200),
    ],
)
async def test_times_are_read_in_their_zone(section, text, expected):
    from longshore.node.logs.fluentd.parsers import make_parser

    parse, _ = make_parser(config.parse(f"<parse>\n@type json\ntime_type string\n{section}\n</parse>").children[0])
    assert parse(json.dumps({"time": text, "a": 1})) == (expected * 10**9, {"a": 1})

"""LogQL: what is read, what is refused, and what comes out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.node.logs.logql import ast, metric, pipeline
from longshore.node.logs.logql.parser import parse, parse_log_query

S = 1_000_000_000


def through(query: str, line: str, **labels: str):
    return pipeline.run(pipeline.steps(parse_log_query(query)), 0, line, dict(labels))


@pytest.mark.parametrize(
    ("query", "line", "wanted"),
    [
        ('{a="b"} |= "x"', "axb", ("axb", {})),
        ('{a="b"} |= "x" or "y"', "ayb", ("ayb", {})),
        ('{a="b"} != "x"', "axb", None),
        ('{a="b"} |~ "a.b" !~ "c"', "axb", ("axb", {})),
        ('{a="b"} | json | code >= 500', '{"code": 503}', ('{"code": 503}', {"code": "503"})),
        ('{a="b"} | json | code >= 500', '{"code": 200}', None),
        ('{a="b"} | json n="r.h[1]"', '{"r":{"h":[1,"two"]}}', ('{"r":{"h":[1,"two"]}}', {"n": "two"})),
        ('{a="b"} | json', '{"r":{"m":"GET"}}', ('{"r":{"m":"GET"}}', {"r_m": "GET"})),
        (
            '{a="b"} | logfmt | took > 1s',
            'took=1500ms msg="a b"',
            ('took=1500ms msg="a b"', {"took": "1500ms", "msg": "a b"}),
        ),
        ('{a="b"} | logfmt | size > 1KiB', "size=2KB", ("size=2KB", {"size": "2KB"})),
        ('{a="b"} | regexp "(?P<m>[A-Z]+) (?P<p>/\\\\S*)"', "GET /x 1", ("GET /x 1", {"m": "GET", "p": "/x"})),
        (
            '{a="b"} | pattern "<ip> - <_> <path>"',
            "1.2.3.4 - x /p",
            ("1.2.3.4 - x /p", {"ip": "1.2.3.4", "path": "/p"}),
        ),
        ('{a="b"} | unpack', '{"_entry":"line","k":"v"}', ("line", {"k": "v"})),
        ('{a="b"} | json | line_format "{{.m | ToUpper}}!"', '{"m":"get"}', ("GET!", {"m": "get"})),
        ('{a="b"} | logfmt | label_format n=m, o="{{.m}}-" | drop m', "m=1", ("m=1", {"n": "1", "o": "1-"})),
        ('{a="b"} | logfmt | (m="1" or m="2") and k!="x"', "m=2 k=y", ("m=2 k=y", {"m": "2", "k": "y"})),
        ('{a="b"} |> "took <_> ms"', "it took 12 ms", ("it took 12 ms", {})),
        ('{a="b"} !> "took <_> ms"', "it took 12 ms", None),
        ('{a="b"} | logfmt | code > 1', "code=x", ("code=x", {"code": "x", "__error__": "LabelFilterErr"})),
        ('{a="b"} | logfmt | code > 1 | __error__=""', "code=x", None),
        ('{a="b"} | json | __error__=""', "no json", None),
        ('{a="b"} | decolorize', "\x1b[31mred\x1b[0m", ("red", {})),
        ('{a="b"} |= ip("10.0.0.0/8")', "from 10.1.2.3:80 in", ("from 10.1.2.3:80 in", {})),
        ('{a="b"} |= ip("10.0.0.1-10.0.0.9")', "from 10.0.0.10", None),
        ('{a="b"} != ip("2001:db8::/32")', "from 2001:db8::7 in", None),
        ('{a="b"} | logfmt | addr = ip("10.0.0.1")', "addr=10.0.0.1", ("addr=10.0.0.1", {"addr": "10.0.0.1"})),
        ('{a="b"} | logfmt | addr != ip("10.0.0.0/8")', "addr=10.0.0.1", None),
    ],
)
def test_pipelines(query, line, wanted):
    assert through(query, line) == wanted


def test_a_name_of_the_stream_is_not_overwritten():
    assert through('{a="b"} | logfmt', "pod=x", pod="mine")[1] == {"pod": "mine", "pod_extracted": "x"}


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", "unexpected $end"),
        ("{", "unexpected $end"),
        ('{a="b"', "unexpected $end"),
        ("{}", "queries require at least one regexp or equality matcher"),
        ('{a=~".*"}', "queries require at least one regexp or equality matcher"),
        ('{a="b"} |= ', "unexpected $end"),
        ('{a="b"} | nosuch', "unexpected IDENTIFIER"),
        ('{a=~"("}', "error parsing regexp"),
        ('rate({a="b"})', "unexpected )"),
        ('sum_over_time({a="b"}[1m])', "without unwrap"),
        ('topk({a="b"})', "parameter required"),
        ('{a="b"} |= ip("10.0.0")', "ip: invalid pattern"),
        ('label_replace(rate({a="b"}[1m]), "a-b", "", "", "")', "invalid destination label name"),
        ('rate({a="b"}[1m]) and on(x) group_left rate({a="b"}[1m])', "no grouping allowed for and operation"),
        ('{a="b"} | line_format "{{nosuch .x}}"', 'function "nosuch" not defined'),
    ],
)
def test_refusals_tell_what_is_wrong(query, words):
    with pytest.raises(ast.LogQLError, match=words.replace("$", r"\$").replace(")", r"\)")):
        tree = parse(query)
        pipeline.steps(tree) if isinstance(tree, ast.LogQuery) else metric.evaluate(tree, [S], source)


@given(st.text(max_size=80))
def test_any_text_is_a_query_or_a_logql_error(text):
    try:
        parse(text)
    except (ast.LogQLError, ValueError):
        pass


LINES = [(n * S, f"code={200 if n % 2 else 500} took={n}ms", {"pod": f"p{n % 3}"}) for n in range(1, 61)]


def source(query, start, end):
    steps = pipeline.steps(query)
    for when, line, labels in LINES:
        if start < when <= end:
            result = pipeline.run(steps, when, line, labels)
            if result:
                yield when, *result


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ('sum(count_over_time({a="b"}[1m]))', {(): 60.0}),
        ('sum by (pod) (count_over_time({a="b"}[30s]))', {(("pod", f"p{n}"),): 10.0 for n in range(3)}),
        ('sum(rate({a="b"} | logfmt | code="500" [1m]))', {(): 0.5}),
        ('max(max_over_time({a="b"} | logfmt | unwrap duration(took) [1m]))', {(): 0.06}),
        ('quantile_over_time(0.5, {a="b"} | logfmt | unwrap duration(took) [1m]) by ()', {(): 0.0305}),
        ('sum(count_over_time({a="b"}[1m])) / 2 + 1', {(): 31.0}),
        ('sum(count_over_time({a="b"}[1m])) > 100', {(): None}),
        ('2 ^ 3 ^ 0 + sum(count_over_time({a="b"}[1s])) * 0', {(): 2.0}),
        (
            'label_replace(sum by (pod) (count_over_time({a="b"}[30s])), "n", "${1}!", "pod", "p(.)")',
            {(("n", f"{n}!"), ("pod", f"p{n}")): 10.0 for n in range(3)},
        ),
        (
            'sum by (pod) (count_over_time({a="b"}[30s])) / on() group_left sum(count_over_time({a="b"}[30s]))',
            {(("pod", f"p{n}"),): 1 / 3 for n in range(3)},
        ),
        (
            'sum(count_over_time({a="b"}[30s])) - on() group_right sum by (pod) (count_over_time({a="b"}[30s]))',
            {(("pod", f"p{n}"),): 20.0 for n in range(3)},
        ),
        ('absent_over_time({a="c"} |= "nothing" [1m])', {(("a", "c"),): 1.0}),
    ],
)
def test_metrics(query, wanted):
    series = metric.evaluate(parse(query), [60 * S], source)
    assert {k: v[0] if v[0] is None else pytest.approx(v[0]) for k, v in series.items()} == wanted


def test_topk_keeps_the_largest():
    series = metric.evaluate(parse('topk(1, sum by (pod) (bytes_over_time({a="b"}[1m])))'), [60 * S], source)
    assert len(series) == 1


def test_sort_orders_its_series():
    for function, wanted in (("sort", ["p0", "p1"]), ("sort_desc", ["p1", "p0"])):
        tree = parse(
            function + '(sum by (pod) (sum_over_time({a="b"} | logfmt | pod!="p2" | unwrap duration(took) [4s])))'
        )
        assert [dict(key)["pod"] for key in metric.evaluate(tree, [4 * S], source)] == wanted


def test_a_metric_over_an_error_is_refused_until_it_is_filtered_out():
    query = 'sum(sum_over_time({a="b"} | logfmt | unwrap code %s [1m]))'
    assert metric.evaluate(parse(query % ""), [60 * S], source)
    with pytest.raises(ast.LogQLError, match="pipeline error: 'SampleExtractionErr'"):
        metric.evaluate(parse((query % "").replace("code", "took")), [60 * S], source)
    kept = metric.evaluate(parse((query % '| __error__=""').replace("code", "took")), [60 * S], source)
    assert kept == {}

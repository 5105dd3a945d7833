"""The configuration language, tag patterns, and errors with their places."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.node.logs.fluentd import config, tags
from longshore.node.logs.fluentd.pipeline import Context

TEXT = """
# a comment
<source>
  @type tail   # told after it
  path /var/log/*.log
  tag "app.#{ENV['LONGSHORE_TAG']}"
  pos_file '/tmp/x#y'
  <parse>
    @type json
  </parse>
</source>
<match a.** {b,c}.*>
  @type stdout
  list ["a",
        "b"]
</match>
"""


def test_words_and_their_places(monkeypatch):
    monkeypatch.setenv("LONGSHORE_TAG", "web")
    root = config.parse(TEXT)
    source, match = root.children
    assert source.text("@type") == "tail" and source.text("tag") == "app.web" and source.text("pos_file") == "/tmp/x#y"
    assert source.text("path") == "/var/log/*.log" and source.children[0].text("@type") == "json"
    assert match.argument == "a.** {b,c}.*" and match.line == 12
    assert match.text("list").replace("\n", "").replace(" ", "") == '["a","b"]'


def test_include(tmp_path):
    (tmp_path / "one.conf").write_text("<match one>\n @type null\n</match>\n")
    (tmp_path / "two.conf").write_text("@include one.conf\n")
    (tmp_path / "fluent.conf").write_text("@include t*.conf\n<match **>\n  @type null\n</match>\n")
    root = config.load(tmp_path / "fluent.conf")
    assert [child.argument for child in root.children] == ["one", "**"]
    (tmp_path / "fluent.conf").write_text("@include fluent.conf\n")
    with pytest.raises(config.ConfigError, match="too many includes"):
        config.load(tmp_path / "fluent.conf")


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("<match>\n", "expected end tag", 1),
        ("<match>\n</source>\n", "unmatched end tag", 2),
        ("\n<match **>\n  @type no_such\n</match>", "Unknown output plugin 'no_such'", 3),
        ("<match **>\n  @type stdout\n  wrong 1\n</match>", "unknown parameter 'wrong'", 3),
        ("<match **>\n  @type file\n</match>", "'path' parameter is required", 1),
        ("<match **>\n  @type file\n  path /x\n  <buffer>\n    flush_interval soon\n  </buffer>\n</match>", "is not a time", 5),
        ("<sauce>\n</sauce>", "unknown directive '<sauce>'", 1),
        ("<match **>\n</match>", "Missing '@type'", 1),
        ("<source>\n  @type tcp\n  tag x\n  <parse>\n    @type x\n  </parse>\n</source>", "Unknown parser plugin 'x'", 5),
        ("<source>\n @type sample\n tag x\n @label @NO\n</source>", "@NO label not found", 4),
        ('<match **>\n  @type "#{`id`}"\n</match>', "embedded Ruby is not supported", 2),
        ("<system>\n  workers 0\n</system>", "workers must be", 2),
        ("<system>\n  nonsense 1\n</system>", "unknown parameter 'nonsense'", 2),
        ("<worker 1>\n</worker>", "worker id 1 specified by <worker> directive is not allowed", 1),
        ("<worker 0>\n <system>\n </system>\n</worker>", "<worker> section cannot have <system>", 2),
        ("<system>\n  workers 2\n</system>\n<source>\n  @type tail\n  path x\n  tag x\n</source>", "'tail' does not support multi workers", 5),
        ("<source>\n  @type udp\n  tag x\n  <parse>\n    @type json\n    timezone Nowhere/City\n  </parse>\n</source>", "invalid timezone", 6),
        ("@include nowhere.conf", "include file not found", 1),
        ("<filter **>\n  @type record_transformer\n  <record>\n    a ${b.c}\n  </record>\n</filter>", "unknown placeholder", 4),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_told_with_its_place(tmp_path, text, message, line):
    with pytest.raises(config.ConfigError, match=rf".*{message}.* at fluent\.conf line {line}$"):
        Context(tmp_path, None, "").build(config.parse(text))


@given(st.text(alphabet="<>/@ab \"'[]{}#\n$\\", max_size=60))
def test_any_text_is_read_or_refused(text):
    try:
        config.parse(text)
    except config.ConfigError:
        pass


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("a.*", ["a.b"], ["a", "a.b.c", "b.a"]),
        ("a.**", ["a", "a.b", "a.b.c"], ["ab", "b"]),
        ("**.c", ["c", "a.c", "a.b.c"], ["a.d"]),
        ("**", ["", "a", "a.b"], []),
        ("{a,b}.c", ["a.c", "b.c"], ["c", "ab.c"]),
        ("a b.*", ["a", "b.c"], ["b"]),
        ("a.{b.**,c}.d", ["a.b.x.d", "a.c.d"], ["a.d"]),
    ],
)
def test_tag_patterns(pattern, yes, no):
    matches = tags.matcher(pattern)
    assert [t for t in yes if not matches(t)] == [] and [t for t in no if matches(t)] == []

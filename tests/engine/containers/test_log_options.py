"""Tags, options and durations of log drivers, without an engine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.engine.containers import logdrivers, logoptions, logtags

KNOWN = {
    "ID": "0123456789ab", "Name": "web", "ImageName": "shop:1", "Command": "sh -c true", "ContainerLabels": {"a.b": "north"},
    "ContainerArgs": ["-c", "true"],
}  # fmt: skip


@pytest.mark.parametrize(
    "template, tag",
    [
        ("{{.ID}}", "0123456789ab"),
        ("docker.{{ .Name }}/{{.ImageName}}", "docker.web/shop:1"),
        ('{{index .ContainerLabels "a.b"}}', "north"),
        ('{{index .ContainerLabels "none"}}-', "-"),
        ("{{.Name | upper}}", "WEB"),
        ("{{upper .Name}}", "WEB"),
        ("{{json .ContainerArgs}}", '["-c","true"]'),
        ('{{join .ContainerArgs "+"}}', "-c+true"),
        ("{{truncate .ID 4}}", "0123"),
        ("a {{- .Name -}} b", "awebb"),
        ("{{/* a remark */}}x", "x"),
        ("plain", "plain"),
        ("{{.ContainerArgs}}", "[-c true]"),
    ],
)
def test_tags(template: str, tag: str) -> None:
    assert logtags.render(template, KNOWN) == tag


@pytest.mark.parametrize(
    "template", ["{{.Nosuch}}", "{{nosuch .ID}}", "{{", "{{}}", "{{.ID .ID}}", "{{upper}}", "{{|}}"]
)
def test_wrong_tags(template: str) -> None:
    with pytest.raises(logtags.TagError):
        logtags.render(template, KNOWN)


@given(st.text())
def test_any_tag_is_rendered_or_refused(template: str) -> None:
    try:
        logtags.render("{{" + template + "}}", KNOWN)
    except logtags.TagError:
        return


@pytest.mark.parametrize(
    "text, seconds", [("1s", 1), ("1m30s", 90), ("1.5h", 5400), ("0", 0), ("100ms", 0.1), ("-2s", -2)]
)
def test_durations(text: str, seconds: float) -> None:
    assert logoptions.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text, address",
    [
        ("", logoptions.Address("tcp", "127.0.0.1", 24224)),
        ("logs:1", logoptions.Address("tcp", "logs", 1)),
        ("logs", logoptions.Address("tcp", "logs", 24224)),
        ("tls://[::1]:9", logoptions.Address("tls", "::1", 9)),
        ("unix:///run/f", logoptions.Address("unix", path="/run/f")),
    ],
)
def test_fluentd_addresses(text: str, address: logoptions.Address) -> None:
    assert logoptions.fluentd({"fluentd-address": text}).address == address


@given(st.text())
def test_any_address_is_read_or_refused(text: str) -> None:
    for read, name in ((logoptions.fluentd, "fluentd-address"), (logoptions.syslog, "syslog-address")):
        try:
            read({name: text})
        except logoptions.OptionError:
            continue


@pytest.mark.parametrize(
    "driver, options, text",
    [
        ("json-file", {"max-size": "0"}, "max-size must be a positive number"),
        ("json-file", {"max-size": "x"}, "invalid size: 'x'"),
        ("json-file", {"max-file": "0"}, "max-file cannot be less than 1"),
        ("json-file", {"max-file": "x"}, 'strconv.Atoi: parsing "x": invalid syntax'),
        (
            "json-file",
            {"compress": "true"},
            "compress cannot be true when max-file is less than 2 or max-size is not set",
        ),
        ("local", {"max-size": "x"}, "invalid value for max-size: x: invalid size: 'x'"),
        ("local", {"max-file": "1"}, "compression cannot be enabled when max file count is 1"),
    ],
)
def test_rotations_that_cannot_be(driver: str, options: dict[str, str], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        logdrivers.check_file(driver, options)
    assert str(caught.value) == text


def test_rotations_that_can_be() -> None:
    logdrivers.check_file("json-file", {"max-size": "10m", "max-file": "3", "compress": "true"})
    logdrivers.check_file("local", {"max-size": "10m", "max-file": "1", "compress": "false"})
    logdrivers.check_file("syslog", {"max-file": "x"})

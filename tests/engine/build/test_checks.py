"""Build checks: each rule on a file that breaks it, and what turns them off. The texts are BuildKit's."""

from __future__ import annotations

import pytest

from longshore.engine.build import dockerfile, instructions
from longshore.engine.build.checks import RULES, Base, Checker, Warning, settings
from longshore.engine.build.ignore import Ignore
from longshore.engine.errors import InvalidParameter


def found(text: str, *, ignored: list[str] | None = None, base: Base | None = None, **given: str) -> list[Warning]:
    program = instructions.parse(dockerfile.parse(text.encode()))
    predefined = {"TARGETPLATFORM": "linux/amd64", "BUILDPLATFORM": "linux/amd64"}
    checker = Checker(
        program,
        settings(program.file.directives.get("check", "")),
        predefined=predefined,
        given=given,
        ignored=Ignore(ignored) if ignored else None,
    )
    checker.file()

    def begins(index: int) -> Base | int | None:
        name = program.stages[index].base
        above = [i for i in range(index) if program.stages[i].name == name]
        return above[-1] if above else None if name == "scratch" else base or Base()

    checker.stages(range(len(program.stages)), begins, "linux/amd64")
    return checker.warnings


@pytest.mark.parametrize(
    ("rule", "text", "detail", "line"),
    [
        ("StageNameCasing", "FROM a AS Big\n", "Stage name 'Big' should be lowercase", 1),
        ("FromAsCasing", "FROM a as b\n", "'as' and 'FROM' keywords' casing do not match", 1),
        ("NoEmptyContinuation", "FROM a\nRUN x \\\n\n  y\n", "Empty continuation line", 4),
        (
            "ConsistentInstructionCasing", "FROM a\nRUN x\nrun y\n",
            "Command 'run' should match the case of the command majority (uppercase)", 3,
        ),
        ("DuplicateStageName", "FROM a AS b\nFROM a AS b\n", 'Duplicate stage name "b", stage names should be unique', 2),
        (
            "ReservedStageName", "FROM a AS scratch\n",
            'Stage name should not use the same name as reserved stage "scratch"', 1,
        ),
        (
            "JSONArgsRecommended", "FROM a\nCMD x y\n",
            "JSON arguments recommended for CMD to prevent unintended behavior related to OS signals", 2,
        ),
        ("MaintainerDeprecated", "FROM a\nMAINTAINER x\n", "Maintainer instruction is deprecated in favor of using label", 2),
        (
            "UndefinedArgInFrom", "ARG version=1\nFROM a:${versoin:-1}$versoin\n",
            "FROM argument 'versoin' is not declared (did you mean version?)", 2,
        ),
        (
            "WorkdirRelativePath", "FROM a\nWORKDIR x\n",
            'Relative workdir "x" can have unexpected results if the base image changes', 2,
        ),
        (
            "UndefinedVar", "FROM a\nENV home=1\nLABEL x=$hom\n",
            "Usage of undefined variable '$hom' (did you mean $home?)", 3,
        ),
        (
            "MultipleInstructionsDisallowed", 'FROM a\nCMD ["x"]\nCMD ["y"]\n',
            "Multiple CMD instructions should not be used in the same stage because only the last one will be used", 2,
        ),
        (
            "LegacyKeyValueFormat", "FROM a\nENV x y\n",
            '"ENV key=value" should be used instead of legacy "ENV key value" format', 2,
        ),
        (
            "RedundantTargetPlatform", "FROM --platform=$TARGETPLATFORM a\n",
            "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior", 1,
        ),
        (
            "SecretsUsedInArgOrEnv", "FROM a\nARG DB_PASSWORD\n",
            'Do not use ARG or ENV instructions for sensitive data (ARG "DB_PASSWORD")', 2,
        ),
        (
            "InvalidDefaultArgInFrom", "ARG base\nFROM ${base}\n",
            "Default value for ARG ${base} results in empty or invalid base image name", 2,
        ),
        (
            "FromPlatformFlagConstDisallowed", "FROM --platform=linux/arm64 a\n",
            'FROM --platform flag should not use constant value "linux/arm64"', 1,
        ),
        (
            "ExposeProtoCasing", "FROM a\nEXPOSE 80/TCP\n",
            "Defined protocol '80/TCP' in EXPOSE instruction should be lowercase", 2,
        ),
        (
            "ExposeInvalidFormat", "FROM a\nEXPOSE 127.0.0.1:80:80\n",
            "EXPOSE instruction should not define an IP address or host-port mapping, found '127.0.0.1:80:80'", 2,
        ),
    ],
)  # fmt: skip
def test_each_rule(rule: str, text: str, detail: str, line: int) -> None:
    warnings = found(text)
    assert [(w.rule, w.detail, w.start) for w in warnings] == [(rule, detail, line)]
    assert found(f"# check=skip={rule}\n{text}") == [] and found(f"# check=skip=all\n{text}") == []
    assert warnings[0].short == f"{rule}: {detail} (line {line})" and warnings[0].description == RULES[rule][0]


def test_rules_about_the_context_and_the_base() -> None:
    text = "FROM a\nCOPY secret/x sub /y\nADD ok secret /z/\n"
    details = [w.detail for w in found(text, ignored=["secret"])]
    assert details == [
        'Attempting to Copy file "secret/x" that is excluded by .dockerignore',
        'Attempting to Add file "secret" that is excluded by .dockerignore',
    ]
    assert found(text, ignored=["secret", "!secret/x"]) == []
    warnings = found("FROM a\n", base=Base(platform="linux/arm64"))
    assert [w.detail for w in warnings] == [
        'Base image a was pulled with platform "linux/arm64", expected "linux/amd64" for current build'
    ]


def test_what_is_no_finding() -> None:
    assert (
        found("ARG v=1\nFROM a:$v AS b\nARG x\nENV y=$x${z:-1}\nWORKDIR /w\nWORKDIR r\nFROM b\nWORKDIR s\nLABEL l=$y\n")
        == []
    )
    assert found('FROM a\nSHELL ["x"]\nCMD y\nENV PUBLIC_KEY=1\n') == []
    assert found("FROM a\nRUN echo $NOTHING\nLABEL p=$PATH\n") == []
    assert found("FROM a\n# check=skip=JSONArgsRecommended\nCMD x\n") == []


def test_descriptions_are_checked_where_asked_for() -> None:
    text = "# check=experimental=all\n# says nothing of it\nFROM a AS build\n"
    assert [w.rule for w in found(text)] == ["InvalidDefinitionDescription"]
    assert found(text.replace("says", "build")) == [] and found(text.partition("\n")[2]) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("skipX", 'failed to parse check options: invalid check option "skipX"'),
        ("other=1", 'failed to parse check options: invalid check option "other"'),
        (
            "error=maybe",
            'failed to parse check options: failed to parse check option "error=maybe": strconv.ParseBool: parsing "maybe": '
            "invalid syntax",
        ),
    ],
)
def test_wrong_settings(text: str, message: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        settings(text)
    assert caught.value.message == message

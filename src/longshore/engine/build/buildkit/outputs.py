"""What a client asks of an output of image form: names, annotations, how layers are compressed, times.

Source: BuildKit exporter/containerimage (opts.go, annotations.go, export.go), exporter/util/epoch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from longshore.engine.errors import InvalidParameter
from longshore.engine.images import references
from longshore.engine.images.packed import GZIP, UNCOMPRESSED, ZSTD, Form
from longshore.engine.images.references import Reference

TRUE = ("1", "t", "T", "true", "True", "TRUE")
FALSE = ("0", "f", "F", "false", "False", "FALSE")
_NOTE = re.compile(r"annotation(-index|-index-descriptor|-manifest|-manifest-descriptor)?(?:\[(.+?)\])?\.(.+)")


def flag(attributes: Mapping[str, str], name: str, default: bool = False, *, bare: bool = True) -> bool:
    """A setting that is true or false. bare: without a value it is true. Raises InvalidParameter."""
    text = attributes.get(name)
    if text is None:
        return default
    if bare and text == "":
        return True
    if text not in (*TRUE, *FALSE):
        raise InvalidParameter(
            f'non-bool value specified for {name}: strconv.ParseBool: parsing "{text}": invalid syntax'
        )
    return text in TRUE


@dataclass(slots=True)
class Output:
    """The settings of one output. epoch: seconds; rewrite: whether the layers' times are not to be after it.

    annotations: by what they are put on ("manifest", "index", "manifest-descriptor", "index-descriptor", each also with
    "[platform]" behind it). canonical: a further name with the digest; dangling: a repository for a name with the digest.
    """

    names: list[Reference] = field(default_factory=list)
    form: Form = field(default_factory=Form)
    annotations: dict[str, dict[str, str]] = field(default_factory=dict)
    epoch: int | None = None
    rewrite: bool = False
    store: bool = True
    push: bool = False
    by_digest: bool = False
    canonical: bool = False
    dangling: str = ""
    tar: bool = True


def parse(attributes: Mapping[str, str], kind: str, *, attested: bool = False, epoch: int | None = None) -> Output:
    """An output's settings. kind: "image", "docker", "oci" ...; attested: something is attested about the images;
    epoch: the build's SOURCE_DATE_EPOCH. Raises InvalidParameter.
    """
    made = Output(epoch=epoch_of(attributes, epoch))
    by_digest = made.by_digest = flag(attributes, "push-by-digest")
    for text in filter(None, attributes.get("name", "").split(",")):
        try:
            name = references.parse(text.strip())
        except references.InvalidReference as error:
            raise InvalidParameter(f"failed to parse {text}: {error.message}") from None
        if by_digest and name.tag:
            raise InvalidParameter(f"can't push tagged ref {text} by digest")
        made.names.append(name if by_digest else name.with_default_tag())
    made.annotations = _annotations(attributes)
    made.form = _form(attributes, kind, attested or bool(made.annotations))
    made.rewrite = flag(attributes, "rewrite-timestamp", bare=False)
    made.store = flag(attributes, "store", True)
    made.push = flag(attributes, "push")
    made.canonical = flag(attributes, "name-canonical")
    made.tar = flag(attributes, "tar", True)
    for name_ in ("unpack", "registry.insecure"):
        flag(attributes, name_)
    for name_ in ("attestation-inline", "prefer-nondist-layers"):
        flag(attributes, name_, bare=False)
    empty_only = flag(attributes, "danging-name-empty-only")
    if not (empty_only and made.names):
        made.dangling = attributes.get("dangling-name-prefix", "")
    return made


def _form(attributes: Mapping[str, str], kind: str, oci: bool) -> Form:
    wanted = attributes.get("compression", GZIP)
    if wanted not in (UNCOMPRESSED, GZIP, ZSTD):
        raise InvalidParameter(f"unsupported compression type {wanted}")
    force, level = attributes.get("force-compression", "false"), attributes.get("compression-level")
    if force not in ("", *TRUE, *FALSE):
        raise InvalidParameter(
            f'non-bool value {force} specified for force-compression: strconv.ParseBool: parsing "{force}": invalid syntax'
        )
    if level is not None and not re.fullmatch(r"[+-]?\d+", level):
        raise InvalidParameter(
            f"non-integer value {level} specified for compression-level: strconv.ParseInt: "
            f'parsing "{level}": invalid syntax'
        )
    told = flag(attributes, "oci-mediatypes", kind != "docker" or oci or wanted == ZSTD, bare=False)
    if wanted == ZSTD and not told:
        raise InvalidParameter(f'exporter option "compression={wanted}" conflicts with "oci-mediatypes=false"')
    return Form(wanted, None if level is None else int(level), force in ("", *TRUE), told)


def epoch_of(attributes: Mapping[str, str], build: int | None) -> int | None:
    """An output's SOURCE_DATE_EPOCH: its own, else the build's. Raises InvalidParameter."""
    text = attributes.get("source-date-epoch")
    if text is None:
        return build
    if text and not re.fullmatch(r"-?\d+", text):
        raise InvalidParameter(f'invalid SOURCE_DATE_EPOCH: {text}: strconv.ParseInt: parsing "{text}": invalid syntax')
    return int(text) if text else None


def _annotations(attributes: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """annotation.KEY, annotation-manifest[PLATFORM].KEY, annotation-index.KEY ...: by what they are put on."""
    found: dict[str, dict[str, str]] = {}
    for key, value in attributes.items():
        matched = _NOTE.fullmatch(key)
        if matched is None:
            if key.startswith("annotation") and "." in key:
                raise InvalidParameter(f"invalid annotation {key}")
            continue
        place = (matched[1] or "-manifest")[1:]
        if matched[2]:
            if place.startswith("index"):
                raise InvalidParameter(f"can't set platform for index annotation {key}")
            place += f"[{matched[2]}]"
        found.setdefault(place, {})[matched[3]] = value
    return found

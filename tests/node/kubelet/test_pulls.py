"""Logins of images: whose they are, programs that are asked for them, and who may use what was pulled with them."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from longshore.machinery.grpc import RpcError, Status
from longshore.node.kubelet.images import VERIFY, ImageError, ImageManager, policy_of
from longshore.node.kubelet.pulls import providers
from longshore.node.kubelet.pulls.credentials import (
    Login,
    Source,
    default_tag,
    lookup,
    matches,
    of_secret,
    repository,
    without_tag,
)
from longshore.node.kubelet.pulls.keyring import Keyring
from longshore.node.kubelet.pulls.records import ALLOWED, ALWAYS, NEVER, PullRecords, check_allowlist
from longshore.wire.cri import cri


def secret(name: str, auths: dict[str, Any], uid: str = "") -> dict[str, Any]:
    text = base64.b64encode(orjson.dumps({"auths": auths})).decode()
    return {
        "metadata": {"name": name, "namespace": "default", "uid": uid or f"uid-{name}"},
        "data": {".dockerconfigjson": text},
    }


def pod(account: str = "default") -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "namespace": "default", "uid": "uid-p"},
        "spec": {"serviceAccountName": account, "containers": []},
    }


def test_names() -> None:
    assert [default_tag(n) for n in ("a", "a:1", "r:5/a", "a@sha256:x")] == [
        "a:latest",
        "a:1",
        "r:5/a:latest",
        "a@sha256:x",
    ]
    assert [without_tag(n) for n in ("a:1", "r:5/a", "r:5/a:1@sha256:x")] == ["a", "r:5/a", "r:5/a"]
    assert [repository(n) for n in ("a:1", "t/a", "index.docker.io/t/a", "r.io/a", "localhost/a", "r:5/a:1")] == [
        "docker.io/library/a", "docker.io/t/a", "docker.io/t/a", "r.io/a", "localhost/a", "r:5/a",
    ]  # fmt: skip
    assert policy_of({"image": "a"}) == "Always" and policy_of({"image": "a:1"}) == "IfNotPresent"


def test_patterns() -> None:
    for pattern, name, fits in (
        ("r.io", "r.io/a", True), ("r.io/team", "r.io/team/a", True), ("r.io/team", "r.io/other", False),
        ("*.r.io", "a.r.io/x", True), ("*.r.io", "a.b.r.io/x", False), ("*.r.io", "r.io/x", False),
        ("r.io:5000", "r.io/x", False), ("r.io:5000", "r.io:5000/x", True), ("r*.io", "reg.io/x", True),
    ):  # fmt: skip
        assert matches(pattern, name) is fits, (pattern, name)


def test_the_most_specific_login_goes_first() -> None:
    entries = list(
        of_secret(
            secret(
                "s",
                {
                    "https://index.docker.io/v1/": {"auth": base64.b64encode(b"u:p").decode()},
                    "r.io": {"username": "r"},
                    "r.io/team": {"username": "t", "password": "q"},
                },
            )
        )
    )
    assert [login.username for login in lookup(repository("busybox"), entries)] == ["u"]
    assert [login.username for login in lookup(repository("r.io/team/app:1"), entries)] == ["t", "r"]
    assert lookup(repository("q.io/other/app:1"), entries) == []
    assert entries[0][1].source == Source("secret", "uid-s", "default", "s")


CONFIG = """
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: asked
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: ["*.r.io", "r.io"]
  defaultCacheDuration: 1h
  args: ["give"]
  env: [{name: WHO, value: me}]
"""
TOKENS = """
  tokenAttributes:
    serviceAccountTokenAudience: reg
    requireServiceAccount: true
    cacheType: ServiceAccount
    requiredServiceAccountAnnotationKeys: [r.io/role]
    optionalServiceAccountAnnotationKeys: [r.io/more]
"""
PROGRAM = """#!/bin/sh
cat >> {log}
echo "$1 $WHO" >> {log}
cat {answer}
"""


class World:
    """A program, what it is asked and what it answers."""

    def __init__(self, folder: Path, config: str) -> None:
        self.log, self.answer = folder / "log", folder / "answer"
        (folder / "bin").mkdir()
        program = folder / "bin" / "asked"
        program.write_text(PROGRAM.format(log=self.log, answer=self.answer))
        program.chmod(0o755)
        (folder / "config.yaml").write_text(config)
        self.account = {
            "metadata": {"uid": "sa", "annotations": {"r.io/role": "reader", "other": "x"}},
        }
        (self.provider,) = providers.providers(folder / "config.yaml", folder / "bin", self._token, self._account)

    async def _token(self, pod: Any, audience: str) -> str:
        return f"token-for-{audience}"

    async def _account(self, namespace: str, name: str) -> dict[str, Any]:
        return self.account

    def say(self, kind: str, password: str = "q", **more: Any) -> None:
        self.answer.write_bytes(
            orjson.dumps(
                {
                    "kind": "CredentialProviderResponse", "apiVersion": providers.VERSIONS[0], "cacheKeyType": kind,
                    "auth": {"*.r.io": {"username": "u", "password": password}}, **more,
                }
            )
        )  # fmt: skip

    async def ask(self, image: str, who: dict[str, Any] | None = None) -> list[Login]:
        return [login for _, login in await self.provider.entries(image, who or pod())]

    @property
    def questions(self) -> int:
        return self.log.read_text().count("give me") if self.log.exists() else 0


async def test_a_program_is_asked_once_for_what_it_lets_be_kept(tmp_path: Path) -> None:
    world = World(tmp_path, CONFIG)
    world.say("Registry")
    assert await world.ask("q.io/a") == [] and world.questions == 0
    assert await world.ask("x.r.io/a") == [Login("u", "q")]
    request = orjson.loads(world.log.read_text().partition("give")[0])
    assert request == {
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderRequest", "image": "x.r.io/a",
    }  # fmt: skip
    await world.ask("x.r.io/b")
    assert world.questions == 1
    await world.ask("y.r.io/b")
    assert world.questions == 2
    world.say("Image", cacheDuration="0s")
    await world.ask("z.r.io/b")
    await asyncio.gather(world.ask("z.r.io/b"), world.ask("z.r.io/b"))
    assert world.questions == 4
    world.say("Global")
    await world.ask("z.r.io/b")
    assert await world.ask("v.r.io/c") == [Login("u", "q")] and world.questions == 5


async def test_what_a_program_says_wrong_is_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = World(tmp_path, CONFIG)
    for text, words in (
        (b"secret rubbish", "error decoding credential provider plugin response from stdout"),
        (b'{"apiVersion": "x", "cacheKeyType": "Image", "auth": {}}', "did not match expected apiVersion"),
        (
            b'{"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "cacheKeyType": "No"}',
            "did not return a valid cacheKeyType",
        ),
    ):
        world.answer.write_bytes(text)
        assert await world.ask("r.io/a") == []
        assert words in caplog.text and "secret rubbish" not in caplog.text
    world.answer.unlink()
    assert await world.ask("r.io/a") == [] and world.provider.failures == 4


async def test_tokens_of_the_pods_account(tmp_path: Path) -> None:
    world = World(tmp_path, CONFIG + TOKENS)
    world.say("Registry")
    (login,) = await world.ask("x.r.io/a")
    assert login.source == Source("account", "sa", "default", "default")
    request = orjson.loads(world.log.read_text().partition("give")[0])
    assert request["serviceAccountToken"] == "token-for-reg"
    assert request["serviceAccountAnnotations"] == {"r.io/role": "reader"}
    await world.ask("x.r.io/b")
    assert world.questions == 1
    world.account["metadata"]["annotations"]["r.io/more"] = "yes"
    await world.ask("x.r.io/b")
    assert world.questions == 2
    assert await world.ask("y.r.io/b", pod(account="")) == []
    world.say("Registry", password="token-for-reg")
    assert await world.ask("y.r.io/b") == []  # the token itself is no answer here
    del world.account["metadata"]["annotations"]["r.io/role"]
    assert await world.ask("z.r.io/b") == [] and world.questions == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("name: asked", "name: a/b"), "provider name cannot contain '/'"),
        (("/v1\n  match", "/v3\n  match"), "Unsupported value"),
        (('matchImages: ["*.r.io", "r.io"]', "matchImages: []"), "at least 1 item in matchImages"),
        (("defaultCacheDuration: 1h", "x: 1h"), "defaultCacheDuration: Required value"),
        (("name: asked", "name: absent"), "did not exist"),
        (("cacheType: ServiceAccount", "cacheType: Other"), 'Unsupported value: "Other"'),
        (("requireServiceAccount: true", "requireServiceAccount: false"), "requireServiceAccount cannot be false"),
        (("kind: CredentialProviderConfig", "kind: Other"), "wrong Kind"),
    ],
)
def test_wrong_configurations(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        World(tmp_path, (CONFIG + TOKENS).replace(*change))


def own(name: str, password: str = "q", uid: str = "") -> Login:
    return Login("u", password, "", Source("secret", uid or f"uid-{name}", "default", name))


async def may(records: PullRecords, *logins: Login, image: str = "r.io/a:1") -> bool:
    async def found() -> list[Login]:
        return list(logins)

    return not await records.must_pull(image, "sha256:1", found)


async def test_what_was_pulled_with_a_secret_is_for_those_who_have_it(tmp_path: Path) -> None:
    records = PullRecords(tmp_path)
    assert await may(records)  # nobody knows how it came: preloaded
    records.begin("r.io/a:1")
    assert not await may(records)
    records.pulled("r.io/a:1", "sha256:1", own("s"))
    assert not list((tmp_path / "image_manager" / "pulling").iterdir())
    assert not await may(records) and not await may(records, own("other", "x"))
    assert await may(records, own("s")) and await may(records, own("t")) and await may(records, own("s", "changed"))
    assert not await may(records, own("s"), image="r.io/b:1")  # another name of it
    again = PullRecords(tmp_path)
    assert await may(again, own("s", "x")) and await may(again, own("t", "y")) and not await may(again)
    (file,) = (tmp_path / "image_manager" / "pulled").iterdir()
    kept = orjson.loads(file.read_bytes())
    assert kept["kind"] == "ImagePulledRecord" and kept["imageRef"] == "sha256:1"
    assert [s["name"] for s in kept["credentialMapping"]["r.io/a"]["kubernetesSecrets"]] == ["s", "t"]
    again.pulled("r.io/a:2", "sha256:1", None)
    assert await may(again)
    again.keep(())
    assert not list(file.parent.iterdir()) and await may(again)


async def test_accounts_and_policies(tmp_path: Path) -> None:
    records = PullRecords(tmp_path / "a")
    account = Login("u", "p", "", Source("account", "sa", "default", "default"))
    records.pulled("r.io/a:1", "sha256:1", account)
    assert await may(records, account) and not await may(records, own("s"))
    never = PullRecords(tmp_path / "a", NEVER)
    assert await may(never)
    assert not await may(PullRecords(tmp_path / "b", ALWAYS))
    allowed = PullRecords(tmp_path / "c", ALLOWED, ["r.io/team/*", "r.io/a"])
    assert await may(allowed) and await may(allowed, image="r.io/team/x:1") and not await may(allowed, image="r.io/b")
    check_allowlist(["r.io/team/*", "r.io/a"])
    for wrong in ("r.io/*/a", "a:1", " a", "/*"):
        with pytest.raises(ValueError):
            check_allowlist([wrong])


async def test_a_pull_that_was_cut_short_needs_a_login(tmp_path: Path) -> None:
    PullRecords(tmp_path).begin("r.io/a:1")
    records = PullRecords(tmp_path)
    records.settle([cri.Image(id="sha256:1", repo_tags=["r.io/a:1"]), cri.Image(id="sha256:2", repo_tags=["b"])])
    assert not await may(records) and not await may(records, own("s"))
    assert not list((tmp_path / "image_manager" / "pulling").iterdir())


class Registry:
    """A runtime that pulls r.io/a:1 for those who know the password."""

    def __init__(self) -> None:
        self.there, self.asked, self.verify = False, [], ""

    async def image_call(self, method: str, **fields: Any) -> Any:
        if method == "ImageStatus":
            image = cri.Image(id="sha256:1", size=7) if self.there else None
            return cri.ImageStatusResponse(image=image)
        self.asked.append(fields["auth"].password if "auth" in fields else "")
        self.verify = fields["image"].annotations.get(VERIFY, "")
        if self.asked[-1] != "right":
            raise RpcError(Status.UNKNOWN, "denied")
        self.there = True
        return cri.PullImageResponse(image_ref="sha256:1")


async def test_pods_show_their_logins(tmp_path: Path) -> None:
    runtime, told = Registry(), []
    records = PullRecords(tmp_path)
    manager = ImageManager(runtime, lambda pod, container, *words: told.append(words), Keyring(tmp_path), records)  # type: ignore[arg-type]

    async def ensure(policy: str, *secrets: dict[str, Any], uid: str) -> str:
        who = {"metadata": {"name": uid, "namespace": "default", "uid": uid}, "spec": {}}
        return await manager.ensure(who, {"image": "r.io/a:1", "imagePullPolicy": policy}, secrets, SimpleNamespace())

    right = secret("right", {"r.io": {"username": "u", "password": "right"}})
    wrong = secret("wrong", {"r.io": {"username": "u", "password": "wrong"}})
    with pytest.raises(ImageError, match="denied"):
        await ensure("IfNotPresent", wrong, uid="a")
    assert not list((tmp_path / "image_manager" / "pulling").iterdir())
    assert await ensure("IfNotPresent", wrong, right, uid="b") == "sha256:1" and runtime.asked[-2:] == [
        "wrong",
        "right",
    ]
    assert await ensure("Never", right, uid="c") == "sha256:1" and len(runtime.asked) == 3
    with pytest.raises(ImageError) as refused:
        await ensure("Never", uid="d")
    assert refused.value.reason == "ErrImageNeverPull"
    with pytest.raises(ImageError, match="denied"):
        await ensure("IfNotPresent", uid="e")
    assert runtime.asked[-1] == "" and runtime.verify == "true"
    # The node's own login is everybody's.
    (tmp_path / "config.json").write_bytes(orjson.dumps({"auths": {"r.io": {"username": "n", "password": "right"}}}))
    assert await ensure("IfNotPresent", uid="f") == "sha256:1"
    (tmp_path / "config.json").unlink()
    assert await ensure("IfNotPresent", uid="g") == "sha256:1" and runtime.asked[-1] == "right"

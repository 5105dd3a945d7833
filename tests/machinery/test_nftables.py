"""libnftables in-process: transactions, listings, errors, other namespaces, notice of others' changes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from longshore.machinery import netns, process
from longshore.machinery.nftables import ChangeMonitor, Nftables, NftablesError

pytestmark = pytest.mark.root


def test_a_transaction_is_all_or_nothing() -> None:
    with Nftables() as nft:
        with pytest.raises(NftablesError) as caught:
            nft.run("add table ip t_one\nadd rule ip t_one absent accept")
        assert caught.value.missing
        assert ("ip", "t_one") not in nft.tables()
        nft.run("add table ip t_one; add set ip t_one s { type ipv4_addr; }; add element ip t_one s { 10.0.0.1 }")
        assert ("ip", "t_one") in nft.tables()
        (found,) = [item["set"] for item in nft.json("list set ip t_one s") if "set" in item]
        assert found["elem"] == ["10.0.0.1"]
        assert "10.0.0.1" in nft.run("list table ip t_one")
        with pytest.raises(NftablesError) as caught:
            nft.run("create table ip t_one")
        assert caught.value.exists
        nft.check("delete table ip t_one")
        assert ("ip", "t_one") in nft.tables()
        with pytest.raises(NftablesError, match="syntax error"):
            nft.run("no such words")
        nft.run("delete table ip t_one")


def test_it_keeps_to_its_namespace(tmp_path: Path) -> None:
    path = tmp_path / "ns"
    netns.create(path)
    try:
        with Nftables(path) as there, Nftables() as here:
            there.run("add table inet elsewhere")
            assert ("inet", "elsewhere") in there.tables()
            assert ("inet", "elsewhere") not in here.tables()
    finally:
        netns.delete(path)


async def test_others_changes_are_told_and_ours_are_not() -> None:
    with Nftables() as ours:
        ours.run("add table ip t_watched; add chain ip t_watched c; add table ip t_other")
        told = asyncio.Event()
        monitor = ChangeMonitor({"t_watched"}, told.set, own_ports={ours.port})
        try:
            ours.run("add rule ip t_watched c accept")
            await process.run(["nft", "add", "chain", "ip", "t_other", "c"])
            await asyncio.sleep(0.05)
            assert not told.is_set()
            await process.run(["nft", "flush", "ruleset"])
            await asyncio.wait_for(told.wait(), 5)
        finally:
            monitor.close()

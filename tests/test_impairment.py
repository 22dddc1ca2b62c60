"""The setting for an impaired boot network, and what it does to a machine at iPXE's prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kboot.config import ClusterConfig, Config, read_impairment
from kboot.errors import ConfigError
from kboot.kubevirt.manifests import Run
from kboot.kubevirt.vm_manifest import manifest
from kboot.machine_spec import Impairment, MachineSpec
from kboot.session import open_session


def test_an_impairment_is_read_with_its_units() -> None:
    assert read_impairment("") is None
    assert read_impairment("loss=2.5%, delay=50ms, mtu=1400, dns=not-found") == Impairment(
        loss=0.025, delay_s=0.05, mtu=1400, dns="not-found"
    )
    assert read_impairment("delay=1.5s") == Impairment(delay_s=1.5)


@pytest.mark.parametrize(
    "text", ["loss=5", "loss=101%", "delay=50", "mtu=100", "mtu=9000", "dns=slow", "jitter=1ms"]
)
def test_what_is_no_impairment_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=f"impairment: '{text}' is none; say it as in .* loss=5%"):
        read_impairment(text)


def test_a_cluster_says_that_it_cannot() -> None:
    run = Run(namespace="n", identifier="r", owner_uid="")
    spec = MachineSpec(impairment=Impairment(loss=0.1))
    with pytest.raises(ConfigError, match="impairment is for local machines"):
        manifest(spec, run, ClusterConfig())


def test_ipxe_finds_no_name_and_loads_in_spite_of_losses(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(300_000))
    with open_session(Config(accel="tcg"), evidence=tmp_path / "evidence") as session:
        config = replace(session.config, impairment="loss=3%,delay=5ms,dns=not-found")
        with session.ipxe(config, name="impaired") as ipxe:
            error = ipxe.run("imgfetch http://boot.example/x").errno
            assert error is not None
            assert error.cause == "DNS name does not exist"
            ipxe.succeed(f"imgfetch --name image {ipxe.server.put(tmp_path / 'image')}")
            assert "300000 bytes" in ipxe.succeed("imgstat image")

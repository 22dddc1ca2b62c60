from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kboot.kubevirt import processors as on_cluster
from kboot.machine_spec import Impairment, MachineSpec
from kboot.qemu.argv import Flash, Ipxe, Wiring, argv

SPEC = MachineSpec(name="m0", boot_file="http://10.0.2.2:8080/token/scripts/m0/boot.ipxe")
WIRING = Wiring.inherited(serial_fd=3, control_fd=4)


def command(spec: MachineSpec = SPEC, **changes: object) -> list[str]:
    values: dict[str, object] = {
        "program": "qemu-system-x86_64",
        "accelerator": "tcg",
        "wiring": WIRING,
        "flash": None,
    }
    return argv(spec, **(values | changes))  # type: ignore[arg-type]


def value_of(option: str, words: list[str]) -> list[str]:
    return [words[at + 1] for at, word in enumerate(words) if word == option]


def test_the_boot_file_is_dhcps() -> None:
    (network,) = value_of("-netdev", command())
    assert network == f"user,id=net0,bootfile={SPEC.boot_file}"


def test_a_comma_in_the_boot_file_is_not_another_option() -> None:
    spec = MachineSpec(name="m0", boot_file="http://host/a,hostfwd=b")
    assert value_of("-netdev", command(spec)) == ["user,id=net0,bootfile=http://host/a,,hostfwd=b"]


def test_dhcp_may_name_no_boot_file_or_one_that_is_not_there() -> None:
    (network,) = value_of("-netdev", command(replace(SPEC, dhcp="no-file")))
    assert network == "user,id=net0"
    (network,) = value_of("-netdev", command(replace(SPEC, dhcp="wrong-file")))
    assert network == f"user,id=net0,bootfile={SPEC.boot_file}.none"


def test_the_card_of_an_impaired_network_is_at_a_switch_and_by_hand_at_a_good_one() -> None:
    impaired = replace(SPEC, impairment=Impairment(loss=0.1))
    assert value_of("-netdev", command(impaired, cables={"card": "7", "hub": "8"}))[1:] == [
        "hubport,id=hub0,hubid=100,netdev=uplink",
        "stream,id=wire,server=off,addr.type=fd,addr.str=8",
        "hubport,id=hub1,hubid=100,netdev=wire",
        "stream,id=net0,server=off,addr.type=fd,addr.str=7",
    ]
    assert command(impaired) == command(SPEC)


def test_an_ipxe_that_another_one_loads_leaves_the_card_its_rom() -> None:
    loaded = Ipxe(path=Path("/a/undionly.kpxe"), is_rom=False, is_loaded=True)
    assert command(ipxe=loaded) == command()


def test_authorities_are_for_uefis_tls() -> None:
    (word,) = value_of("-fw_cfg", command(SPEC, authorities=Path("/run/a,b")))
    assert word == "name=etc/edk2/https/cacerts,file=/run/a,,b"


def test_a_card_whose_dhcp_does_not_answer_is_at_a_hub() -> None:
    assert value_of("-netdev", command(replace(SPEC, dhcp="silent"))) == [
        f"user,id=uplink,bootfile={SPEC.boot_file}",
        "hubport,id=hub0,hubid=100,netdev=uplink",
        "hubport,id=net0,hubid=100",
    ]


def test_an_isolated_guest_reaches_its_boot_server_and_nothing_else() -> None:
    spec = MachineSpec(boot_file="http://10.0.2.100:8080/boot.ipxe")
    (network,) = value_of("-netdev", command(spec, forwarder="/opt/a,b/busybox"))
    assert network == (
        "user,id=net0,bootfile=http://10.0.2.100:8080/boot.ipxe,restrict=on,"
        "guestfwd=tcp:10.0.2.100:8080-cmd:/opt/a,,b/busybox nc 127.0.0.1 8080"
    )


def test_the_network_card_is_the_only_thing_to_boot_from() -> None:
    words = command()
    assert value_of("-boot", words) == ["strict=on"]
    (card,) = value_of("-device", words)
    assert card.startswith("e1000e,netdev=net0,mac=")
    assert card.endswith("bootindex=1")


def test_the_card_is_of_the_model_that_is_asked_for_and_of_the_device_that_a_rom_is_for() -> None:
    assert card_of(command(replace(SPEC, nic_model="rtl8139", nics=2))) == ["rtl8139", "rtl8139"]
    virtio = replace(SPEC, nic_model="virtio")
    assert card_of(command(virtio)) == ["virtio-net-pci"]
    old = Ipxe(path=Path("/a.rom"), is_rom=True, rom_id=(0x1AF4, 0x1000))
    assert card_of(command(virtio, ipxe=old)) == ["virtio-net-pci"]
    (words,) = value_of("-device", command(virtio, ipxe=replace(old, rom_id=(0x1AF4, 0x1041))))
    assert words.startswith("virtio-net-pci,disable-legacy=on,netdev=net0,")
    assert words.endswith(",romfile=/a.rom")


def card_of(words: list[str]) -> list[str]:
    return [device.partition(",")[0] for device in value_of("-device", words)]


def test_memory_and_processors_are_the_specs() -> None:
    spec = MachineSpec(name="m0", boot_file="http://h/b", memory_mib=2048, cpus=96)
    words = command(spec)
    assert value_of("-m", words) == ["2048M"]
    assert value_of("-smp", words) == ["96"]


def test_kvm_gets_the_hosts_processor_and_tcg_the_best_it_can_emulate() -> None:
    assert value_of("-cpu", command(accelerator="kvm")) == ["host"]
    assert value_of("-cpu", command(accelerator="tcg")) == ["max"]


def test_uefi_has_its_code_shared_and_its_variables_writable() -> None:
    flash = Flash(
        code=Path("/fw/CODE.fd"),
        variables=Path("/run/a,b/vars.fd"),
        template=Path("/fw/VARS.fd"),
        format="raw",
    )
    assert value_of("-drive", command(flash=flash)) == [
        "if=pflash,unit=0,format=raw,readonly=on,file=/fw/CODE.fd",
        "if=pflash,unit=1,format=raw,readonly=off,file=/run/a,,b/vars.fd",
    ]


def test_extra_arguments_come_last_and_unchanged() -> None:
    spec = MachineSpec(
        name="m0", boot_file="http://h/b", extra_arguments=("-device", "i6300esb,id=a b")
    )
    assert command(spec)[-2:] == ["-device", "i6300esb,id=a b"]


def test_by_hand_the_serial_port_is_the_terminal_and_nothing_is_inherited() -> None:
    words = command(wiring=Wiring.by_hand())
    assert not any("fd=" in word for word in words)
    assert any(word.startswith("stdio") for word in value_of("-chardev", words))


def test_more_cards_are_on_networks_of_their_own_and_boot_nothing() -> None:
    words = command(replace(SPEC, nics=3))
    assert value_of("-netdev", words)[1:] == [
        "user,id=nic2,net=10.0.3.0/24",
        "user,id=nic3,net=10.0.4.0/24",
    ]
    cards = value_of("-device", words)
    assert [card.rpartition(",")[2] for card in cards] == ["bootindex=1", "romfile=", "romfile="]
    assert len({card.split("mac=")[1].split(",")[0] for card in cards}) == 3
    isolated = command(replace(SPEC, nics=2), forwarder="/busybox")
    assert value_of("-netdev", isolated)[1].endswith(",restrict=on")
    fault = on_cluster.fault(replace(SPEC, nics=2))
    assert "more cards need networks of Multus" in str(fault)

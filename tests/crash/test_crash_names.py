"""A function has one name, whatever compilers, macros and architectures make of it."""

from __future__ import annotations

import pytest

from kboot.crash.stack import base_name, entries


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("tdev_read.isra.0.cold", "tdev_read"),
        ("tdev_read.part.3.constprop.1", "tdev_read"),
        ("tdev_read.llvm.7201", "tdev_read"),
        ("tdev_read.cfi_jt", "tdev_read"),
        ("tdev_read$5a4b3c2d1e0f5a4b", "tdev_read"),
        ("__cfi_tdev_read", "tdev_read"),
        ("__pfx_tdev_read", "tdev_read"),
        ("__cfi_check", "__cfi_check"),
        (".tdev_read", "tdev_read"),
        ("bpf_prog_6deef7357e7b4530_tdev", "bpf_prog_tdev"),
        ("bpf_prog_6deef7357e7b4530", "bpf_prog"),
        ("bpf_prog_load", "bpf_prog_load"),
        ("__x64_sys_tdev", "sys_tdev"),
        ("__arm64_sys_tdev", "sys_tdev"),
        ("__s390x_sys_tdev", "sys_tdev"),
        ("__riscv_sys_tdev", "sys_tdev"),
        ("__se_sys_tdev", "sys_tdev"),
        ("__do_sys_tdev", "sys_tdev"),
        ("SyS_tdev", "sys_tdev"),
        ("SYSC_tdev", "sys_tdev"),
        ("__ia32_compat_sys_tdev", "compat_sys_tdev"),
        ("compat_SyS_tdev", "compat_sys_tdev"),
        ("__sys_tdev", "__sys_tdev"),
        ("_Z9tdev_readPci", "tdev_read"),
        ("_ZN4tdev5queue4pushEi", "tdev::queue::push"),
        ("_ZN4tdev5queue4push17h0123456789abcdefE", "tdev::queue::push"),
        ("_RNvMs_NtCsABC_4tdev5queueNtB4_5Queue4push", "<tdev::queue::Queue>::push"),
        ("_RNvMs_NtCsABC_4tdev5queueNtB4_5Queue4push.cold", "<tdev::queue::Queue>::push"),
        ("_RNvMs5_CsABC_4tdevINtB5_3BufAhj4_E4read", "<tdev::Buf<[u8; 4]>>::read"),
        ("_RNCNvCsABC_4tdev4open0B3_", "tdev::open::{closure#0}"),
        (
            "_RINvNtCsABC_4tdev3mem4swapNtNtB4_5queue5QueuemE",
            "tdev::mem::swap::<tdev::queue::Queue, u32>",
        ),
        (
            "_RNvXs_CsABC_4tdevNtB4_4DiskNtNtCsDEF_6kernel5block3Ops4read",
            "<tdev::Disk as kernel::block::Ops>::read",
        ),
        ("_RNvXCsABC_4tdevRNtB2_4DiskNtB2_3Ops4read", "<&tdev::Disk as tdev::Ops>::read"),
        ("_RX", "_RX"),
        ("_RNvC99tdev", "_RNvC99tdev"),
        ("_RNvB9_4read", "_RNvB9_4read"),
        ("_R" + "NvM" * 400, "_R" + "NvM" * 400),
        ("<tdev::queue::Queue>::push", "<tdev::queue::Queue>::push"),
    ],
)
def test_a_symbol_has_its_sources_name(symbol: str, name: str) -> None:
    assert base_name(symbol) == name


@pytest.mark.parametrize(
    "symbol", [".tdev_read", "<tdev::queue::Queue>::push", "tdev::queue::push", "SyS_tdev"]
)
def test_a_frame_keeps_the_symbol_as_printed(symbol: str) -> None:
    (entry,) = entries(f" {symbol}+0x1c/0x40 [tdev]\n")
    assert (entry.frame.symbol, entry.frame.function) == (symbol, base_name(symbol))
    assert (entry.frame.offset, entry.frame.size, entry.frame.module) == (0x1C, 0x40, "tdev")


def test_what_powerpc_calls_unreliable_is_a_guess() -> None:
    frames = [
        entry.frame
        for entry in entries(
            "[c000000001bb3530] [c000000001bb35a0] .tdev_left+0x10/0x40 (unreliable)\n"
            "[c000000001bb3710] [c0000000000286fc] .tdev_wait+0x3c/0x90\n"
        )
    ]
    assert [(frame.function, frame.reliable) for frame in frames] == [
        ("tdev_left", False),
        ("tdev_wait", True),
    ]

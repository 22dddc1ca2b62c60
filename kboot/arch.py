"""The architectures that kboot has machines for, one row each; nobody else knows their names.

To add one: a row in `ARCHITECTURES`. What only a format knows (the layout of an image's header, of
an ELF file) stays with its reader, which asks here for the name that belongs to a number.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kboot.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class KvmProbe:
    """A guest that tells whether KVM works, see `kboot.qemu.accel`."""

    #: What the network card's ROM boots by TFTP.
    boot_file: bytes
    #: The device by which the guest ends QEMU, and the exit status that it causes.
    arguments: tuple[str, ...]
    exit_status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DebianFile:
    """A file in a package of Debian's."""

    package: str
    #: Below ``/``.
    path: str
    suite: str = "trixie"


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """All that is another one for another architecture."""

    #: As ``uname -m`` says it, and QEMU's descriptors of firmware.
    name: str
    #: As Debian names it.
    debian: str
    #: As KubeVirt names it; None if it has no such machines.
    kubevirt: str | None

    # ------------------------------------------------------------------------------- its files
    #: ``e_machine`` of its ELF files.
    elf_machine: int
    #: IMAGE_FILE_MACHINE_* in the PE header of its UEFI programs, kernels among them.
    pe_machine: int
    #: Of an uncompressed ``Image``, at byte 0x38; None where kernels have another form.
    image_magic: bytes | None
    #: Where UEFI looks for what it boots from a disk: ``EFI/BOOT/<name>``.
    efi_boot_name: str
    #: A function that ends with its exit status: at least 32 bytes of standard input become 256
    #: bits of the kernel's entropy (random(4)), and its generator starts anew from them. The exit
    #: status is 0, the errno of the reseeding, or 1. Behind its last byte is ``/dev/urandom\0``.
    reseed_code: bytes

    # ------------------------------------------------------------------------------ its kernels
    #: The guest's name for the serial line that is read.
    console: str
    #: What makes a kernel talk on it before it has its drivers.
    early_console: str
    #: What a kernel takes, its last zero byte included: COMMAND_LINE_SIZE in
    #: arch/*/include/uapi/asm/setup.h. The rest of a longer one it drops without a word.
    command_line_size: int

    # ----------------------------------------------------------------------------- its machines
    #: Whether there are machines with a BIOS. All have UEFI.
    has_bios: bool
    #: The program, and Debian's package of it.
    qemu: str
    qemu_package: str
    #: For ``-machine``: its type and properties.
    machine: str
    #: A version of that type, as descriptors of firmware have patterns of them.
    machine_version: str
    #: For ``-cpu`` under emulation; under KVM it is ``host``.
    emulated_cpu: str
    #: The firmware that QEMU brings itself, as its machine names it.
    roms: tuple[str, ...]
    #: Whether network cards have a ROM that boots from the network.
    has_card_roms: bool
    #: None for iPXE, started by UEFI.
    kvm_probe: KvmProbe | None
    #: Code and variables of UEFI where there are no descriptors, below the root: as Debian and
    #: Ubuntu, Fedora, Arch and openSUSE have them.
    uefi_places: tuple[tuple[str, str], ...]
    uefi_package: str
    #: Where distributions have iPXE as a UEFI program.
    ipxe_places: tuple[Path, ...]
    #: How to get one of them.
    ipxe_remedy: str
    #: What is fetched where there is none; None where distributions have one.
    ipxe_file: DebianFile | None
    #: What is fetched for the tiny system where this host's busybox is for other processors.
    busybox_file: DebianFile = DebianFile(package="busybox-static", path="usr/bin/busybox")

    def firmware(self, wanted: Literal["auto", "bios", "uefi"]) -> Literal["bios", "uefi"]:
        """The firmware of a machine, where ``auto`` is what most of its kind have."""
        if wanted == "auto":
            return "bios" if self.has_bios else "uefi"
        return wanted

    @property
    def is_hosts(self) -> bool:
        """Whether this host's processor is one of these."""
        return platform.machine() == self.name


def _code(listing: str) -> bytes:
    """The machine code in a listing: in each line, the bytes stand before two spaces."""
    columns = (line.strip().partition("  ")[0] for line in listing.strip().splitlines())
    return bytes.fromhex("".join(columns))


# ------------------------------------------------------------------------------------------ x86_64

_X86_64_RESEED = """
    48 83 ec 78           sub  rsp, 120             ; a struct rand_pool_info
    31 c0                 xor  eax, eax             ; read(0, rsp + 8, 64)
    31 ff                 xor  edi, edi
    48 8d 74 24 08        lea  rsi, [rsp + 8]
    6a 40                 push 64
    5a                    pop  rdx
    0f 05                 syscall
    83 f8 20              cmp  eax, 32
    7c 47                 jl   fail
    89 44 24 04           mov  [rsp + 4], eax       ; buf_size
    c7 04 24 00 01 00 00  mov  dword [rsp], 256     ; entropy_count
    48 8d 3d 3a 00 00 00  lea  rdi, [rip + path]    ; open(path, O_RDONLY)
    31 f6                 xor  esi, esi
    6a 02                 push 2
    58                    pop  rax
    0f 05                 syscall
    85 c0                 test eax, eax
    78 2a                 js   fail
    89 c3                 mov  ebx, eax
    89 df                 mov  edi, ebx             ; ioctl(fd, RNDADDENTROPY, rsp)
    be 03 52 08 40        mov  esi, 0x40085203
    48 89 e2              mov  rdx, rsp
    6a 10                 push 16
    58                    pop  rax
    0f 05                 syscall
    85 c0                 test eax, eax
    75 15                 jnz  fail
    89 df                 mov  edi, ebx             ; ioctl(fd, RNDRESEEDCRNG)
    be 07 52 00 00        mov  esi, 0x5207
    6a 10                 push 16
    58                    pop  rax
    0f 05                 syscall
    f7 d8                 neg  eax                  ; exit(errno)
    89 c7                 mov  edi, eax
    6a 3c                 exit: push 60
    58                    pop  rax
    0f 05                 syscall
    6a 01                 fail: push 1
    5f                    pop  rdi
    eb f6                 jmp  exit
"""

#: A boot file for PXE, which runs in real mode at 0000:7c00, and enters 64-bit mode as Linux does.
_X86_64_PROBE = bytes.fromhex(
    # cli; xor ax, ax; mov ds, ax; mov es, ax; cld
    "fa 31c0 8ed8 8ec0 fc"
    # Three page tables from 0x1000 on, of zeros: mov di, 0x1000; mov ecx, 0xc00; rep stosd
    "bf0010 66b9000c0000 6631c0 66f3ab"
    # They map the first 2 MiB: mov word [0x1000], 0x2003; [0x2000], 0x3003; [0x3000], 0x83
    "c70600100320 c70600200330 c70600308300"
    # lgdt [0x7c78]; mov eax, 0x1000; mov cr3, eax; mov eax, 0xa0 (PAE, PGE); mov cr4, eax
    "660f0116787c 66b800100000 0f22d8 66b8a0000000 0f22e0"
    # EFER.LME: mov ecx, 0xc0000080; rdmsr; or ax, 0x100; wrmsr
    "66b9800000c0 0f32 0d0001 0f30"
    # Paging and protection: mov eax, 0x80000011; mov cr0, eax; jmp far 8:0x7c5f
    "66b811000080 0f22c0 66ea5f7c00000800"
    # In 64-bit mode, isa-debug-exit makes of 42 the exit status 42 * 2 + 1:
    # mov al, 42; out 0xf4, al; hlt; jmp -3
    "b02a e6f4 f4 ebfd 6690"
    # The segments: none, and 64-bit code; and where they are.
    "0000000000000000 00000000009a2000 0f00687c0000"
)

X86_64 = Architecture(
    name="x86_64",
    debian="amd64",
    kubevirt="amd64",
    elf_machine=62,
    pe_machine=0x8664,
    image_magic=None,
    efi_boot_name="BOOTX64.EFI",
    reseed_code=_code(_X86_64_RESEED),
    console="ttyS0",
    early_console="earlyprintk=ttyS0,115200",
    command_line_size=2048,
    has_bios=True,
    qemu="qemu-system-x86_64",
    qemu_package="qemu-system-x86",
    # Without graphics=off, SeaBIOS and iPXE write to a VGA we do not have (QEMU 7.2).
    machine="q35,graphics=off",
    machine_version="pc-q35-0",
    emulated_cpu="max",
    roms=("bios-256k.bin",),
    has_card_roms=True,
    kvm_probe=KvmProbe(
        boot_file=_X86_64_PROBE,
        # It makes of 42 the exit status 42 * 2 + 1.
        arguments=("-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
        exit_status=85,
    ),
    uefi_places=(
        ("usr/share/OVMF/OVMF_CODE_4M.fd", "usr/share/OVMF/OVMF_VARS_4M.fd"),
        ("usr/share/OVMF/OVMF_CODE.fd", "usr/share/OVMF/OVMF_VARS.fd"),
        ("usr/share/edk2/ovmf/OVMF_CODE_4M.qcow2", "usr/share/edk2/ovmf/OVMF_VARS_4M.qcow2"),
        ("usr/share/edk2/ovmf/OVMF_CODE.fd", "usr/share/edk2/ovmf/OVMF_VARS.fd"),
        ("usr/share/edk2/x64/OVMF_CODE.4m.fd", "usr/share/edk2/x64/OVMF_VARS.4m.fd"),
        ("usr/share/qemu/ovmf-x86_64-code.bin", "usr/share/qemu/ovmf-x86_64-vars.bin"),
    ),
    uefi_package="ovmf",
    # Debian since 13, Debian and Ubuntu, Fedora and openSUSE, Arch.
    ipxe_places=(
        Path("/usr/lib/ipxe/ipxe-amd64.efi"),
        Path("/usr/lib/ipxe/ipxe.efi"),
        Path("/boot/ipxe.efi"),
        Path("/usr/share/ipxe/ipxe-x86_64.efi"),
        Path("/usr/share/ipxe/x86_64/ipxe.efi"),
    ),
    ipxe_remedy="apt-get install ipxe (Fedora: ipxe-bootimgs-x86, Arch: ipxe)",
    ipxe_file=None,
)


# ----------------------------------------------------------------------------------------- aarch64

_AARCH64_RESEED = """
    ff 03 02 d1  sub  sp, sp, #128          ; a struct rand_pool_info
    00 00 80 52  mov  w0, #0                ; read(0, sp + 8, 64)
    e1 23 00 91  add  x1, sp, #8
    02 08 80 d2  mov  x2, #64
    e8 07 80 52  mov  w8, #63
    01 00 00 d4  svc  #0
    1f 80 00 71  cmp  w0, #32
    eb 02 00 54  b.lt fail
    e0 07 00 b9  str  w0, [sp, #4]          ; buf_size
    01 20 80 52  mov  w1, #256              ; entropy_count
    e1 03 00 b9  str  w1, [sp]
    60 0c 80 12  mov  w0, #-100             ; openat(AT_FDCWD, path, O_RDONLY)
    81 02 00 10  adr  x1, path
    02 00 80 52  mov  w2, #0
    08 07 80 52  mov  w8, #56
    01 00 00 d4  svc  #0
    c0 01 f8 37  tbnz w0, #31, fail
    f3 03 00 2a  mov  w19, w0
    61 40 8a 52  mov  w1, #0x5203           ; ioctl(fd, RNDADDENTROPY, sp)
    01 01 a8 72  movk w1, #0x4008, lsl #16
    e2 03 00 91  mov  x2, sp
    a8 03 80 52  mov  w8, #29
    01 00 00 d4  svc  #0
    e0 00 00 35  cbnz w0, fail
    e0 03 13 2a  mov  w0, w19
    e1 40 8a 52  mov  w1, #0x5207           ; ioctl(fd, RNDRESEEDCRNG)
    01 00 00 d4  svc  #0
    e0 03 00 4b  neg  w0, w0                ; exit(errno)
    a8 0b 80 52  exit: mov  w8, #93
    01 00 00 d4  svc  #0
    20 00 80 52  fail: mov  w0, #1
    fd ff ff 17  b    exit
"""

AARCH64 = Architecture(
    name="aarch64",
    debian="arm64",
    kubevirt="arm64",
    elf_machine=183,
    pe_machine=0xAA64,
    image_magic=b"ARM\x64",
    efi_boot_name="BOOTAA64.EFI",
    reseed_code=_code(_AARCH64_RESEED),
    console="ttyAMA0",
    early_console="earlycon",
    command_line_size=2048,
    has_bios=False,
    qemu="qemu-system-aarch64",
    qemu_package="qemu-system-arm",
    machine="virt,gic-version=max",
    machine_version="virt-0",
    # Pointer authentication as the architecture defines it takes most of an emulated boot's time.
    emulated_cpu="max,pauth-impdef=on",
    roms=(),
    has_card_roms=False,
    kvm_probe=None,
    uefi_places=(
        ("usr/share/AAVMF/AAVMF_CODE.fd", "usr/share/AAVMF/AAVMF_VARS.fd"),
        (
            "usr/share/edk2/aarch64/QEMU_EFI-pflash.raw",
            "usr/share/edk2/aarch64/vars-template-pflash.raw",
        ),
        ("usr/share/edk2/aarch64/QEMU_CODE.fd", "usr/share/edk2/aarch64/QEMU_VARS.fd"),
        ("usr/share/qemu/aavmf-aarch64-code.bin", "usr/share/qemu/aavmf-aarch64-vars.bin"),
    ),
    uefi_package="qemu-efi-aarch64",
    # Debian since 13.
    ipxe_places=(Path("/usr/lib/ipxe/ipxe-arm64.efi"),),
    ipxe_remedy="apt-get install ipxe (Debian 13)",
    ipxe_file=DebianFile(package="ipxe", path="usr/lib/ipxe/ipxe-arm64.efi"),
)


# ----------------------------------------------------------------------------------------- riscv64

_RISCV64_RESEED = """
    13 01 01 f8  add   sp, sp, -128         ; a struct rand_pool_info
    13 05 00 00  li    a0, 0                ; read(0, sp + 8, 64)
    93 05 81 00  add   a1, sp, 8
    13 06 00 04  li    a2, 64
    93 08 f0 03  li    a7, 63
    73 00 00 00  ecall
    93 02 00 02  li    t0, 32
    63 42 55 06  blt   a0, t0, fail
    23 22 a1 00  sw    a0, 4(sp)            ; buf_size
    93 02 00 10  li    t0, 256
    23 20 51 00  sw    t0, 0(sp)            ; entropy_count: 256
    13 05 c0 f9  li    a0, -100             ; openat(AT_FDCWD, path, O_RDONLY)
    97 05 00 00  auipc a1, %pcrel_hi(path)
    93 85 85 05  add   a1, a1, %pcrel_lo(path)
    13 06 00 00  li    a2, 0
    93 08 80 03  li    a7, 56
    73 00 00 00  ecall
    63 4e 05 02  bltz  a0, fail
    13 04 05 00  mv    s0, a0
    b7 55 08 40  lui   a1, 0x40085          ; ioctl(fd, RNDADDENTROPY, sp)
    9b 85 35 20  addw  a1, a1, 515
    13 06 01 00  mv    a2, sp
    93 08 d0 01  li    a7, 29
    73 00 00 00  ecall
    63 10 05 02  bnez  a0, fail
    13 05 04 00  mv    a0, s0
    b7 55 00 00  lui   a1, 0x5              ; ioctl(fd, RNDRESEEDCRNG)
    9b 85 75 20  addw  a1, a1, 519
    73 00 00 00  ecall
    33 05 a0 40  neg   a0, a0               ; exit(errno)
    93 08 d0 05  exit: li    a7, 93
    73 00 00 00  ecall
    13 05 10 00  fail: li    a0, 1
    6f f0 5f ff  j     exit
"""

RISCV64 = Architecture(
    name="riscv64",
    debian="riscv64",
    kubevirt=None,
    elf_machine=243,
    pe_machine=0x5064,
    image_magic=b"RSC\x05",
    efi_boot_name="BOOTRISCV64.EFI",
    reseed_code=_code(_RISCV64_RESEED),
    console="ttyS0",
    early_console="earlycon",
    command_line_size=1024,
    has_bios=False,
    qemu="qemu-system-riscv64",
    # Debian 13's: that of Debian 12 (QEMU 7.2) does not start UEFI from its first flash.
    qemu_package="qemu-system-riscv",
    machine="virt",
    machine_version="virt",
    emulated_cpu="rv64",
    roms=(),
    has_card_roms=False,
    kvm_probe=None,
    uefi_places=(
        (
            "usr/share/qemu-efi-riscv64/RISCV_VIRT_CODE.fd",
            "usr/share/qemu-efi-riscv64/RISCV_VIRT_VARS.fd",
        ),
    ),
    uefi_package="qemu-efi-riscv64",
    # Debian since 13.
    ipxe_places=(Path("/usr/lib/ipxe/ipxe-riscv64.efi"),),
    ipxe_remedy="apt-get install ipxe (Debian 13)",
    ipxe_file=DebianFile(package="ipxe", path="usr/lib/ipxe/ipxe-riscv64.efi"),
)

ARCHITECTURES = (X86_64, AARCH64, RISCV64)

#: Of a machine about which nobody has said anything.
DEFAULT = X86_64


def host() -> Architecture:
    """This host's, or if kboot has no machine for that, the one of which it has most."""
    return next((row for row in ARCHITECTURES if row.is_hosts), DEFAULT)


#: Where Debian's packages are, unless somebody says otherwise.
DEBIAN_MIRROR = "https://deb.debian.org/debian"

#: What can be told apart, and that kboot has no machine for.
_OTHER_ELF_MACHINES = {3: "i686", 258: "loongarch64"}
_OTHER_PE_MACHINES = {0x6264: "loongarch64"}


def of(name: str, *, wanted_by: str = "") -> Architecture:
    """The row of an architecture as ``uname -m`` says it.

    `ConfigError` if there is none, about the kernel that it is `wanted_by`.
    """
    for row in ARCHITECTURES:
        if row.name == name:
            return row
    kernel = f"{wanted_by}: a kernel for {name}: " if wanted_by else ""
    raise ConfigError(
        f"{kernel}kboot has no machine for {name}; it has: {', '.join(sorted(names()))}"
    )


def names() -> frozenset[str]:
    """The architectures that there are machines for."""
    return frozenset(row.name for row in ARCHITECTURES)


def name_of_elf(machine: int) -> str | None:
    """The architecture of an ELF file for 64 bits, by its ``e_machine``; None if not known."""
    known = {row.elf_machine: row.name for row in ARCHITECTURES}
    return (known | _OTHER_ELF_MACHINES).get(machine)


def name_of_pe(machine: int) -> str | None:
    """The architecture of a UEFI program, by the number in its PE header; None if not known."""
    known = {row.pe_machine: row.name for row in ARCHITECTURES}
    return (known | _OTHER_PE_MACHINES).get(machine)


def name_of_image(magic: bytes) -> str | None:
    """The architecture of an uncompressed kernel, by its four bytes at 0x38; None if it is none."""
    known = {row.image_magic: row.name for row in ARCHITECTURES if row.image_magic}
    return known.get(magic)


def name_of_bzimage(*, is_64_bit: bool) -> str:
    """The architecture of a bzImage."""
    return X86_64.name if is_64_bit else "i686"

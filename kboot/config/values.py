"""What can be decided about a run, and what holds if nobody decides."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from kboot.arch import DEBIAN_MIRROR
from kboot.config import cpus, disks, parse, shares
from kboot.config.cluster import ClusterConfig
from kboot.config.parse import about
from kboot.machine_spec import Dhcp, FirmwareStart
from kboot.network_cards import NicModel
from kboot.server_tls import Tls

Accelerator = Literal["auto", "kvm", "tcg"]
FirmwareChoice = Literal["auto", "bios", "uefi"]
Isolation = Literal["auto", "test", "module", "session", "none"]
Network = Literal["open", "isolated"]
Standby = Literal["auto", "on", "off"]
Warnings = Literal["fail", "report"]
Channel = Literal["auto", "console", "ssh"]
Annotations = Literal["auto", "github", "none"]
Submit = Literal["no", "yes"]
BootFrom = Literal["network", "disk"]
NicModelChoice = Literal["auto"] | NicModel

#: Settings of a test run: which tests, when they run again, what becomes of their results.
OF_TEST_RUNS = frozenset(
    {
        *("report", "summary", "annotations", "kcidb", "kcidb_origin", "kcidb_build"),
        *("kcidb_repository", "kcidb_commit", "kcidb_submit"),
        *("retry", "standby", "kselftest", "kselftest_skip", "kselftest_expected"),
    }
)

#: The places to boot in.
BACKENDS = ("qemu", "kubevirt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(ClusterConfig):
    """What the user has decided; paths are absolute.

    Each field takes what its key in a file takes: ``initrd=["extra.cpio"]``, ``memory_mib="2G"``.
    Relative paths are relative to the working directory. `ConfigError` names what is wrong.
    """

    #: A path or a URL; None if no kernel was named.
    kernel: str | None = field(
        default=None,
        metadata=about(
            "the kernel to boot: an image, a package (.deb, .rpm, .tar), a build tree, a "
            "directory, or the http(s) URL of a file",
            "FILE|URL",
            parse.source,
        ),
    )
    backend: str = field(
        default="qemu", metadata=about("where machines run", "NAME", choices=BACKENDS)
    )
    #: ``tiny``, ``debian[:SUITE][+PACKAGE,...]``, ``disk:NAME``, a path, or a URL.
    rootfs: str = field(
        default="tiny",
        metadata=about(
            "the root file system: tiny (busybox), debian (made by mmdebstrap), an initramfs or a "
            "disk image (a file or its URL), a directory of this host, or one of the machine's "
            "disks",
            "tiny|debian[:SUITE][+PACKAGE,...]|FILE|URL|DIR|disk:NAME",
            parse.rootfs,
        ),
    )
    initrd: tuple[Path, ...] = field(
        default=(),
        metadata=about(
            "one more initramfs image to load after the root file system; may be repeated",
            "FILE",
            parse.paths,
            repeated=True,
        ),
    )
    #: Names, and absolute paths.
    module: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "a kernel module to load at boot, with its dependencies: its name, or its .ko file; "
            "may be repeated",
            "NAME|FILE",
            parse.modules,
            repeated=True,
        ),
    )
    cmdline: str = field(default="", metadata=about("more kernel parameters", "TEXT", parse.text))
    memory_mib: int = field(
        default=512,
        metadata=about(
            "the machine's memory: 512 (MiB), 512M, 2G", "SIZE", parse.memory_mib, name="memory"
        ),
    )
    #: A number, or ``sockets=2,cores=4,threads=2``.
    cpus: int | str = field(
        default=1,
        metadata=about(
            "the machine's processors: 4, or sockets=2,cores=4,threads=2",
            "N|sockets=N,cores=N,threads=N",
            cpus.cpus,
        ),
    )
    firmware: FirmwareChoice = field(
        default="auto",
        metadata=about(
            "the machine's firmware; auto is bios where the architecture has one, else uefi",
            "NAME",
            choices=get_args(FirmwareChoice),
        ),
    )
    network: Network = field(
        default="open",
        metadata=about(
            "what a guest of a local QEMU reaches beside its boot server: this host's loopback "
            "services and its network (open), or nothing (isolated)",
            "NAME",
            choices=get_args(Network),
        ),
    )
    accel: Accelerator = field(
        default="auto",
        metadata=about(
            "QEMU's accelerator: kvm, tcg (emulation), or auto, which is kvm if it works, else tcg",
            "NAME",
            choices=get_args(Accelerator),
        ),
    )
    timeout_s: float = field(
        default=180.0,
        metadata=about(
            "the time limit of one boot: 90, 90s, 3m", "TIME", parse.seconds, name="timeout"
        ),
    )
    channel: Channel = field(
        default="auto",
        metadata=about(
            "how commands reach the guest: ssh, the serial console, or auto, which is ssh if the "
            "guest has a server, else the console",
            "NAME",
            choices=get_args(Channel),
        ),
    )
    warnings: Warnings = field(
        default="fail",
        metadata=about(
            "whether kernel warnings (WARNING, oops, lockup, ...) fail the test",
            "WHAT",
            choices=get_args(Warnings),
        ),
    )
    firmware_start: FirmwareStart = field(
        default="real",
        metadata=about(
            "how machines start: with firmware and DHCP (real), or restored from a state saved "
            "just before iPXE loads its script (saved)",
            "NAME",
            choices=get_args(FirmwareStart),
        ),
    )
    isolation: Isolation = field(
        default="auto",
        metadata=about(
            "when a test gets a pristine machine; test: always, module: one per module, session: "
            "reuse until tainted, none: reuse always; auto is test where machines can be restored, "
            "else session",
            "NAME",
            choices=get_args(Isolation),
        ),
    )
    standby: Standby = field(
        default="auto",
        metadata=about(
            "whether the next test's machine is restored while a test runs; auto: where the host "
            "has a processor and memory to spare",
            "WHEN",
            choices=get_args(Standby),
        ),
    )
    snapshot_cache_mib: int = field(
        default=4096,
        metadata=about(
            "the disk space for saved machines in the user's cache directory",
            "SIZE",
            parse.memory_mib,
            name="snapshot_cache",
        ),
    )
    #: None: kept for the length of the run only.
    evidence: Path | None = field(
        default=None,
        metadata=about(
            "the directory for the logs and configuration of each boot", "DIRECTORY", parse.path
        ),
    )
    user: str = field(
        default="root",
        metadata=about("the user to log in as", "NAME", parse.word),
    )
    password: str = field(
        default="kboot", metadata=about("the password to log in with", "TEXT", parse.text)
    )
    #: None: the one for the kernel's architecture.
    qemu: str | None = field(
        default=None,
        metadata=about(
            "the QEMU program; else the one for the kernel's architecture", "PROGRAM", parse.word
        ),
    )
    qemu_arguments: tuple[str, ...] = field(
        default=(),
        metadata=about("more arguments for QEMU, as a shell would split them", "TEXT", parse.words),
    )
    #: None: the network card's own where that has iPXE, else the distribution's.
    ipxe: Path | None = field(
        default=None,
        metadata=about(
            "the iPXE that boots machines: a UEFI program (.efi), ipxe.lkrn, or, on this host "
            "only, a network card's ROM (.rom, .mrom) or what that loads (.pxe, .kpxe); else the "
            "network card's own, or where UEFI does not boot with that, the distribution's",
            "FILE",
            parse.path,
        ),
    )
    dhcp: Dhcp = field(
        default="normal",
        metadata=about(
            "what the machine's DHCP does: all as it should (normal), no boot file, a wrong one, "
            "no answer (silent), or one to who asks again (late)",
            "NAME",
            choices=get_args(Dhcp),
        ),
    )
    impairment: str = field(
        default="",
        metadata=about(
            "what happens to the packets of local machines on their boot network, of loss, delay, "
            "mtu (larger ones are lost) and dns=not-found, as in delay=50ms,mtu=1400",
            "LIST",
            parse.text,
        ),
    )
    tls: Tls = field(
        default="off",
        metadata=about(
            "boot by HTTPS: with a good certificate (on), or with one that is expired, for another "
            "name (other-name), or of an unknown authority (untrusted)",
            "NAME",
            choices=get_args(Tls),
        ),
    )
    #: None: one that is made for the run.
    tls_ca: Path | None = field(
        default=None,
        metadata=about(
            "the certificate authority that signs for HTTPS, with its key, in PEM: the one that "
            "an iPXE was built to trust; else one of the run, which UEFI is told to trust",
            "FILE",
            parse.path,
        ),
    )
    #: None: kboot's own.
    ipxe_script: Path | None = field(
        default=None,
        metadata=about(
            "the boot script in place of kboot's: a Jinja template, or plain iPXE",
            "FILE",
            parse.path,
        ),
    )
    serve: Path | None = field(
        default=None,
        metadata=about(
            "a directory that the boot server publishes beside the boot script: chained scripts, "
            "menus, images",
            "DIRECTORY",
            parse.path,
        ),
    )
    nginx: str = field(default="nginx", metadata=about("the nginx program", "PROGRAM", parse.word))
    report: Path | None = field(
        default=None,
        metadata=about("write the test run as one HTML file", "FILE", parse.path),
    )
    retry: int = field(
        default=0,
        metadata=about(
            "how often a failed test is run again, on a pristine machine; one that then passes is "
            "flaky",
            "N",
            parse.number(0, 1000),
        ),
    )
    kselftest: Path | None = field(
        default=None,
        metadata=about(
            "an installed kselftest tree, or a tar archive of one: pytest runs each of its "
            "programs as a test",
            "DIR|TAR",
            parse.path,
        ),
    )
    kselftest_skip: Path | None = field(
        default=None,
        metadata=about(
            "kselftest's programs that are not run: lines 'collection:program # reason'",
            "FILE",
            parse.path,
        ),
    )
    kselftest_expected: Path | None = field(
        default=None,
        metadata=about(
            "kselftest's failures that are known: lines 'collection:program/case # reason'",
            "FILE",
            parse.path,
        ),
    )
    summary: Path | None = field(
        default=None,
        metadata=about("write a summary of the test run in Markdown", "FILE", parse.path),
    )
    annotations: Annotations = field(
        default="auto",
        metadata=about(
            "mark failed tests in a repository's files: github prints its workflow commands, auto "
            "does so on GitHub",
            "NAME",
            choices=get_args(Annotations),
        ),
    )
    kcidb: Path | None = field(
        default=None,
        metadata=about("write the test run as a report for KCIDB, in JSON", "FILE", parse.path),
    )
    kcidb_origin: str = field(
        default="kboot",
        metadata=about(
            "the CI system's name in KCIDB",
            "NAME",
            parse.matching("[a-z0-9_]+", "a name of a-z, 0-9 and _"),
        ),
    )
    kcidb_build: str = field(
        default="",
        metadata=about(
            "the id of the kernel's build in KCIDB, if that knows it already",
            "ORIGIN:ID",
            parse.matching("([a-z0-9_]+:.+)?", "an id; write ORIGIN:ID"),
        ),
    )
    kcidb_repository: str = field(
        default="",
        metadata=about(
            "the git repository that the kernel was built from",
            "URL",
            parse.matching("(https://.+)?", "an https URL"),
        ),
    )
    kcidb_commit: str = field(
        default="",
        metadata=about(
            "the commit that the kernel was built from",
            "HASH",
            parse.matching("([0-9a-f]{40})?", "a whole hash, of 40 digits"),
        ),
    )
    kcidb_submit: Submit = field(
        default="no",
        metadata=about(
            "whether to send the report; the variable KCIDB_REST has the address and the token",
            "WHETHER",
            choices=get_args(Submit),
        ),
    )
    debian_mirror: str = field(
        default=DEBIAN_MIRROR,
        metadata=about(
            "the Debian mirror that Debian systems are fetched from, and busybox and iPXE for "
            "other architectures than this host's",
            "URL",
            parse.source,
        ),
    )
    #: As `kboot.config.disks.read_disks` takes them, with absolute paths.
    disk: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "a disk of the machine: blank, an image (file or URL), container:IMAGE, pvc:NAME, "
            "clone:NAME or source:NAME; then size=SIZE, ro, keep, bus=virtio, nvme or scsi; may be "
            "repeated",
            "[NAME=]SOURCE[,OPTION]...",
            disks.disks,
            repeated=True,
        ),
    )
    #: As `kboot.config.shares.read_shares` takes them, with absolute paths.
    share: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "a directory of this host that a local machine's guest can mount (9p, by its TAG: "
            "share0, share1, ... unless given); may be repeated",
            "DIR[:TAG][:ro]",
            shares.shares,
            repeated=True,
        ),
    )
    cloud_init: Path | None = field(
        default=None,
        metadata=about(
            "a file with user data for the guest's cloud-init, served by the boot server; the "
            "machine is ready when cloud-init has finished",
            "FILE",
            parse.path,
        ),
    )
    numa: int = field(
        default=1,
        metadata=about(
            "NUMA nodes, to which processors and memory belong in equal parts",
            "N",
            parse.number(1, 64),
        ),
    )
    hugepages_mib: int = field(
        default=0,
        metadata=about(
            "the size of the huge pages behind the machine's memory: 2M, 1G; 0 for none",
            "SIZE",
            parse.page_mib,
            name="hugepages",
        ),
    )
    boot: BootFrom = field(
        default="network",
        metadata=about(
            "what the machine boots: the kernel that is given, from the boot server (network), or "
            "what is on its own disk, with the boot loader and the kernel there (disk)",
            "WHAT",
            choices=get_args(BootFrom),
        ),
    )
    modules: str = field(
        default="none",
        metadata=about(
            "the kernel modules that the guest finds with modprobe: all, none, or names with "
            "commas between them; those of the setting module are loaded as well",
            "all|none|NAME,...",
            parse.listed(
                "[A-Za-z0-9_-]+(,[A-Za-z0-9_-]+)*", "all, none, or names of modules with commas"
            ),
        ),
    )
    nics: int = field(
        default=1,
        metadata=about(
            "the network cards of a local machine; each has a network of its own with DHCP, and "
            "the first one boots",
            "N",
            parse.number(1, 16),
            name="nic",
        ),
    )
    nic_model: NicModelChoice = field(
        default="auto",
        metadata=about(
            "the model of network card; auto: that of the ROM that ipxe names; virtio for one that "
            "boots from its disk, or whose kernel has no driver for e1000e; else e1000e",
            "MODEL",
            choices=("auto", *get_args(NicModel)),
        ),
    )

    @property
    def names_kernel(self) -> bool:
        """Whether it says what is to be booted."""
        return self.kernel is not None or self.boot == "disk"

"""What a boot is made of, as one value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from kboot import ipxe
from kboot.backend import Firmware, FirmwareStart, MachineSpec
from kboot.config import Channel, Config, Warnings
from kboot.guest.ssh import authorized_key
from kboot.kernel import Kernel, require_architecture
from kboot.rootfs import check_initrd, module_initramfs, overlay_initramfs, resolve_rootfs


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSettings:
    """The machine, what it loads beside its kernel, and how to log in."""

    #: A DNS label, unique among the machines of a run.
    machine_name: str = "m0"
    architecture: str = "x86_64"
    memory_mib: int = 512
    cpus: int = 1
    firmware: Firmware = "bios"
    firmware_start: FirmwareStart = "real"
    #: Appended to kboot's own parameters; a ``console=`` or ``panic=`` here replaces ours.
    command_line: str = ""
    #: In the order in which the kernel unpacks them.
    initrds: tuple[Path, ...] = ()
    user: str = "root"
    password: str = "kboot"  # noqa: S105  of our own initramfs, which holds no secret
    #: For a boot, from power-on to the login prompt.
    timeout_s: float = 180.0
    #: With ``auto`` and ``ssh``, the machine's ssh port can be reached from here.
    channel: Channel = "console"
    #: What a test makes of reports that the kernel survives, see `Machine.check_reports`.
    warnings: Warnings = "fail"
    #: For the hypervisor, as they are.
    extra_arguments: tuple[str, ...] = ()


def settings_for(
    kernel: Kernel,
    config: Config,
    *,
    machine_name: str = "m0",
    images_of: MachineSettings | None = None,
) -> MachineSettings:
    """The settings for `kernel` under this configuration.

    With `images_of`, the images are those, and no file is looked at.

    `ConfigError` if the two do not fit, if the root file system is not one, or if the command line
    is longer than what the kernel takes.
    """
    require_architecture(kernel, "x86_64")
    ipxe.check_command_line(config.cmdline)
    if images_of:
        return _fitting(replace(images_of, command_line=config.cmdline))
    rootfs = resolve_rootfs(
        config.rootfs, architecture=kernel.architecture, password=config.password
    )
    for image in config.initrd:
        check_initrd(image)
    modules = (module_initramfs(kernel, config.module),) if config.module else ()
    # The tiny system has no ssh server, unless the user brings one and says so.
    channel = config.channel if config.rootfs != "tiny" or config.channel == "ssh" else "console"
    keys = () if channel == "console" else (_keys(config.user),)
    settings = MachineSettings(
        machine_name=machine_name,
        architecture=kernel.architecture,
        memory_mib=config.memory_mib,
        cpus=config.cpus,
        firmware=config.firmware,
        firmware_start=config.firmware_start,
        command_line=config.cmdline,
        initrds=(*rootfs, *modules, *config.initrd, *keys),
        channel=channel,
        user=config.user,
        password=config.password,
        timeout_s=config.timeout_s,
        warnings=config.warnings,
        extra_arguments=config.qemu_arguments,
    )
    return _fitting(settings)


def _fitting(settings: MachineSettings) -> MachineSettings:
    """These settings, if their command line is not too long."""
    line = ipxe.command_line(
        nonce=ipxe.new_nonce(),
        architecture=settings.architecture,
        firmware=settings.firmware,
        initrd_count=len(settings.initrds),
        extra=settings.command_line,
    )
    ipxe.check_command_line_fits(
        line, architecture=settings.architecture, firmware=settings.firmware
    )
    return settings


def machine_spec(settings: MachineSettings, boot_file: str = "") -> MachineSpec:
    """The machine that these settings ask for."""
    return MachineSpec(
        name=settings.machine_name,
        boot_file=boot_file,
        memory_mib=settings.memory_mib,
        cpus=settings.cpus,
        firmware=settings.firmware,
        firmware_start=settings.firmware_start,
        architecture=settings.architecture,
        ssh=settings.channel != "console",
        extra_arguments=settings.extra_arguments,
    )


def _keys(user: str) -> Path:
    """An initramfs that lets us in by ssh."""
    home = "/root" if user == "root" else f"/home/{user}"
    return overlay_initramfs({f"{home}/.ssh/authorized_keys": authorized_key().encode() + b"\n"})

"""What a machine is, what it loads, and how to log in, as one value."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from kboot import ipxe
from kboot.backend import Disk, MachineSpec
from kboot.config import Channel, Config, Warnings, read_disks, read_shares
from kboot.errors import ConfigError
from kboot.guest.ssh import authorized_key
from kboot.kernel import Kernel, require_architecture
from kboot.rootfs import check_initrd, module_initramfs, overlay_initramfs
from kboot.rootfs.system import system_for


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSettings:
    """The machine, what it loads beside its kernel, and how to log in."""

    #: Its boot file is known when it is powered on.
    spec: MachineSpec = field(default_factory=MachineSpec)
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

    def named(self, name: str) -> MachineSettings:
        """The same for a machine of this name."""
        return replace(self, spec=replace(self.spec, name=name))

    def reached_by(self, channel: Channel) -> MachineSettings:
        """The same for a guest that is reached by this channel."""
        return replace(self, channel=channel, spec=replace(self.spec, ssh=channel != "console"))

    def as_dict(self) -> dict[str, Any]:
        """All of it by name, flat, without the password: for people and for result.json."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        spec = {each.name: getattr(self.spec, each.name) for each in fields(self.spec)}
        del own["spec"], own["password"], spec["boot_file"]
        return {"machine_name": spec.pop("name"), **spec, **own}


def settings_for(
    kernel: Kernel,
    config: Config,
    *,
    machine_name: str | None = None,
    images_of: MachineSettings | None = None,
) -> MachineSettings:
    """The settings for `kernel` under this configuration.

    With `images_of`, the images are those, and no file is looked at. A `machine_name` is that of a
    persistent machine.

    `ConfigError` if the two do not fit, if a disk cannot be kept, if the root file system is not
    one, or if the command line is longer than what the kernel takes.
    """
    require_architecture(kernel, "x86_64")
    ipxe.check_command_line(config.cmdline)
    if images_of:
        return _fitting(replace(images_of, command_line=config.cmdline))
    disks = read_disks(config.disk)
    if machine_name is None:
        _require_nothing_to_keep(disks)
    system = system_for(
        config.rootfs,
        kernel,
        disks=disks,
        shares=read_shares(config.share),
        password=config.password,
        command_line=config.cmdline,
    )
    for image in config.initrd:
        check_initrd(image)
    names = (*system.modules, *config.module)
    modules = (module_initramfs(kernel, names),) if names else ()
    # One without an ssh server has it only where the user brings one, and says so.
    channel = config.channel if system.may_have_ssh or config.channel == "ssh" else "console"
    keys = () if channel == "console" else (_keys(config.user),)
    spec = _spec(kernel, config, machine_name or "m0")
    settings = MachineSettings(
        spec=replace(spec, disks=system.disks, shares=system.shares),
        command_line=config.cmdline,
        initrds=(*system.images, *modules, *config.initrd, *keys),
        user=config.user,
        password=config.password,
        timeout_s=config.timeout_s,
        warnings=config.warnings,
    )
    return _fitting(settings.reached_by(channel))


def _require_nothing_to_keep(disks: Iterable[Disk]) -> None:
    for disk in disks:
        # A claim is kept by its cluster, whoever writes to it.
        if disk.keep and disk.kind != "pvc":
            raise ConfigError(
                f"disk {disk.name}: a machine that ends with its test keeps no disk; leave out "
                "keep, or start a persistent machine: kboot up"
            )


def _spec(kernel: Kernel, config: Config, name: str) -> MachineSpec:
    """The machine: each of its fields that is a setting of the same name has its value."""
    names = {each.name for each in fields(MachineSpec)} & {each.name for each in fields(config)}
    return MachineSpec(
        name=name,
        architecture=kernel.architecture,
        extra_arguments=config.qemu_arguments,
        **{each: getattr(config, each) for each in names},
    )


def _fitting(settings: MachineSettings) -> MachineSettings:
    """These settings, if their command line is not too long."""
    line = ipxe.command_line(
        nonce=ipxe.new_nonce(),
        architecture=settings.spec.architecture,
        firmware=settings.spec.firmware,
        initrd_count=len(settings.initrds),
        extra=settings.command_line,
    )
    ipxe.check_command_line_fits(
        line, architecture=settings.spec.architecture, firmware=settings.spec.firmware
    )
    return settings


def _keys(user: str) -> Path:
    """An initramfs that lets us in by ssh."""
    home = "/root" if user == "root" else f"/home/{user}"
    return overlay_initramfs({f"{home}/.ssh/authorized_keys": authorized_key().encode() + b"\n"})

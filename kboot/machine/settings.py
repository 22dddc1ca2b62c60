"""What a machine is, what it loads, and how to log in, as one value."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from kboot import arch, ipxe
from kboot.config import (
    Channel,
    Config,
    Warnings,
    read_cpus,
    read_disks,
    read_impairment,
    read_shares,
)
from kboot.errors import ConfigError
from kboot.guest.ssh import authorized_key
from kboot.ipxe import user_script
from kboot.ipxe.served_tree import NOTHING, ServedTree, read_tree
from kboot.ipxe.user_script import UserScript
from kboot.kernel import Kernel, kernel_on_disk, local_path, read_kernel, require_architecture
from kboot.machine.cloud_init import read_user_data
from kboot.machine.cloud_init_disk import cloud_init_disk
from kboot.machine.network_card import nic_model_for, require_network_driver
from kboot.machine_spec import Disk, Firmware, MachineSpec
from kboot.rootfs import check_initrd, is_module_file, module_initramfs, overlay_initramfs
from kboot.rootfs.modules_image import modules_image, require_memory
from kboot.rootfs.own_disk import own_disk
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
    #: The user's own boot script; None for kboot's.
    boot_script: UserScript | None = None
    #: What the boot server publishes beside it.
    serve: Path | None = None
    #: For the guest's cloud-init; empty for none.
    user_data: str = ""
    #: What cloud-init makes the guest's host name, if that is not the machine's name. Machines of
    #: different ones are different instances to it.
    host_name: str = ""
    #: Whether the root file system is a whole system, whose services take time to start.
    whole_system: bool = False

    def named(self, name: str) -> MachineSettings:
        """The same for a machine of this name."""
        return replace(self, spec=replace(self.spec, name=name))

    def reached_by(self, channel: Channel) -> MachineSettings:
        """The same for a guest that is reached by this channel."""
        return replace(self, channel=channel, spec=replace(self.spec, ssh=channel != "console"))

    def as_dict(self) -> dict[str, Any]:
        """All of it by name, flat, without what may be secret: for people and for result.json."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        spec = {each.name: getattr(self.spec, each.name) for each in fields(self.spec)}
        del own["spec"], own["password"], own["user_data"]
        del spec["boot_file"], spec["loaded_file"], spec["authority"]
        own["boot_script"] = self.boot_script and str(self.boot_script.path)
        return {"machine_name": spec.pop("name"), **spec, **own}


def settings_for(
    kernel: Kernel,
    config: Config,
    *,
    machine_name: str | None = None,
    host_name: str = "",
    images_of: MachineSettings | None = None,
) -> MachineSettings:
    """The settings for `kernel` under this configuration.

    With `images_of`, the images are those, and no file is looked at. A `machine_name` is that of a
    persistent machine, a `host_name` that which its cloud-init is to give it, if it is another one.

    `ConfigError` if the two do not fit, if a disk cannot be kept, if the root file system is not
    one, or if the command line is longer than what the kernel takes.
    """
    ipxe.check_command_line(config.cmdline)
    script = _boot_script(config.ipxe_script, config.serve)
    if images_of:
        require_architecture(kernel, images_of.spec.architecture)
        return _fitting(
            replace(
                images_of,
                command_line=config.cmdline,
                boot_script=script,
                serve=config.serve,
            )
        )
    disks = read_disks(config.disk)
    if machine_name is None:
        _require_nothing_to_keep(disks)
    if kernel.on_disk:
        return _from_disk(kernel, config, machine_name, host_name)
    spec = _spec(kernel, config, machine_name or "m0")
    # Either may give the machine another card.
    if config.cloud_init and not (config.qemu_arguments or config.cluster_patch):
        require_network_driver(kernel, spec.nic_model, "cloud-init")
    system = system_for(
        _rootfs(config.rootfs),
        kernel,
        disks=disks,
        shares=read_shares(config.share),
        password=config.password,
        mirror=config.debian_mirror,
        command_line=config.cmdline,
        nic_model=spec.nic_model,
        brings_drivers=bool(config.initrd) or any(map(is_module_file, config.module)),
    )
    for image in config.initrd:
        check_initrd(image)
    names = (*system.modules, *config.module)
    loaded = (module_initramfs(kernel, names),) if names else ()
    # One without an ssh server has it only where the user brings one, and says so.
    channel = config.channel if system.may_have_ssh or config.channel == "ssh" else "console"
    keys = () if channel == "console" else (_keys(config.user),)
    settings = MachineSettings(
        spec=replace(spec, disks=system.disks, shares=system.shares),
        command_line=config.cmdline,
        initrds=(*system.images, *_found_modules(kernel, config), *loaded, *config.initrd, *keys),
        user=config.user,
        password=config.password,
        timeout_s=config.timeout_s,
        warnings=config.warnings,
        boot_script=script,
        serve=config.serve,
        user_data=read_user_data(config.cloud_init) if config.cloud_init else "",
        host_name=host_name if config.cloud_init else "",
        whole_system=config.rootfs != "tiny",
    )
    return _fitting(settings.reached_by(channel))


@cache
def _rootfs(value: str) -> str:
    """What a root file system is on this host; the server of a URL is asked once."""
    return str(local_path(value)) if "://" in value else value


def _found_modules(kernel: Kernel, config: Config) -> tuple[Path, ...]:
    """The image for the setting `modules`."""
    image = modules_image(kernel, config.modules)
    if image is None:
        return ()
    require_memory(image, config.memory_mib)
    return (image.path,)


def kernel_of(config: Config) -> Kernel:
    """The kernel that the configuration names, read and checked."""
    if config.boot == "disk":
        return own_kernel(config)
    if config.kernel is None:
        raise ConfigError(
            "no kernel was named; say which: --kernel=FILE, or boot what is on a disk: --boot disk"
        )
    return read_kernel(local_path(config.kernel))


def own_kernel(config: Config) -> Kernel:
    """What is on the disk of a machine that boots from there. `ConfigError` if there is none."""
    if config.kernel is not None:
        raise ConfigError(
            "boot = disk boots the kernel on the machine's disk, and another one is named "
            f"({config.kernel}); leave out one of the two"
        )
    own = own_disk(_rootfs(config.rootfs), read_disks(config.disk))
    return kernel_on_disk(Path(own.disk.source), arch.DEFAULT.name)


#: What kboot gives a kernel that it loads.
_NEEDS_BOOT_SCRIPT = ("cmdline", "module", "modules", "initrd", "ipxe_script")


def _from_disk(
    kernel: Kernel, config: Config, machine_name: str | None, host_name: str
) -> MachineSettings:
    """The settings of a machine that boots from its disk."""
    # Machines that differ in their names only have the same disks, and go on from a saved one.
    name, host_name = machine_name or "m0", host_name or machine_name or "kboot"
    for setting in _NEEDS_BOOT_SCRIPT:
        if getattr(config, setting) != getattr(Config(), setting):
            raise ConfigError(
                f"{setting} is for a kernel that kboot loads; with boot = disk, the boot loader on "
                "the disk decides: change it there, or leave out boot = disk"
            )
    own = own_disk(_rootfs(config.rootfs), read_disks(config.disk))
    firmware = firmware_for(kernel, config)
    spec = _spec_of(config, name, kernel, architecture=kernel.architecture, firmware=firmware)
    user_data = read_user_data(config.cloud_init) if config.cloud_init else ""
    seed = _cloud_init_disks(user_data, config, host_name)
    if twice := next((each for each in seed if each.name in {d.name for d in own.disks}), None):
        raise ConfigError(
            f"disk {twice.name}: cloud-init's data come on a disk of that name; give another name"
        )
    settings = MachineSettings(
        spec=replace(
            spec,
            disks=(*own.disks, *seed),
            shares=read_shares(config.share),
            boot_disk=own.disk.name,
        ),
        user=config.user,
        password=config.password,
        timeout_s=config.timeout_s,
        warnings=config.warnings,
        user_data=user_data,
        whole_system=True,
    )
    return settings.reached_by(config.channel)


def _cloud_init_disks(user_data: str, config: Config, host_name: str) -> tuple[Disk, ...]:
    if not user_data:
        return ()
    return (
        cloud_init_disk(user_data, host_name=host_name, user=config.user, password=config.password),
    )


def firmware_for(kernel: Kernel, config: Config) -> Firmware:
    """The firmware of a machine for `kernel`. `ConfigError` if there is no such machine."""
    row = arch.of(kernel.architecture, wanted_by=str(kernel.source))
    if kernel.on_disk:
        own = own_disk(_rootfs(config.rootfs), read_disks(config.disk))
        return own.firmware(row.firmware(config.firmware), chosen=config.firmware != "auto")
    if config.firmware == "bios" and not row.has_bios:
        raise ConfigError(
            f"{kernel.source}: a kernel for {row.name}, whose machines have no BIOS; "
            "leave firmware out, or say firmware = uefi"
        )
    firmware = row.firmware(config.firmware)
    if firmware == "uefi" and not kernel.has_efi_stub:
        raise ConfigError(
            f"{kernel.source}: a kernel without an EFI stub, which UEFI cannot start; "
            "build it with CONFIG_EFI_STUB=y" + (", or boot it by BIOS" if row.has_bios else "")
        )
    return firmware


def _require_nothing_to_keep(disks: Iterable[Disk]) -> None:
    for disk in disks:
        # A claim is kept by its cluster, whoever writes to it.
        if disk.keep and disk.kind != "pvc":
            raise ConfigError(
                f"disk {disk.name}: a machine of a test, a fleet or a pool keeps no disk; leave "
                "out keep, or start a persistent machine: kboot up"
            )


def _spec(kernel: Kernel, config: Config, name: str) -> MachineSpec:
    firmware = firmware_for(kernel, config)
    return _spec_of(config, name, kernel, architecture=kernel.architecture, firmware=firmware)


def spec_for(config: Config, name: str) -> MachineSpec:
    """A machine that boots no kernel, of the architecture that machines have if none is named."""
    row = arch.DEFAULT
    firmware = row.firmware(config.firmware)
    spec = _spec_of(config, name, None, architecture=row.name, firmware=firmware)
    return replace(spec, disks=read_disks(config.disk))


#: These fields of a machine are what the settings of the same names come to.
_NOT_AS_SAID = {"firmware", "cpus", "impairment", "nic_model"}


def _spec_of(
    config: Config, name: str, kernel: Kernel | None, *, architecture: str, firmware: Firmware
) -> MachineSpec:
    """The machine: each of its fields that is a setting of the same name has its value."""
    names = {each.name for each in fields(MachineSpec)} & {each.name for each in fields(config)}
    count, topology = read_cpus(config.cpus)
    if config.numa > count:
        raise ConfigError(
            f"numa: {config.numa} nodes need a processor each, and the machine has {count}: --cpus"
        )
    return MachineSpec(
        name=name,
        architecture=architecture,
        extra_arguments=config.qemu_arguments,
        firmware=firmware,
        cpus=count,
        topology=topology,
        impairment=read_impairment(config.impairment),
        nic_model=nic_model_for(config, kernel),
        **{each: getattr(config, each) for each in names - _NOT_AS_SAID},
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


def served(settings: MachineSettings) -> ServedTree:
    """What is to be published beside the boot script, as it is now."""
    script = settings.boot_script.path if settings.boot_script else None
    return _tree(settings.serve, script)


def _tree(directory: Path | None, script: Path | None) -> ServedTree:
    if directory is None:
        return NOTHING
    return read_tree(directory, script=script, script_name=ipxe.SCRIPT_NAME)


def _boot_script(path: Path | None, serve: Path | None) -> UserScript | None:
    """The user's own boot script, read and checked; what iPXE may stumble over is logged."""
    tree = _tree(serve, path)
    if path is None:
        return None
    script = user_script.read_script(path)
    for finding in script.check(tree.scripts):
        if finding.kind != "unhandled":
            user_script.warn_once(path, finding)
    return script


def _keys(user: str) -> Path:
    """An initramfs that lets us in by ssh."""
    home = "/root" if user == "root" else f"/home/{user}"
    return overlay_initramfs({f"{home}/.ssh/authorized_keys": authorized_key().encode() + b"\n"})

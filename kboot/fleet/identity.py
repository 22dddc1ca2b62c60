"""What makes a guest this member of its fleet: its address, its name, the names of the others."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Mapping

from kboot.deadline import Deadline
from kboot.errors import CommandFailed, GuestError
from kboot.guest import Guest
from kboot.machine_network import Interface, MachineNetwork

#: For the few commands that it takes, on a slow and busy host.
_LIMIT_S = 60.0

#: Ends each of our lines in /etc/hosts.
_MARK = "# kboot fleet"

#: Exit status of what is below where the guest has no such card.
_NO_CARD = 97


def find_card(interface: Interface) -> str:
    """Shell commands that set ``card`` to the name of this card in the guest."""
    return (
        "card=; for each in /sys/class/net/*; do "
        'mac=; read -r mac 2>/dev/null <"$each/address"; '
        f'case "$mac" in {interface.pattern}) card=${{each##*/}};; esac; done; '
        f'[ -n "$card" ] || exit {_NO_CARD}; '
    )


def set_card(interface: Interface) -> str:
    """Shell commands that give the card its addresses and turn it on."""
    return (
        find_card(interface)
        + f'ip link set dev "$card" address {interface.mac_address} && '
        + 'ip addr flush dev "$card" && '
        + f'ip addr add {interface.address} dev "$card" && ip link set dev "$card" up'
    )


def set_name(member: str) -> str:
    """Shell commands that give the guest its host name."""
    return f"echo {member} >/proc/sys/kernel/hostname && echo {member} >/etc/hostname"


def set_hosts(addresses: Mapping[str, str]) -> str:
    """Shell commands that have the guest find all members by their names."""
    lines = "".join(f"{address} {name} {_MARK}\n" for name, address in addresses.items())
    return (
        f"{{ grep -v {shlex.quote(_MARK)} /etc/hosts; printf %s {shlex.quote(lines)}; }} "
        ">/etc/hosts.kboot && cat /etc/hosts.kboot >/etc/hosts && rm /etc/hosts.kboot"
    )


def set_name_server(interface: Interface) -> str:
    """Shell commands that have the guest ask the network's name server first, then those it has.

    systemd-networkd, where it runs, takes the card for its own: it is told the same, and tells
    systemd-resolved. Where that does not run, the C library reads /etc/resolv.conf.
    """
    unit = (
        f"[Match]\\nMACAddress={interface.mac_address}\\n[Link]\\nRequiredForOnline=no\\n"
        f"[Network]\\nAddress={interface.address}\\nDNS={interface.name_server}\\n"
        f"Domains={interface.domain}\\nDNSDefaultRoute=no\\nLinkLocalAddressing=no\\n"
    )
    return (
        "resolved=; if [ -d /run/systemd/netif ] && command -v networkctl >/dev/null; then "
        "mkdir -p /run/systemd/network && "
        f"printf '{unit}' >/run/systemd/network/10-kboot-fleet.network && networkctl reload && "
        "resolved=$(systemctl is-active systemd-resolved || :); fi; "
        'if [ "$resolved" != active ]; then touch /etc/resolv.conf && { '
        f"echo search {interface.domain} $(sed -n 's/^search //p' /etc/resolv.conf); "
        f"echo nameserver {interface.name_server}; "
        f"grep -v -e ^search -e '^nameserver {interface.name_server}$' /etc/resolv.conf; "
        "} >/etc/resolv.kboot; cat /etc/resolv.kboot >/etc/resolv.conf; fi"
    )


def set_search_domain(domain: str) -> str:
    """Shell commands that have the guest find all members by their names in this domain first."""
    # DHCP may still be under way.
    return (
        "n=0; until [ -s /etc/resolv.conf ]; do "
        "n=$((n + 1)); [ $n -lt 100 ] || exit 1; sleep 0.1; done; "
        f"grep -q {domain} /etc/resolv.conf || "
        f"{{ echo search {domain} $(sed -n 's/^search //p' /etc/resolv.conf); "
        "grep -v ^search /etc/resolv.conf; } >/etc/resolv.kboot && "
        "cat /etc/resolv.kboot >/etc/resolv.conf"
    )


def set_own_secrets() -> str:
    """Shell commands for a guest that was restored: what systems draw once, it draws again."""
    return (
        f"if [ -s /etc/machine-id ]; then echo {secrets.token_hex(16)} >/etc/machine-id; fi; "
        # What systemd gives the kernel when the system boots again.
        "if [ -s /var/lib/systemd/random-seed ]; then "
        "head -c 512 /dev/urandom >/var/lib/systemd/random-seed; fi; "
        "if [ -e /etc/ssh/ssh_host_ed25519_key ] && command -v ssh-keygen >/dev/null; then "
        "rm -f /etc/ssh/ssh_host_* && ssh-keygen -A >/dev/null && "
        "{ systemctl try-restart ssh sshd 2>/dev/null || true; }; fi"
    )


def become(
    guest: Guest,
    member: str,
    *,
    network: MachineNetwork,
    restored: bool,
) -> None:
    """Make the guest this member. `GuestError` if that cannot be."""
    interface = network.interface(member)
    # Without a card of its own, it has its name from DHCP as well.
    steps = [set_card(interface), set_name(member)] if interface else []
    if interface and interface.name_server:
        steps.append(set_name_server(interface))
    if network.search_domain:
        steps.append(set_search_domain(network.search_domain))
    elif addresses := network.addresses():
        steps.append(set_hosts(addresses))
    if restored:
        steps.append(set_own_secrets())
    if steps:
        run(guest, network, " && ".join(f"{{ {step}; }}" for step in steps))


def wait_for_carrier(guest: Guest, network: MachineNetwork, interface: Interface) -> None:
    """Turn the card on, so that who is restored from here has its cable plugged in already."""
    run(
        guest,
        network,
        find_card(interface) + 'ip link set dev "$card" up && '
        'n=0; while read -r up </sys/class/net/$card/carrier; [ "$up" != 1 ]; do '
        "n=$((n + 1)); [ $n -lt 100 ] || exit 1; sleep 0.1; done",
    )


def run(guest: Guest, network: MachineNetwork, command: str) -> None:
    """Run what is above. `GuestError` says what is missing in the guest."""
    try:
        guest.unrecorded().succeed(command, deadline=Deadline(_LIMIT_S))
    except CommandFailed as error:
        if error.result.exit_status == _NO_CARD:
            raise GuestError(
                "the guest has no card on the fleet's network: its kernel has no driver for it, or "
                f"has not loaded it: {', '.join(network.drivers or ())}; see the setting module"
            ) from error
        raise GuestError(f"the guest cannot join the fleet's network: {error}") from error

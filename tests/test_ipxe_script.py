"""The user's own boot script: what is checked when it is read, and what is told of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kboot.backend import Fetch
from kboot.errors import ConfigError, InfraError, ScriptEnded
from kboot.ipxe import lint
from kboot.ipxe.served_tree import read_tree
from kboot.ipxe.user_script import NONCE_LINE, ScriptValues, UserScript, read_script, with_values
from kboot.machine.boot import Boot
from kboot.machine.phases import Expected, Phase
from kboot.machine.settings import MachineSettings
from kboot.machine_spec import MachineSpec
from kboot.supervisor.handover import from_plain, to_plain

HEAD = "#!ipxe\necho kboot: script ${nonce}\n"
GOOD = f"{HEAD}kernel ${{kernel_url}} ${{command_line}} || shell\nboot\n"

VALUES = ScriptValues(
    kernel_url="http://boot/artifacts/k?m=m0&b=abcd1234",
    initrd_urls=("http://boot/artifacts/i1?m=m0&b=abcd1234",),
    command_line="kboot.nonce=abcd1234 console=ttyS0",
    base_url="http://boot/scripts/m0",
    nonce="abcd1234",
    query="m=m0&b=abcd1234",
    machine="m0",
)


def script(text: str) -> UserScript:
    return UserScript(path=Path("boot.ipxe"), text=text)


def told(text: str, others: dict[str, str] | None = None) -> list[str]:
    """What is found in a script, with its lines."""
    return [f"{each.line}: {each.text}" for each in script(text).check(others or {})]


# ------------------------------------------------------------------------- what is no script


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo hello\n", r"boot.ipxe:1: the first line of a boot script is #!ipxe"),
        (
            f" {GOOD}",
            r"boot.ipxe:1: the first line of a boot script is #!ipxe, with nothing before",
        ),
        (
            f"{GOOD}echo {{{{ a b\n",
            r"boot.ipxe:5: .*Jinja template, .*between {% raw %} and {% endr",
        ),
        ("", r"boot.ipxe:1: the first line"),
        ("#!ipxe\nkernel ${kernel_url} ${command_line}\n", r"boot.ipxe: no line tells which boot"),
        (f"{HEAD}kernel ${{kernel_url}} quiet\n", r"boot.ipxe: no line gives the kernel the nonce"),
        (f"{HEAD}# {{{{ command_line }}}}\n", r"boot.ipxe: no line gives the kernel the nonce"),
        (
            f"{HEAD}kernel {{{{ kernel_ulr }}}} ${{command_line}}\n",
            r"boot.ipxe:3: there is no variable kernel_ulr; did you mean kernel_url\?",
        ),
        (f"{HEAD}{{% if %}}\n", r"boot.ipxe:3: "),
        (f"{HEAD}\n{{{{ initrd_urls[7].x }}}}\n", r"boot.ipxe:4: "),
    ],
)
def test_what_is_no_boot_script_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        script(text).check({})


@pytest.mark.parametrize(
    "content", [b"\x7fELF\0\0", b"#!ipxe\n\xff\xfe\n", b"#!ipxe\n" + b"#" * (1 << 20)]
)
def test_what_is_no_text_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "boot.ipxe").write_bytes(content)
    with pytest.raises(ConfigError, match=r"boot.ipxe"):
        read_script(tmp_path / "boot.ipxe")


def test_a_script_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"ipxe_script: cannot read {tmp_path}/none.ipxe: No s"):
        read_script(tmp_path / "none.ipxe")


@pytest.mark.parametrize(
    "line", [NONCE_LINE, "echo kboot: script ${nonce}", "  echo kboot: script ${nonce} ||"]
)
def test_the_nonce_may_be_written_in_both_ways(line: str) -> None:
    assert told(f"#!ipxe\n{line}\nkernel ${{kernel_url}} kboot.nonce=${{nonce}} || shell\n") == []


def test_the_kernels_line_may_be_in_a_script_that_is_served() -> None:
    kernel = "#!ipxe\nkernel ${kernel_url} ${command_line} || shell\n"
    assert told(f"{HEAD}chain menu.ipxe || shell\n", {"menu.ipxe": kernel}) == []


# ---------------------------------------------------------------------------- what is found


def test_a_loop_that_nothing_counts_is_told_with_both_lines() -> None:
    text = f"{HEAD}:retry\nsleep 1\nkernel ${{kernel_url}} ${{command_line}} || goto retry\nboot\n"
    assert told(text) == [
        "5: retries for ever: goes back to :retry (line 3), and nothing in between counts (inc, "
        "iseq) or asks"
    ]


@pytest.mark.parametrize(
    "within",
    [
        "inc tries && iseq ${tries} 3 && goto give_up ||",
        "isset ${tried} && goto give_up ||\nset tried yes",
        "prompt --key s --timeout 3000 s for a shell && shell ||",
        "choose --timeout 5000 --default retry chosen || shell",
    ],
)
def test_a_loop_that_counts_or_asks_is_none(within: str) -> None:
    text = f"{HEAD}:retry\n{within}\nkernel ${{kernel_url}} ${{command_line}} || goto retry\n"
    assert [each for each in told(f"{text}:give_up\nshell\n") if "retries" in each] == []


@pytest.mark.parametrize(
    "lines",
    [
        # As most of them are written: what is loaded, where it fails, and back.
        "kernel ${kernel_url} ${command_line} || goto a\nboot || goto a\n:a\nsleep 5",
        # Counted, and never compared.
        "kernel ${kernel_url} ${command_line} || inc tries\nboot ||",
        # A label stands before a command as well.
        ":other echo trying\nkernel ${kernel_url} ${command_line} && boot ||",
    ],
)
def test_a_loop_that_only_seems_to_count_or_to_end_is_told(lines: str) -> None:
    last = 4 + lines.count("\n") + 1
    assert [each for each in told(f"{HEAD}:retry\n{lines}\ngoto retry\n") if "ever" in each] == [
        f"{last}: retries for ever: goes back to :retry (line 3), and nothing in between counts "
        "(inc, iseq) or asks"
    ]


def test_a_jump_back_to_what_ends_the_script_is_no_loop() -> None:
    text = f"{HEAD}goto main\n:lost\necho lost\ngoto end\n:main\nchain a.ipxe || goto lost\n:end\n"
    assert told(f"{text}kernel ${{kernel_url}} ${{command_line}} || shell\n") == []


def test_lines_are_read_as_ipxe_reads_them() -> None:
    # A comment behind a command, a semicolon, a label alone, tabs, and a line that goes on.
    lines = (
        "chain a.ipxe || # nothing to do, see ${ticket}\n:\n:  \n"
        "\tisset\t${ip}\t||\tdhcp ; echo on\r\n:here kernel ${kernel_url} \\\r\n"
        "  ${command_line} || goto here_not\r\n"
    )
    assert told(HEAD + lines.replace("\r", "")) == [
        "7: there is no label :here_not; did you mean here?"
    ]
    served = lint.findings(lint.numbered(lines), known={"kernel_url", "command_line"})
    assert [(each.kind, each.line) for each in served] == [("label", 5)]
    script_of_gpxe = HEAD.replace("#!ipxe", "#!gpxe # old")
    assert told(f"{script_of_gpxe}kernel ${{kernel_url}} ${{command_line}} || shell\n") == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("isset ${mirror} || chain a.ipxe", True),
        ("isset ${mirror} && chain a.ipxe ||", False),
        ("chain a.ipxe ; echo on", False),
        ("chain a.ipxe && echo on", True),
        ("echo on ; chain a.ipxe", True),
    ],
)
def test_the_way_on_is_behind_the_command(line: str, found: bool) -> None:
    text = f"{HEAD}{line}\nkernel ${{kernel_url}} ${{command_line}} || shell\n"
    assert told(text) == ["3: chain has no ||: iPXE leaves the script here when it fails"] * found


def test_a_variable_that_nobody_sets_is_told_with_the_one_that_was_meant() -> None:
    text = f"{HEAD}set server http://boot\nkernel ${{sever}}/k ${{command_line}} || shell\n"
    assert told(text) == ["4: ${sever} is set nowhere; did you mean server?"]


def test_settings_of_ipxe_and_of_served_scripts_are_known() -> None:
    lines = "isset ${wanted} || echo ${net0/mac:hexhyp} ${next-server} ${66:string} ${uuid}\n"
    text = f"{HEAD}{lines}kernel ${{mirror}}/k ${{command_line}} || shell\n"
    assert told(text, {"settings.ipxe": "#!ipxe\nset mirror:string http://boot\n"}) == []


def test_a_fetch_that_ends_the_script_is_found() -> None:
    assert told(f"{HEAD}kernel ${{kernel_url}} ${{command_line}}\nboot || shell\n") == [
        "3: kernel has no ||: iPXE leaves the script here when it fails"
    ]


def test_a_label_and_a_command_that_are_not_there_are_found() -> None:
    assert told(f"{GOOD}:menu\ngoto meun\nechoo hello\ngoto ${{chosen}}\n")[:2] == [
        "6: there is no label :meun; did you mean menu?",
        "7: iPXE has no command echoo; did you mean echo?",
    ]


def test_an_item_of_a_menu_without_a_label_is_told() -> None:
    menu = (
        f"{HEAD}:menu\nmenu Boot\nitem --gap -- Systems\nitem --key l linx Linux\n"
        "item ${extra} Extra\nitem exit Exit\nitem\nchoose --default linx chosen || shell\n"
    )
    rest = ":linux\nkernel ${kernel_url} ${command_line} || goto menu\nboot ||\n"
    jump = "iseq ${chosen} exit && exit ||\ngoto ${chosen} || goto menu\n"
    assert told(f"{menu}set extra linux\n{jump}{rest}") == [
        "6: there is no label :linx for this item; did you mean linux?"
    ]
    # Whoever does something else with what is chosen needs no labels.
    assert told(f"{menu}set extra linux\nset file ${{chosen}}\n{rest}") == []


def test_where_a_script_waits_for_somebody_is_known() -> None:
    assert lint.asking(
        "#!ipxe\nprompt --timeout 3000 Go\nchoose chosen\nprompt --timeout 0 Key ||\n"
        "# read name\nchoose --timeout ${menu-timeout} --default a chosen\nread name\n"
    ) == [
        (3, "choose has no --timeout"),
        (4, "prompt has --timeout 0"),
        (6, "choose has --timeout ${menu-timeout}"),
        (7, "read has no --timeout"),
    ]


def test_lines_are_those_of_the_file_behind_a_templates_tags() -> None:
    text = (
        "#!ipxe\n{# not served #}\n" + NONCE_LINE + "\n{% for url in initrd_urls %}\n"
        "initrd {{ url }} || shell\n{% endfor %}\n{% if machine\n   == 'sample' %}\n"
        "bot\n{% endif %}\nkernel {{ kernel_url }} \\\n   {{ command_line }} || shell\n"
    )
    assert told(text) == ["9: iPXE has no command bot; did you mean boot?"]


def _production_script() -> str:
    """A script as fleets have them: a menu of many systems, each with a way back."""
    systems = [f"linux{number}" for number in range(20)]
    entries = "\n".join(f"item {name} ${{space}} System {name}" for name in systems)
    parts = "\n".join(
        f":{name}\nset base http://${{mirror}}/{name}/${{arch}}\n"
        "imgfree\n"
        "kernel ${base}/vmlinuz initrd=initrd.img ${console} ${command_line} || goto failed\n"
        "initrd --name initrd.img ${base}/initrd.img || goto failed\n"
        "boot || goto failed\n"
        for name in systems
    )
    return (
        "#!ipxe\n" + NONCE_LINE + "\n\n"
        "isset ${net0/ip} || dhcp || echo no lease\n"
        "isset ${mirror} || set mirror ${next-server}\n"
        "chain --autofree mac/${net0/mac:hexhyp}.ipxe ||\n"
        "cpuid --ext 29 && set arch amd64 || set arch i386\n"
        "iseq ${platform} efi && set console console=tty0 || set console console=ttyS0\n"
        "set space:hex 20:20\nset space ${space:string}\n\n"
        ":start\nmenu Boot ${hostname} (${manufacturer} ${product}, ${uuid})\n"
        "item --gap -- Systems\n" + entries + "\n"
        "item --key s shell Shell\nitem --key x exit Local disk\n"
        "choose --timeout 10000 --default linux0 chosen && goto ${chosen} || goto cancelled\n\n"
        + parts
        + "\n:failed\necho Failed: ${errno}, press a key\nprompt --timeout 30000 ||\ngoto start\n"
        ":cancelled\necho You cancelled the menu\n:shell\nshell\ngoto start\n:exit\nexit 0\n"
    )


def test_nothing_is_found_in_a_long_script_that_users_would_write() -> None:
    text = _production_script()
    assert len(text.split("\n")) > 180
    assert told(text) == []


def test_what_a_machine_boots_by_survives_a_handover() -> None:
    settings = MachineSettings(
        spec=MachineSpec(ipxe=Path("/a/ipxe.efi"), dhcp="late"),
        boot_script=script(GOOD),
        serve=Path("/a/netboot"),
    )
    assert from_plain(MachineSettings, to_plain(settings)) == settings


def test_how_long_a_script_may_wait_is_known() -> None:
    waits = ["prompt --timeout 3000 go", "choose --default a --timeout 20000 target || sleep 4"]
    assert lint.longest_wait_s(waits) == 20
    assert lint.longest_wait_s(["sleep 30", ""]) == 30
    assert lint.longest_wait_s([]) == 0
    fetches = ["kernel --timeout 20000 ${kernel_url} || sleep 4", "prompt --timeout 3000 go"]
    assert (lint.longest_wait_s(fetches), lint.longest_pause_s(fetches)) == (20, 4)
    assert lint.longest_pause_s([]) == 0


# ----------------------------------------------------------------------------- what is served


def test_a_script_gets_its_values_as_a_template_and_as_settings() -> None:
    text = with_values(script("#!ipxe\n{{ nonce }} ${nonce}\n").render(VALUES), VALUES, "http://b")
    lines = text.split("\n")
    assert lines[0] == "#!ipxe"
    assert "set kernel_url http://boot/artifacts/k?m=m0&b=abcd1234" in lines
    assert "set initrd0_url http://boot/artifacts/i1?m=m0&b=abcd1234" in lines
    assert "set command_line kboot.nonce=abcd1234 console=ttyS0" in lines
    assert lines[-3:] == [
        "imgfetch --name beacon http://b/script?m=m0&b=abcd1234 && imgfree beacon ||",
        "abcd1234 ${nonce}",
        "",
    ]


def test_a_directory_is_served_but_for_what_is_hidden(tmp_path: Path) -> None:
    for name in ("menu.ipxe", "mac/52-54.ipxe", "images/a.img", ".git/config", "a/.hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("#!ipxe\n" if name.endswith("ipxe") else "data")
    tree = read_tree(tmp_path, script=None, script_name="boot.ipxe")
    assert list(tree.files) == ["menu.ipxe", "images/a.img", "mac/52-54.ipxe"]
    assert set(tree.scripts) == {"menu.ipxe", "mac/52-54.ipxe"}
    assert [each["size"] for each in tree.listing()] == [7, 4, 7]


def test_links_are_followed_and_what_leads_nowhere_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "images" / "6.1").mkdir(parents=True)
    (tmp_path / "images" / "6.1" / "a b.ipxe").write_text("#!ipxe\r\necho\r\n")
    (tmp_path / "images" / "current").symlink_to("6.1")
    (tmp_path / "images" / "all").symlink_to(tmp_path)
    (tmp_path / "gone.ipxe").symlink_to("/none/such")
    (tmp_path / "mark.ipxe").write_text("\ufeff#!ipxe\n")
    (tmp_path / "old.ipxe").write_text("#!gpxe # of 2009\n")
    tree = read_tree(tmp_path, script=None, script_name="boot.ipxe")
    assert list(tree.files) == [
        *("mark.ipxe", "old.ipxe", "images/6.1/a b.ipxe", "images/current/a b.ipxe")
    ]
    assert list(tree.scripts)[1:] == ["old.ipxe", "images/6.1/a b.ipxe", "images/current/a b.ipxe"]
    read_tree(tmp_path, script=None, script_name="boot.ipxe")
    assert [record.getMessage() for record in caplog.records] == [
        f"serve: {tmp_path}/gone.ipxe is not served: it is a link to /none/such, which is no file",
        f"serve: {tmp_path}/mark.ipxe begins with a byte order mark, not with #!ipxe: iPXE takes "
        "it for no script; save it as UTF-8 without BOM",
    ]


def test_a_mark_that_no_editor_shows_is_told_by_a_boot_that_has_met_it() -> None:
    # A BIOS's iPXE runs such a file as a PXE program, and is never heard of again.
    boot = started(
        f"{HEAD}chain menu.ipxe || shell\n{GOOD[len(HEAD) :]}", {"menu.ipxe": "\ufeff#!ipxe\n"}
    )
    boot.see_fetch(fetch("scripts/m0/menu.ipxe", query=""), 103)
    assert "; menu.ipxe:1: begins with a byte order mark, not with #!ipxe" in str(boot.late(60))


def test_the_boot_scripts_place_is_for_the_boot_script(tmp_path: Path) -> None:
    own = tmp_path / "boot.ipxe"
    own.write_text("#!ipxe\n")
    assert read_tree(tmp_path, script=own, script_name="boot.ipxe").files == {}
    with pytest.raises(ConfigError, match=r"has the name of the boot script: say --ipxe-script"):
        read_tree(tmp_path, script=None, script_name="boot.ipxe")
    with pytest.raises(ConfigError, match=r"serve: .*/none is not a directory"):
        read_tree(tmp_path / "none", script=None, script_name="boot.ipxe")


# ---------------------------------------------------------------------------- what it does


def expected_of(text: str, others: dict[str, str] | None = None) -> Expected:
    return Expected(
        nonce="abcd1234",
        query=VALUES.query,
        script_path="scripts/m0/boot.ipxe",
        kernel_path="artifacts/k",
        initrd_paths={"artifacts/i1": "tiny.cpio.gz"},
        release="6.1.0",
        command_line=VALUES.command_line,
        user_script="/home/me/boot.ipxe",
        served_scripts=("scripts/m0/menu.ipxe",),
        findings=tuple(
            (each.kind, f"{name or 'boot.ipxe'}:{each.line}: {each.text}", each.source, name)
            for name, found in script(text).findings(others or {}).items()
            for each in found
        ),
    )


def fetch(path: str, *, query: str = VALUES.query, status: int = 200) -> Fetch:
    return Fetch(
        time=0, path=path, query=query, status=status, size=1, complete=True, user_agent="iPXE"
    )


def started(text: str, others: dict[str, str] | None = None) -> Boot:
    boot = Boot(expected_of(text, others), start=100)
    boot.see_line("SeaBIOS (version 1.16.2)", 101)
    boot.see_fetch(fetch("scripts/m0/boot.ipxe", query=""), 102)
    boot.see_fetch(fetch("beacon/script"), 102)
    boot.see_line("kboot: script abcd1234", 102)
    return boot


def test_each_chained_script_is_a_row_of_the_boots_record() -> None:
    boot = started(GOOD)
    boot.see_fetch(fetch("scripts/m0/menu.ipxe", query=""), 103)
    boot.see_fetch(fetch("scripts/m0/image.img", query=""), 104)
    boot.see_fetch(fetch("scripts/m0/menu.ipxe", query="again=1"), 105)
    assert [(each.detail, each.time) for each in boot.script.chained] == [
        ("menu.ipxe", 103),
        ("menu.ipxe", 105),
    ]
    assert boot.current is Phase.KERNEL


def test_a_script_of_the_users_may_meet_a_404_and_go_on() -> None:
    boot = started(GOOD)
    boot.see_fetch(fetch("scripts/m0/mac/52-54.ipxe", query="", status=404), 103)
    boot.see_fetch(fetch("artifacts/k", query=f"{VALUES.query}?{VALUES.query}"), 104)
    boot.see_fetch(fetch("artifacts/i1"), 105)
    phases = [boot.current]
    boot.see_line("[    0.000000] Linux version 6.1.0 (debian) (gcc) #1 SMP", 130)
    phases.append(boot.current)
    assert phases == [Phase.HANDOFF, Phase.INIT]
    assert boot.contradiction() is None


def test_what_a_script_waits_for_is_no_hang() -> None:
    boot = started(GOOD)
    limit_s = boot.expected.budget_s(Phase.KERNEL)
    boot.see_line("Press a key", 150)
    assert not boot.overdue(150 + limit_s)
    assert boot.overdue(151 + limit_s)
    patient = dataclasses.replace(boot.expected, script_waits_s=600)
    assert patient.budget_s(Phase.KERNEL) == limit_s + 600


@pytest.mark.parametrize(
    ("unfinished", "state"),
    [("Boot m0      The kernel under test", "waits"), ("", "hang"), ("vmlinuz... 3%", "hang")],
)
def test_a_script_that_waits_for_somebody_is_told_from_one_that_hangs(
    unfinished: str, state: str
) -> None:
    expected = dataclasses.replace(
        expected_of(GOOD),
        script_asks=(("boot.ipxe:4: choose has no --timeout", ""), ("menu.ipxe:9: x", "menu.ipxe")),
    )
    boot = Boot(expected, start=100)
    boot.see_fetch(fetch("beacon/script"), 102)
    boot.see_silence(unfinished, 103, starved_s=0, silence_s=0)
    error = boot.late(60)
    assert isinstance(error, ScriptEnded)
    assert error.state == state
    assert ("; boot.ipxe:4: choose has no --timeout" in str(error)) is (state == "waits")
    assert "menu.ipxe" not in str(error)


def test_a_script_that_ends_and_has_started_nothing_is_told() -> None:
    boot = started(GOOD)
    with pytest.raises(ScriptEnded, match=r"devices; boot.ipxe has ended, and has started nothing"):
        boot.see_line("No more network devices", 104)


def test_an_endless_retry_is_told_with_its_line() -> None:
    boot = started(f"{HEAD}:again\nkernel ${{kernel_url}} ${{command_line}} || goto again\nboot\n")

    def ask() -> None:
        for _ in range(10):
            boot.see_fetch(fetch("artifacts/k", status=503), 103)

    with pytest.raises(
        InfraError, match=r"asks for ever, 5 times by now: kernel \(503\); boot.ip"
    ) as told:
        ask()
    assert "; boot.ipxe:4: retries for ever: goes back to :again (line 3)" in str(told.value)


def test_a_server_that_is_gone_is_no_reason_to_ask_for_ever() -> None:
    boot = started(f"{HEAD}:again\nkernel ${{kernel_url}} ${{command_line}} || goto again\nboot\n")
    line = "http://10.0.2.2/t/artifacts/k... Connection reset (https://ipxe.org/0f0a6095)"
    for _ in range(4):
        boot.see_line(line, 103)
    with pytest.raises(InfraError, match=r"10.0.2.2/t/artifacts/k \(connection reset \(ECONNRESET"):
        boot.see_line(line, 104)


def test_a_script_that_chains_to_itself_is_told() -> None:
    boot = started(GOOD)
    for _ in range(4):
        boot.see_line("kboot: script abcd1234", 103)
    with pytest.raises(InfraError, match=r"started 6 times without a restart .* chains back to it"):
        boot.see_line("kboot: script abcd1234", 104)


def test_an_endless_retry_in_a_script_that_was_chained_to_is_told_with_its_name() -> None:
    menu = "#!ipxe\n:again\nkernel ${kernel_url} ${command_line} || goto again\nboot\n"
    text = f"{HEAD}chain menu.ipxe || shell\n"
    for chained, times in ((False, 50), (True, 5)):
        boot = started(text, {"menu.ipxe": menu, "other.ipxe": menu})
        if chained:
            boot.see_fetch(fetch("scripts/m0/menu.ipxe", query=""), 103)
        for _ in range(times - 1):
            boot.see_fetch(fetch("artifacts/k", status=503), 104)
        with pytest.raises(ScriptEnded, match=rf"for ever, {times} times") as told:
            boot.see_fetch(fetch("artifacts/k", status=503), 104)
        line = "; menu.ipxe:3: retries for ever: goes back to :again (line 2), and nothing in"
        assert (line in str(told.value)) is chained
        assert "other.ipxe" not in str(told.value)


def test_a_missing_way_on_is_told_with_its_line() -> None:
    boot = started(f"{HEAD}imgfetch other\nkernel ${{kernel_url}} ${{command_line}}\nboot\n")
    boot.see_fetch(fetch("artifacts/k", status=404), 103)
    boot.see_line("http://boot/artifacts/k... Not found (https://ipxe.org/2d0c613b)", 103)
    with pytest.raises(InfraError) as told:
        boot.see_line("No more network devices", 104)
    assert str(told.value) == (
        "the firmware found nothing to boot: No more network devices; iPXE's last error: 404 Not "
        "Found (ENOENT), ipxe.org/err/2d0c61; boot.ipxe:4: kernel has no ||: iPXE leaves the "
        "script here when it fails"
    )


@pytest.mark.parametrize("length", range(20, 50))
def test_an_error_is_told_wherever_a_bios_has_wrapped_it(length: int) -> None:
    said = f"{'x' * length}/menu.ipxe... No such file or directory (http://ipxe.org/2d0c613b)"
    boot = started(f"{HEAD}chain {'x' * length}/menu.ipxe\n{GOOD[len(HEAD) :]}")
    for begin in range(0, len(said) + 1, 80):
        boot.see_line(said[begin : begin + 80], 104)
    with pytest.raises(ScriptEnded, match=r"last error: 404 Not Found .*; boot.ipxe:3: chain has"):
        boot.see_line("No more network devices", 104)


def test_a_wrong_variable_is_told_with_its_line_when_the_boot_fails() -> None:
    boot = started(f"{HEAD}kernel ${{kernel_uri}} ${{command_line}} || shell\nboot\n")
    with pytest.raises(InfraError) as told:
        boot.see_ipxe_prompt()
    assert str(told.value) == (
        "boot.ipxe ended at iPXE's prompt; boot.ipxe:3: ${kernel_uri} is set nowhere; did you mean "
        "kernel_url?"
    )


def test_ipxes_prompt_is_none_once_the_kernel_runs() -> None:
    boot = started(GOOD)
    boot.see_line("[    0.000000] Linux version 6.1.0 (debian) (gcc) #1 SMP", 103)
    boot.see_ipxe_prompt()


def test_scripts_that_chain_to_each_other_for_ever_are_told() -> None:
    boot = started(GOOD)
    menu = fetch("scripts/m0/menu.ipxe", query="")
    for _ in range(20):
        boot.see_fetch(menu, 103)
    boot.see_line("SeaBIOS (version 1.16.2)", 104)
    boot.see_fetch(menu, 105)
    for _ in range(19):
        boot.see_fetch(menu, 106)
    with pytest.raises(ScriptEnded, match=r"menu.ipxe was loaded 21 times without a restart") as e:
        boot.see_fetch(menu, 107)
    assert e.value.state == "loop"

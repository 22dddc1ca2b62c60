"""Three machines with etcd, two that report to it: what cuts of their network do, and for how long.

    sh initramfs.sh etcd.cpio
    pytest -s --kernel=linux-image.deb --kboot-initrd=etcd.cpio test_etcd.py

ROUNDS=10 in the environment is how often everything happens.
"""

import base64
import json
import os

import pytest

ROUNDS = int(os.environ.get("ROUNDS", "10"))

#: How long a follower waits for its leader. etcd's own is 1000: too little for a busy host that
#: emulates all five machines.
ELECTION_MS = int(os.environ.get("ELECTION_MS", "2000"))

pytestmark = pytest.mark.kboot_fleet(control=3, worker=2)

CONTROL = ("control-1", "control-2", "control-3")

ETCD = (
    "exec etcd --name $(hostname) --data-dir /run/etcd"
    " --listen-client-urls http://0.0.0.0:2379 --advertise-client-urls http://$(hostname):2379"
    " --listen-peer-urls http://0.0.0.0:2380 --initial-advertise-peer-urls http://$(hostname):2380"
    f" --initial-cluster {','.join(f'{name}=http://{name}:2380' for name in CONTROL)}"
    f" --election-timeout {ELECTION_MS} --heartbeat-interval {ELECTION_MS // 10}"
    " >/run/etcd.log 2>&1"
)


def encoded(text):
    return base64.b64encode(text.encode()).decode()


def ask(machine, what, **body):
    """What the machine's own etcd answers."""
    answer = machine.guest.succeed(
        f"timeout 5 wget -q -O - --post-data '{json.dumps(body)}' http://127.0.0.1:2379/v3/{what}"
    )
    return json.loads(answer)


def leader(fleet, *names):
    """The machine that all of these take for the leader; None if they do not agree, or have none."""
    group = fleet.role(*names)
    members = ask(group.machines[0], "cluster/member/list")["members"]
    found = group.each(lambda machine: ask(machine, "maintenance/status").get("leader"))
    if len({*found.values()}) > 1:
        return None
    known = {member["ID"]: member.get("name") for member in members}
    return known.get(found[group.names[0]])


def report(worker):
    """Have a worker tell any of the three, several times a second, that it is there."""
    body = json.dumps({"key": encoded(f"worker/{worker}"), "value": encoded("alive")})
    return (
        "while :; do for each in " + " ".join(CONTROL) + "; do "
        f"timeout 2 wget -q -O /dev/null --post-data '{body}' http://$each:2379/v3/kv/put && break; "
        "done; sleep 0.2; done"
    )


def revision(fleet):
    """How much has happened so far, as the first of the three knows it."""
    return int(ask(fleet["control-1"], "kv/range", key=encoded("x"))["header"]["revision"])


def all_have_reported(fleet, since):
    """Whether each worker has reported after that revision."""
    # The key behind the last one that begins with worker/.
    keys = {"key": encoded("worker/"), "range_end": encoded("worker0")}
    found = ask(fleet["control-1"], "kv/range", **keys)
    late = [each for each in found.get("kvs", ()) if int(each["mod_revision"]) > since]
    return len(late) == len(fleet.role("worker"))


def test_times_of_recovery(fleet):
    for name in CONTROL:
        fleet[name].guest.spawn(ETCD)
    fleet.wait_until(lambda: leader(fleet, *CONTROL), timeout=120)
    for name in fleet.role("worker").names:
        fleet[name].guest.spawn(report(name))
    fleet.wait_until(lambda: all_have_reported(fleet, since=0), timeout=60)

    def round_():
        old = leader(fleet, *CONTROL)
        rest = [name for name in CONTROL if name != old]
        with fleet.cut(old):
            elected = fleet.wait_until(lambda: leader(fleet, *rest) not in {None, old}, timeout=60)
            # It is more than a name: two of three can write.
            ask(fleet[rest[0]], "kv/put", key=encoded("round"), value=encoded(old))
        rejoined = fleet.wait_until(lambda: leader(fleet, *CONTROL), timeout=60)

        with fleet.cut("worker"):
            fleet.role("worker").each(lambda machine: machine.guest.run("sleep 1"))
            assert leader(fleet, *CONTROL), "the three do not need the workers"
            before = revision(fleet)
        reported = fleet.wait_until(lambda: all_have_reported(fleet, before), timeout=60)
        return {
            "a new leader": elected,
            "the old one follows it": rejoined,
            "all workers are back": reported,
        }

    for what, figure in fleet.measure(round_, rounds=ROUNDS).items():
        print(f"{what} after {figure}")

"""cloud-init's data on a disk, for images with a boot loader of their own: a NoCloud disk.

It is an ISO 9660 file system with the label ``cidata``: see the page of the data source NoCloud in
cloud-init's documentation.
"""

from __future__ import annotations

import hashlib
import io
import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from kboot.cache import keep_directory
from kboot.guest.ssh import authorized_key
from kboot.machine.cloud_init import VENDOR_DATA, meta_data
from kboot.machine_spec import Disk
from kboot.state import cache_directory

#: Of the disk, and of its file system, by which cloud-init finds it.
_LABEL = "cidata"
_IMAGE = "cidata.iso"

#: It runs at each boot, before any login, and whatever the user's own data says.
_LET_IN = """\
#cloud-boothook
#!/bin/sh
printf '%s\\n' {account} | chpasswd
mkdir -p -m 700 /root/.ssh
grep -qsF {key} /root/.ssh/authorized_keys || printf '%s\\n' {key} >> /root/.ssh/authorized_keys
chmod 600 /root/.ssh/authorized_keys
"""


def cloud_init_disk(user_data: str, *, host_name: str, user: str, password: str) -> Disk:
    """A read-only disk with this user data; the same arguments give the same file, in the cache.

    Where we log in as root, it lets us in, by `password` and by our ssh key; any other `user` has
    to be made by the user data.
    """
    vendor_data = VENDOR_DATA if user != "root" else _with_login(password)
    files = {
        "user-data": user_data,
        "meta-data": json.dumps(meta_data(host_name, user_data, own_instance=True)),
        "vendor-data": vendor_data,
    }
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:32]

    def fill(directory: Path) -> None:
        _write_iso(directory / _IMAGE, files)

    kept = keep_directory(cache_directory("cloud-init") / digest, fill)
    return Disk(name=_LABEL, kind="image", source=str(kept / _IMAGE), read_only=True)


def _with_login(password: str) -> str:
    # Few machines have such a disk.
    from email.mime.multipart import MIMEMultipart  # noqa: PLC0415
    from email.mime.text import MIMEText  # noqa: PLC0415

    hook = _LET_IN.format(
        account=shlex.quote(f"root:{password}"), key=shlex.quote(authorized_key().strip())
    )
    # What stands between the parts must not be another one each time.
    parts = MIMEMultipart(boundary="kboot-part")
    for kind, text in (("cloud-config", VENDOR_DATA), ("cloud-boothook", hook)):
        parts.attach(MIMEText(text, kind, "us-ascii" if text.isascii() else "utf-8"))
    return parts.as_string()


def _write_iso(target: Path, files: Mapping[str, str]) -> None:
    import pycdlib  # noqa: PLC0415  as above

    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=_LABEL)
    for name, text in files.items():
        content = text.encode()
        image.add_fp(
            io.BytesIO(content),
            len(content),
            f"/{name.replace('-', '').upper()}.;1",
            rr_name=name,
            joliet_path=f"/{name}",
        )
    image.write(str(target))
    image.close()

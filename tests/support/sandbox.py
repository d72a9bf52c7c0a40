"""Becomes a program in a container of sorts; run by `pods.py`, in namespaces of its own.

    sandbox.py SPECIFICATION PROGRAM [ARGUMENT…]

The root is this machine's, read-only, with `/tmp` and `/run` empty and the mounts of the
specification in place: {"root": directory to mount it on, "mounts": {path: [directory,
is_writable]}, "user": uid or null}.
"""

import ctypes
import fcntl
import json
import os
import socket
import struct
import sys
from pathlib import Path

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1, 2, 4, 32, 4096, 16384, 1 << 18,
)  # fmt: skip
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
EMPTY = ("tmp", "run", "proc")
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: Path, kind: str = "", flags: int = 0) -> None:
    """Call mount(2)."""
    if _libc.mount(source.encode(), str(target).encode(), kind.encode(), flags, None):
        number = ctypes.get_errno()
        raise OSError(number, f"mount {source}: {os.strerror(number)}", str(target))


def bind(source: Path, target: Path, is_writable: bool) -> None:
    """Let target show what source is."""
    mount(str(source), target, flags=MS_BIND)
    if not is_writable:
        # Not allowed to take away what the mount has anyway.
        kept = os.statvfs(target).f_flag & (MS_NOSUID | MS_NODEV)
        mount("none", target, flags=MS_REMOUNT | MS_BIND | MS_RDONLY | kept)


def place(target: Path, is_directory: bool) -> None:
    """Make something to mount on."""
    (target if is_directory else target.parent).mkdir(parents=True, exist_ok=True)
    if not is_directory:
        target.touch()


def furnish(real: Path, shown: Path, mounts: list[Path]) -> None:
    """Show what is in a directory, but leave room for the mounts below it."""
    for entry in sorted(real.iterdir()):
        target = shown / entry.name
        if entry.is_symlink():
            target.symlink_to(entry.readlink())
        elif real == Path("/") and entry.name in EMPTY:
            place(target, True)
        elif entry.name == "dev" and real == Path("/"):
            place(target, True)
            mount(str(entry), target, flags=MS_BIND | MS_REC)
        elif any(entry in one.parents for one in mounts):
            place(target, True)
            furnish(entry, target, mounts)
        elif entry.is_dir() or entry.is_file():
            place(target, entry.is_dir())
            bind(entry, target, False)


def main(specification: str, *program: str) -> None:
    """Build the root, enter it, and become the program."""
    said = json.loads(specification)
    mounts = {
        Path(path): (Path(source), writes) for path, (source, writes) in said["mounts"].items()
    }
    # Where Python is, all the way must be open to everybody.
    mounts.setdefault(Path(sys.base_prefix), (Path(sys.base_prefix), False))
    mount("none", Path("/"), flags=MS_REC | MS_PRIVATE)
    root = Path(said["root"])
    mount("none", root, "tmpfs")
    root.chmod(0o755)
    furnish(Path("/"), root, list(mounts))
    for path, (source, is_writable) in sorted(mounts.items()):
        target = root / path.relative_to("/")
        place(target, source.is_dir())
        bind(source, target, is_writable)
    mount("proc", root / "proc", "proc")
    mount("none", root, flags=MS_REMOUNT | MS_BIND | MS_RDONLY)
    os.chroot(root)
    os.chdir("/")
    with socket.socket() as one:
        # A network of our own has a loopback, but it is down; the machine's is up already.
        fcntl.ioctl(one, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    if said["user"] is not None:
        user = str(said["user"])
        program = (
            "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs",
            "--bounding-set=-all", "--inh-caps=-all", *program,
        )  # fmt: skip
    os.execvp(program[0], program)


if __name__ == "__main__":
    main(*sys.argv[1:])

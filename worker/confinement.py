"""What a job's process gives up before it opens a file that a stranger sent. Linux only; elsewhere a no-op.

    limits       no core dumps, bounded files, processes and (if asked) address space
    network      a network namespace of its own, with no interface in it
    processes    a process namespace of its own: nothing that it starts outlives it
    files        Landlock: reads what it needs to run, writes to its scratch folder only
    parent       dies with the process that started it; gains no privilege by executing anything

Each measure is applied if the kernel permits it; `confine` returns the names of those that hold, for the
report. In a container that forbids namespaces the compose file's network policy stands in for ours.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWNET = 0x4000_0000
_CLONE_NEWUSER = 0x1000_0000
_CLONE_NEWPID = 0x2000_0000
_MAX_PROCESSES = 1024
SIGNALLED = 128
"""The exit status of a job that a signal ended, less the signal's number."""

# linux/landlock.h; the numbers are the same on every architecture
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_RULE_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 1 << 1, 1 << 2, 1 << 3
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14 | 1 << 15  # and TRUNCATE, IOCTL_DEV
_RIGHTS_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_NET_TCP = 0b11  # bind and connect, since ABI 4
_SCOPES = 0b11  # abstract sockets and signals stay inside, since ABI 6

_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc", "/opt", "/proc", "/sys", "/dev")


def confine(
    *,
    scratch: Path,
    inputs: Iterable[Path],
    hidden: Sequence[Path],
    max_file_bytes: int,
    memory_bytes: int | None,
    parent: int,
) -> list[str]:
    """Give up everything that a job does not need; returns the measures that hold.

    hidden: resolved paths that stay unreadable even where programs may be read. scratch and inputs may be
    inside of one.
    Call it while the process has one thread: a user namespace can't be entered with more. Where the kernel
    gives a process namespace, it returns in another process, whose end the caller's ends with.
    """
    if sys.platform != "linux":
        return []
    libc = ctypes.CDLL(None, use_errno=True)
    _die_with(libc, parent)
    own_users, no_network = _leave_network(libc)
    _limit(max_file_bytes, memory_bytes, own_users=own_users)
    own_processes = libc.unshare(_CLONE_NEWPID) == 0
    if own_processes:
        _enter(libc)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    measures = ["limits", "no-new-privileges"]
    if no_network:
        measures.append("no-network")
    if own_processes:
        measures.append("own-processes")
    programs = [part for path in _readable() for part in _without(path, hidden)]
    devices = _without(Path("/dev"), hidden)
    if _landlock(libc, readable=[*programs, *inputs], writable=[scratch, *devices]):
        measures.append("landlock")
    return measures


def _die_with(libc: ctypes.CDLL, parent: int) -> None:
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _enter(libc: ctypes.CDLL) -> None:
    """Returns as the second process of the namespace that was unshared: signals mean nothing to the first.

    When the first one ends, by whatever, the kernel ends all that are in the namespace.
    """
    if first := os.fork():
        _end_as(first)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if job := os.fork():
        _end_as(job)


def _end_as(child: int) -> NoReturn:
    """Waits for `child` and ends as it did; by a signal with the status that shells use, since the first
    process of a namespace cannot end itself by one.
    """
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # the pipe's end is to be the job's
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(code if code >= 0 else SIGNALLED - code)


def _limit(max_file_bytes: int, memory_bytes: int | None, *, own_users: bool) -> None:
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, max_file_bytes)
    if own_users:  # elsewhere the count is of all the user's processes on this machine
        _lower(resource.RLIMIT_NPROC, _MAX_PROCESSES)
    if memory_bytes is not None:
        _lower(resource.RLIMIT_AS, memory_bytes)


def _lower(limit: int, value: int) -> None:
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


def _leave_network(libc: ctypes.CDLL) -> tuple[bool, bool]:
    """Returns whether we are in a user namespace of our own, and whether the network is gone."""
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False, libc.unshare(_CLONE_NEWNET) == 0
    with suppress(OSError):
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return True, True


def _readable() -> list[Path]:
    """Where the interpreter, its packages, this one, the system's libraries and devices are."""
    python = [sys.prefix, sys.base_prefix, *(entry for entry in sys.path if entry)]
    return [*map(Path, (*_SYSTEM, *python)), Path(__file__).parent]


def _without(path: Path, hidden: Sequence[Path]) -> Iterator[Path]:
    """The path, or so much of what is in it as leaves out what is hidden."""
    place = path.resolve()
    if not any(secret.is_relative_to(place) for secret in hidden):
        yield path
        return
    if place not in hidden:
        for part in _entries(place):
            yield from _without(part, hidden)


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, without links: a rule about a link would be one about its target."""
    try:
        return [part for part in sorted(folder.iterdir()) if not part.is_symlink()]
    except OSError:
        return []


def _landlock(libc: ctypes.CDLL, *, readable: Iterable[Path], writable: Iterable[Path]) -> bool:
    abi = libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_CREATE_RULESET_VERSION)
    if abi < 1:
        return False
    rights = _RIGHTS_BY_ABI[max(known for known in _RIGHTS_BY_ABI if known <= abi)]
    ruleset = _create_ruleset(libc, abi, rights)
    if ruleset < 0:
        return False
    try:
        for path in readable:
            _allow(libc, ruleset, path, _READ & rights)
        for path in writable:
            _allow(libc, ruleset, path, rights)
        return bool(libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _create_ruleset(libc: ctypes.CDLL, abi: int, rights: int) -> int:
    fields = [rights, *([_NET_TCP] if abi >= 4 else []), *([_SCOPES] if abi >= 6 else [])]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    return int(libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0))


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not on this system
    try:
        allowed = rights if path.is_dir() else rights & _FILE_RIGHTS
        rule = struct.pack("=Qi", allowed, descriptor)
        libc.syscall(_LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)

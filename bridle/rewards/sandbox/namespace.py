"""What stands between a program that somebody's model wrote and this machine; run as a script, with Python's own library alone.

Kept out, on Linux, by own namespaces of mounts, network, processes, users, IPC and host names:
- files: the program sees /usr, the libraries, the Python that runs it and three devices, all read-only, and an empty folder in memory. It
  sees no home, no project, no store, no /etc, no /proc; a link leads nowhere else.
- the network: no interface is up; sockets of this machine are out of reach.
- other processes: it sees its own alone. When it ends, or is ended, every process that it left behind is killed with it.
- the environment: it is empty. No file is open but standard input, output and error.
- memory, processor time, size and number of files, number of processes: limits, of which that on processes binds because the program has a
  user of its own (limits do not bind root). Time: it is killed from outside.
Not kept out: what a fault of the kernel lets through (no system call is filtered), what /usr and Python's folder hold, use of the
machine up to the limits (each of its processes may have the memory), channels of time. This is not a virtual machine: run nothing in it
that you would not have on the machine at all.
Without namespaces (`unsafe_execution`) the limits and the empty environment are all: the program can read, write and send what
its user can.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 0x1000, 0x4000, 0x40000
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MNT_DETACH, AT_RECURSIVE, AT_FDCWD = 2, 0x8000, -100
PDEATHSIG, NO_NEW_PRIVS = 1, 38
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41}
MOUNT_SETATTR = 442
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
DEVICES = ("null", "zero", "urandom")
NOT_SET_UP, TOO_LONG = 125, 124  # exit statuses of ours
USERS_FROM = 2**30  # a user for each run, by its process id
Job = dict[str, object]


def succeeded(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


class Kernel:
    """The system calls that Python has no function for."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)

    def unshare(self, flags: int) -> None:
        succeeded(self.libc.unshare(flags), "unshare")

    def mount(self, source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
        names = (source.encode(), target.encode(), kind.encode() or None)
        succeeded(self.libc.mount(*names, ctypes.c_ulong(flags), data.encode() or None), f"mount {target}")

    def read_only(self, path: str) -> None:
        attributes = (ctypes.c_uint64 * 4)(MS_RDONLY | MS_NOSUID, 0, 0, 0)
        size = ctypes.c_size_t(32)
        found = self.libc.syscall(MOUNT_SETATTR, AT_FDCWD, path.encode(), AT_RECURSIVE, ctypes.byref(attributes), size)
        succeeded(found, "mount_setattr")

    def enter(self, root: str) -> None:
        """Make the folder the root, and let go of the old one."""
        os.chdir(root)
        succeeded(self.libc.syscall(PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
        succeeded(self.libc.umount2(b".", MNT_DETACH), "umount")
        os.chdir("/")

    def process(self, option: int, value: int) -> None:
        succeeded(self.libc.prctl(option, value, 0, 0, 0), "prctl")


def new_namespaces(kernel: Kernel) -> None:
    """For root without a user namespace yet, so that mounts and the program's user can be chosen; for others in one of their own."""
    apart = NEWNS | NEWNET | NEWPID | NEWIPC | NEWUTS
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        kernel.unshare(apart)
        return
    kernel.unshare(NEWUSER | apart)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def build_root(kernel: Kernel, job: Job) -> None:
    """A root of nothing but the system's programs and libraries, read-only, with an empty /box in memory that can be written."""
    root, prefix, size = str(job["folder"]), str(job["prefix"]), job["files"]
    kernel.mount("none", "/", flags=MS_REC | MS_PRIVATE)
    kernel.mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,nr_inodes=500,mode=755")
    for path in (*SYSTEM, prefix):
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
        elif os.path.isdir(path) and not os.path.lexists(root + path):
            os.makedirs(root + path)
            kernel.mount(path, root + path, flags=MS_BIND | MS_REC)
    os.mkdir(root + "/dev")
    for name in DEVICES:
        open(f"{root}/dev/{name}", "w").close()
        kernel.mount(f"/dev/{name}", f"{root}/dev/{name}", flags=MS_BIND)
    os.mkdir(root + "/box")
    kernel.read_only(root)
    kernel.mount("tmpfs", root + "/box", "tmpfs", MS_NOSUID | MS_NODEV, f"size={size},nr_inodes=1000,mode=777")
    kernel.enter(root)


def drop_rights(kernel: Kernel, launcher: int) -> None:
    if os.geteuid() == 0:
        user = USERS_FROM + launcher
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        kernel.unshare(NEWUSER)
    kernel.process(NO_NEW_PRIVS, 1)
    kernel.process(PDEATHSIG, signal.SIGKILL)


def set_limits(job: Job) -> None:
    most = {
        resource.RLIMIT_AS: job["memory"], resource.RLIMIT_CPU: int(str(job["cpu"])), resource.RLIMIT_FSIZE: job["files"],
        resource.RLIMIT_NPROC: job["processes"], resource.RLIMIT_NOFILE: 64, resource.RLIMIT_CORE: 0,
    }  # fmt: skip
    for what, number in most.items():
        resource.setrlimit(what, (int(str(number)), int(str(number))))


def become_program(job: Job, program: bytes, launcher: int) -> None:
    """In the forked process: the first of its namespace, with whose end all others of it are killed."""
    folder = str(job["folder"])
    if job["apart"]:
        kernel = Kernel()
        build_root(kernel, job)
        folder = "/box"
    os.chdir(folder)
    with open("main.py", "wb") as file:
        file.write(program)
    if job["apart"]:
        drop_rights(kernel, launcher)
    nothing = os.open("/dev/null", os.O_WRONLY)
    set_limits(job)
    executable = str(job["executable"])
    os.dup2(nothing, 2)
    os.closerange(3, 256)
    os.execve(executable, [executable, "-I", "-S", "-B", "-X", "utf8", "main.py"], {})


def launch() -> None:
    job: Job = json.loads(sys.argv[1])
    with open(int(str(job["program"])), "rb") as file:
        program = file.read()
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    if job["apart"]:
        kernel = Kernel()
        kernel.process(PDEATHSIG, signal.SIGTERM)
        new_namespaces(kernel)
    launcher = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if not job["apart"]:
                os.setsid()
            become_program(job, program, launcher)
        except BaseException as error:
            os.write(2, str(error).encode())
        os._exit(NOT_SET_UP)
    until, status = time.monotonic() + float(str(job["seconds"])), TOO_LONG
    while not stopped and time.monotonic() < until:
        ended, found = os.waitpid(child, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(found) % 256
            break
        time.sleep(0.003)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)  # of a namespace's first process this waits until all of the others are gone
    if not job["apart"]:
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
    os._exit(status)


if __name__ == "__main__":
    try:
        launch()
    except OSError as error:
        os.write(2, str(error).encode())
        os._exit(NOT_SET_UP)

"""Ties a process to its parent: when the parent dies, however it dies, the process is killed.

As a program, `leash.py PARENT_PID COMMAND...` puts itself on the leash and becomes COMMAND, which keeps the pid.
On Linux the kernel does it (PR_SET_PDEATHSIG, which survives exec). The signal comes when the *thread* that started
us ends, so the harness starts all its children from one thread that lives as long as the process.
Elsewhere this stays as a small process of its own, passes signals on, and looks four times a second.
"""
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

PR_SET_PDEATHSIG = 1


def tie_to(parent):
    if sys.platform == "linux":
        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            sys.exit("leash: prctl: " + os.strerror(ctypes.get_errno()))
    else:
        threading.Thread(target=watch, args=(parent, os.getpid()), daemon=True).start()
    # It may have died before the line above; then nobody would ever tell us.
    if os.getppid() != parent:
        sys.exit("leash: the parent is gone")


def watch(parent, victim):
    while os.getppid() == parent:
        time.sleep(0.25)
    os.kill(victim, signal.SIGKILL)


def main():
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        tie_to(parent)
        os.execv(command[0], command)
    child = subprocess.Popen(command)
    threading.Thread(target=watch, args=(parent, child.pid), daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: child.send_signal(received))
    sys.exit(child.wait())


if __name__ == "__main__":
    main()

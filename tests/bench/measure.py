"""Runs a command to its end and writes what it took: measure.py RESULT.json COMMAND...

RESULT.json: start_s just before the start and end_s at the end, by the machine's monotonic clock; cpu_s (user + system) and max_rss_kb of the command with all
children it waited for, as the kernel counts them (wait4). The floor of max_rss_kb is this small process itself (about
12 MB): the kernel counts the moment between fork and exec.
Exits as the command did. The command dies with this process, and this with the bench (it is started on the leash).
"""
import json
import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "servers"))
import leash


def main():
    result, command = sys.argv[1], sys.argv[2:]
    me = os.getpid()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        leash.tie_to(me)
        os.execv(command[0], command)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: os.kill(child, received))
    _, status, usage = os.wait4(child, 0)
    end = time.monotonic()
    with open(result, "w") as file:
        cpu_s = usage.ru_utime + usage.ru_stime
        json.dump({"start_s": start, "end_s": end, "cpu_s": cpu_s, "max_rss_kb": usage.ru_maxrss}, file)
    code = os.waitstatus_to_exitcode(status)
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()

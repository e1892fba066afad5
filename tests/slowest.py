"""Runs a command that runs scenarios, and then prints the ten slowest of them, those that were skipped, and the total.

usage: slowest.py FILE COMMAND [ARGUMENT ...]

The scenarios write their times to FILE (tests/src/times.rs). The command has this process's own stdout and stderr, so
that everything comes as it is written. The exit code is the command's.
"""

import os
import signal
import subprocess
import sys
import time

SHOWN = 10


def read(path):
    times, skipped = [], []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                what, scenario, value = line.rstrip("\n").split("\t")
                if what == "took":
                    times.append((float(value), scenario))
                else:
                    skipped.append(f"{scenario} (needs root, {value})")
    return sorted(times, reverse=True), sorted(skipped)


def main(path, command):
    if os.path.exists(path):
        os.remove(path)
    # A relative path would be read in the folder of each test binary.
    environment = {**os.environ, "FERRY_SCENARIO_TIMES": os.path.abspath(path)}
    # Ctrl-C reaches the command too, and its end is waited for.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begun = time.monotonic()
    process = subprocess.Popen(
        command, env=environment, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    code = process.wait()
    minutes, seconds = divmod(round(time.monotonic() - begun), 60)
    times, skipped = read(path)
    if times:
        print(f"\nThe slowest of {len(times)} scenarios:")
        for seconds_taken, scenario in times[:SHOWN]:
            print(f"  {seconds_taken:7.1f} s  {scenario}")
    for scenario in skipped:
        print(f"skipped: {scenario}")
    print(f"All tests took {minutes} min {seconds} s.", flush=True)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2:]))

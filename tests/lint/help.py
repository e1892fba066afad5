#!/usr/bin/env python3
"""Compares the help of every command with docs/help, a file for each binary, so that a change of a help text is seen.

Needs target/debug/{puller,uploader}. With --write the files are written anew. Exit 0: no difference. Exit 1: differences, or
a binary that cannot say its help.
"""
import argparse
import difflib
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARIES = ("uploader", "puller")
# A line of the list of commands: two spaces, the name, its summary.
COMMAND = re.compile(r"^  ([a-z][a-z-]*)(?: {2,}.*)?$")
DEPTH_MAX = 3


def help_of(folder, words):
    """What `words --help` prints, where lines are 100 columns wide."""
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb"}
    done = subprocess.run([folder / words[0], *words[1:], "--help"], capture_output=True, text=True, timeout=30,
                          env=environment, check=False)
    if done.returncode != 0:
        raise SystemExit(f"help: `{' '.join(words)} --help` ended with {done.returncode}: {done.stderr.strip()}")
    return "\n".join(line.rstrip() for line in done.stdout.strip().split("\n"))


def subcommands(text):
    """Names of the list of commands in a help text; `help` repeats what the others say."""
    names, is_list = [], False
    for line in text.split("\n"):
        if not line.startswith(" "):
            is_list = line == "Commands:"
        elif is_list and (found := COMMAND.match(line)):
            names.append(found[1])
    return [name for name in names if name != "help"]


def pages(folder, words):
    text = help_of(folder, words)
    yield f"$ {' '.join(words)} --help\n\n{text}\n"
    if len(words) < DEPTH_MAX:
        for name in subcommands(text):
            yield from pages(folder, [*words, name])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--target", type=Path, default=ROOT / "target/debug", help="folder of the binaries")
    parser.add_argument("--write", action="store_true", help="write docs/help anew")
    arguments = parser.parse_args()
    differs = False
    for binary in BINARIES:
        path = ROOT / "docs/help" / f"{binary}.txt"
        said = ("\n" + "-" * 100 + "\n\n").join(pages(arguments.target, [binary]))
        if arguments.write:
            path.parent.mkdir(exist_ok=True)
            path.write_text(said, encoding="utf-8")
            continue
        written = path.read_text(encoding="utf-8") if path.exists() else ""
        name = path.relative_to(ROOT)
        lines = difflib.unified_diff(written.splitlines(), said.splitlines(), str(name), f"{binary} --help", lineterm="")
        for line in lines:
            differs = True
            print(line)
    if differs:
        print("help: read the differences; if they are meant, run `python3 tests/lint/help.py --write`", file=sys.stderr)
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())

"""Runs a command on a terminal of its own and passes on what it writes there: `terminal.py COMMAND...`.

The terminal has 160 columns, or as many as $TERMINAL_COLUMNS says."""
import fcntl
import os
import pty
import struct
import sys
import termios

ROWS, COLUMNS = 40, int(os.environ.get("TERMINAL_COLUMNS", "160"))


def main():
    child, terminal = pty.fork()
    if child == 0:
        fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        os.execv(sys.argv[1], sys.argv[1:])
    while True:
        try:
            written = os.read(terminal, 65536)
        except OSError:  # Linux: the other side was closed.
            break
        if not written:
            break
        os.write(1, written)
    _, status = os.waitpid(child, 0)
    sys.exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1)


if __name__ == "__main__":
    main()

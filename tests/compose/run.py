"""Starts, scales, breaks and upgrades the compose stack of each side, and compares every row.

    make test-compose                          or, after it has run once: python3 tests/compose/run.py --only secrets
    COMPOSE='docker-compose' make test-compose   with another compose program

The remote and the local side are two checkouts and two projects on networks of their own. They share what two sites share:
the bucket (a container between them), and the port of NATS that the local side publishes. Needs Docker, or root on a Debian,
where it installs and starts an engine of its own. Containers, networks and volumes are removed at the end; images and the
build cache stay for the next run.
"""
import argparse
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import images
import steps
from engine import ROOT, Engine, run, say
from world import World

# In this order: each builds on what the ones before it left.
STEPS = [
    steps.missing_values_stop_with_their_name,
    steps.archives_arrive,
    steps.credentials_do_no_more_than_they_must,
    steps.secrets_stay_secret,
    steps.workers_come_and_go_and_servers_fall,
    steps.down_and_up_repeats_nothing,
    steps.a_new_version_takes_over,
    steps.a_backup_comes_back,
    steps.three_servers_lose_one,
    steps.the_demo_shows_rows,
]


def main():
    parser = argparse.ArgumentParser(description="tries the compose stack")
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="steps whose name has this word")
    parser.add_argument("--keep", action="store_true", help="leave everything running, to look at")
    options = parser.parse_args()
    chosen = [step for step in STEPS if any(word in step.__name__ for word in options.only or [""])]
    if not chosen:
        sys.exit(f"no step of that name; there are {', '.join(step.__name__ for step in STEPS)}")
    begun = time.monotonic()
    run(sys.executable, ROOT / "tests" / "servers" / "setup.py")
    engine = Engine()
    folder = Path(tempfile.mkdtemp(prefix="marketferry-compose-"))
    # Others than this user run in the containers.
    folder.chmod(0o755)
    world, failed = None, None
    try:
        world = World(engine, folder, images.make())
        world.start()
        for step in chosen:
            at, failed = time.monotonic(), step.__name__
            step(world)
            failed = None
            say(f"ok    {step.__name__} ({time.monotonic() - at:.0f} s)")
    except (Exception, KeyboardInterrupt):
        say(f"FAILED {failed or 'to start'}")
        if world:
            world.show()
        traceback.print_exc()
        failed = failed or "start"
    finally:
        if options.keep:
            say(f"everything stays up; the sites are in {folder}")
        else:
            if world:
                world.end()
            shutil.rmtree(folder, ignore_errors=True)
            engine.stop()
    minutes = (time.monotonic() - begun) / 60
    say(f"test-compose: {'FAILED at ' + failed if failed else f'{len(chosen)} steps passed'}; {minutes:.1f} minutes")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

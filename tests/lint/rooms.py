#!/usr/bin/env python3
"""Checks the sources against order.ini: the order of crates and rooms, and which of them may name which library.

An arrow goes from the file that names an item to the file that defines the item, through re-exports. The script reports
circles of files, arrows to a higher room or crate, libraries that are named outside their place, and files that order.ini
does not name. It ignores the code of tests. Needs Python 3.9 or newer and nothing else.
"""
import argparse
import configparser
import re
import sys
import time
from collections import defaultdict, deque
from pathlib import Path

from workspace import Workspace

HERE = Path(__file__).resolve().parent
MAP_BEGIN = "<!-- The map is written by `python3 tests/lint/rooms.py --map` from tests/lint/order.ini. -->"
MAP_END = "<!-- End of the map. -->"
MAP_WIDTH = 118


class Order:
    """What order.ini says. Crates and rooms are listed from the top down: each may use what is below it."""

    def __init__(self, path):
        self.path = path
        read = configparser.ConfigParser(delimiters=("=",), interpolation=None)
        read.optionxform = str
        with open(path, encoding="utf-8") as file:
            read.read_file(file)
        self.lines = path.read_text(encoding="utf-8").splitlines()
        self.layers = [line.split() for line in read["crates"]["order"].splitlines() if line.strip()]
        self.only = {name: places.split() for name, places in read["only"].items()} if "only" in read else {}
        self.about, self.never, self.rooms, self.room_about = {}, {}, {}, {}
        for crate in self.crates():
            section = read[crate] if crate in read else {}
            self.about[crate] = " ".join(section.get("about", "").split())
            self.never[crate] = section.get("never", "").split()
            rooms = []
            for line in section.get("rooms", "").splitlines():
                if not line.strip():
                    continue
                names, _, about = line.partition(":")
                names = [name.strip() for name in names.split(",")]
                rooms.extend(names)
                self.room_about[crate, names[0]] = (names, about.strip())
            self.rooms[crate] = rooms

    def crates(self):
        return [crate for layer in self.layers for crate in layer]

    def layer(self, crate):
        for number, layer in enumerate(self.layers):
            if crate in layer:
                return number
        return None

    def line_of(self, crate, room=None):
        """`order.ini:12`, where the crate or the room is written."""
        inside = False
        for number, line in enumerate(self.lines, 1):
            if line.startswith("["):
                inside = line.strip() == f"[{crate}]"
                if inside and room is None:
                    return f"{self.path.name}:{number}"
            elif inside and line.startswith(" "):
                if room in [name.strip() for name in line.partition(":")[0].split(",")]:
                    return f"{self.path.name}:{number}"
        return self.path.name


class Violation:
    def __init__(self, kind, group, title, lines):
        self.kind = kind
        self.group = group
        self.title = title
        self.lines = lines

    def __str__(self):
        return "\n".join([f"{self.title}", *(f"    {line}" for line in self.lines)])


def components(files, targets):
    """The sets of more than one file that reach each other (Tarjan's algorithm, without recursion)."""
    index, low, on_stack, stack, found = {}, {}, set(), [], []
    for start in files:
        if start in index:
            continue
        work = [(start, iter(targets[start]))]
        index[start] = low[start] = len(index)
        stack.append(start)
        on_stack.add(start)
        while work:
            file, rest = work[-1]
            for target in rest:
                if target not in index:
                    index[target] = low[target] = len(index)
                    stack.append(target)
                    on_stack.add(target)
                    work.append((target, iter(targets[target])))
                    break
                if target in on_stack:
                    low[file] = min(low[file], index[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[file])
                if low[file] == index[file]:
                    component = set()
                    while True:
                        member = stack.pop()
                        on_stack.discard(member)
                        component.add(member)
                        if member == file:
                            break
                    if len(component) > 1:
                        found.append(component)
    return found


def shortest_circle(component, targets):
    best = None
    for start in sorted(component):
        before = {start: None}
        queue = deque([start])
        while queue:
            file = queue.popleft()
            for target in sorted(targets[file]):
                if target == start:
                    circle = [file]
                    while before[circle[-1]] is not None:
                        circle.append(before[circle[-1]])
                    circle.reverse()
                    if best is None or len(circle) < len(best):
                        best = circle
                    queue.clear()
                    break
                if target in component and target not in before:
                    before[target] = file
                    queue.append(target)
        if best and len(best) == 2:
            break
    return best


def circles(workspace, all_of_them):
    """Finds one circle in each set of files that reach each other. For `all_of_them`, then removes an arrow of each such
    circle and begins again, until no circle is left."""
    violations = []
    for crate in workspace.crates.values():
        files = sorted(file for file, name in workspace.file_crate.items() if name == crate.name)
        targets = defaultdict(set)
        for source, target in workspace.arrows:
            if workspace.file_crate[source] == workspace.file_crate[target] == crate.name:
                targets[source].add(target)
        while True:
            found = components(files, targets)
            if not found:
                break
            for component in sorted(found, key=lambda component: (len(component), sorted(component))):
                circle = shortest_circle(component, targets)
                arrows = [
                    workspace.arrows[source, target] for source, target in zip(circle, [*circle[1:], circle[0]])
                ]
                short = [file.split("/src/")[-1] for file in circle]
                title = f"circle in {crate.name}: {' → '.join([*short, short[0]])}"
                lines = []
                for arrow in arrows:
                    lines.append(str(arrow))
                    if all_of_them and len(arrow.places) > 1:
                        lines.append(f"    names in all: {', '.join(arrow.names())}")
                if len(component) > len(circle):
                    title += f" (of {len(component)} files that reach each other)"
                violations.append(Violation("circle", crate.name, title, lines))
                weakest = min(arrows, key=lambda arrow: (len(arrow.places), arrow.source))
                targets[weakest.source].discard(weakest.target)
            if not all_of_them:
                break
    return violations


def upward(workspace, order):
    violations = []
    between = defaultdict(list)
    for arrow in workspace.arrows.values():
        crate = workspace.file_crate[arrow.source]
        if crate == workspace.file_crate[arrow.target]:
            between[crate, workspace.file_room[arrow.source], workspace.file_room[arrow.target]].append(arrow)
    for (crate, source, target), arrows in sorted(between.items()):
        rooms = order.rooms.get(crate, [])
        if source not in rooms or target not in rooms or rooms.index(source) <= rooms.index(target):
            continue
        back = between.get((crate, target, source), [])
        for arrow in sorted(arrows, key=lambda arrow: arrow.source):
            lines = [f"{arrow}, which is in {arrow.target}"]
            if back:
                lines.append(f"the allowed direction: {back[0]}")
            lines.append(
                f"the order: {order.line_of(crate, target)} {target}, below it {order.line_of(crate, source)} {source}"
            )
            title = f"arrow up in {crate}: {source} → {target}"
            violations.append(Violation("arrow up", f"{crate}: {source} → {target}", title, lines))
    return violations


def between_crates(workspace, order):
    violations = []

    def judge(source, target, line):
        if source == target or target not in workspace.crates:
            return
        above, below = order.layer(source), order.layer(target)
        if above is None or below is None or above < below:
            return
        back = [
            str(arrow)
            for arrow in workspace.arrows.values()
            if workspace.file_crate[arrow.source] == target and workspace.file_crate[arrow.target] == source
        ]
        relation = "beside" if above == below else "below"
        written = f"the order: {order.path.name}, [crates]: {source} is {relation} {target}"
        lines = [line, *(f"the other direction: {arrow}" for arrow in back[:1]), written]
        violations.append(Violation("crate", source, f"crate against the order: {source} → {target}", lines))

    for crate in workspace.crates.values():
        for name, (line, text) in crate.dependencies.items():
            judge(crate.name, name, f"{workspace.short(crate.folder)}/Cargo.toml:{line}: {text}")
    for arrow in sorted(workspace.arrows.values(), key=lambda arrow: arrow.source):
        judge(
            workspace.file_crate[arrow.source],
            workspace.file_crate[arrow.target],
            f"{arrow}, which is in {arrow.target}",
        )
    return violations


def unnamed(workspace, order):
    violations = []
    for crate in workspace.crates.values():
        if order.layer(crate.name) is None:
            where = f"{workspace.short(crate.folder)}/Cargo.toml"
            violations.append(
                Violation("not in the order", crate.name, f"crate {crate.name} is not in {order.path.name}", [where])
            )
            continue
        rooms = order.rooms[crate.name]
        if not rooms:
            continue
        present = {}
        for file, name in sorted(workspace.file_crate.items()):
            if name == crate.name:
                present.setdefault(workspace.file_room[file], file)
        for room, file in present.items():
            if room not in rooms:
                violations.append(
                    Violation(
                        "not in the order",
                        crate.name,
                        f"{crate.name}: `{room}` is not among the rooms of {order.path.name}",
                        [file],
                    )
                )
        for room in rooms:
            if room not in present:
                violations.append(
                    Violation(
                        "not in the tree",
                        crate.name,
                        f"{crate.name}: {order.path.name} names the room `{room}`, which is not there",
                        [order.line_of(crate.name, room)],
                    )
                )
    for crate in order.crates():
        if crate not in workspace.crates:
            violations.append(
                Violation(
                    "not in the tree",
                    crate,
                    f"{order.path.name} names the crate `{crate}`, which is not there",
                    [order.line_of(crate)],
                )
            )
    return violations


def is_named(pattern, segments):
    """Whether the path begins with the pattern: `std::fs`, `tokio`, `aws_*`."""
    wanted = pattern.split("::")
    if len(segments) < len(wanted):
        return False
    return all(
        segment.startswith(part[:-1]) if part.endswith("*") else segment == part
        for part, segment in zip(wanted, segments)
    )


def named_elsewhere(workspace, order):
    found = defaultdict(list)  # (crate, title, file): [(line, text)]

    def judge(crate, room, file, line, segments, text):
        for pattern, places in order.only.items():
            of_crate = {place.split("/")[0] for place in places}
            # Cargo.toml has no rooms.
            allowed = crate in of_crate if room is None else crate in places or f"{crate}/{room}" in places
            if is_named(pattern, segments) and not allowed:
                found[crate, f"`{pattern}` outside {', '.join(places)}", file].append((line, text))
        for pattern in order.never.get(crate, []):
            if is_named(pattern, segments):
                found[crate, f"`{pattern}` in {crate}", file].append((line, text))

    for crate in workspace.crates.values():
        for name, (line, text) in crate.dependencies.items():
            judge(crate.name, None, f"{workspace.short(crate.folder)}/Cargo.toml", line, [name], text)
    for file, names in workspace.externals.items():
        for line, segments, text in names:
            judge(workspace.file_crate[file], workspace.file_room[file], file, line, segments, text)
    for arrow in workspace.arrows.values():
        crate, target = workspace.file_crate[arrow.source], workspace.file_crate[arrow.target]
        if crate != target:
            line, text = arrow.place()
            judge(crate, workspace.file_room[arrow.source], arrow.source, line, [target], text)
    violations = []
    for (crate, title, file), places in sorted(found.items()):
        line, text = min(places)
        more = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
        violations.append(Violation("name", crate, title, [f"{file}:{line}: {text}{more}"]))
    return violations


# The map.


def wrapped(head, text, indent):
    lines, line = [], head
    for word in text.split():
        if len(line) + 1 + len(word) > MAP_WIDTH:
            lines.append(line)
            line = " " * indent
        line += word if line.endswith("  ") or len(line) == indent else " " + word
    return [*lines, line.rstrip()]


def map_text(order):
    """The map: each crate, its rooms from the top down, and which crates use which."""
    lines = []
    width = max(len(crate) for crate in order.crates()) + 2
    for crate in order.crates():
        lines += wrapped(f"    {crate:<{width}}", order.about[crate], 4 + width)
        rows = [row for (of, _), row in order.room_about.items() if of == crate]
        column = max((len(", ".join(names)) for names, about in rows if about), default=0)
        column += 2
        for names, about in rows:
            name = ", ".join(names)
            head = f"        {name:<{column}}" if about else f"        {name}"
            lines += wrapped(head, about, 8 + column)
    # A crate that never uses the others stands in no arrow.
    layers = []
    for layer in order.layers:
        users = [crate for crate in layer if not set(order.crates()) - {crate} <= set(order.never[crate])]
        layers.extend([", ".join(users)] if users else [])
    arrows = " → ".join(layers)
    return "\n".join([MAP_BEGIN, "", *lines, "", f"    {arrows}", "", MAP_END])


def map_in(text):
    begin, end = text.find(MAP_BEGIN), text.find(MAP_END)
    return (begin, end + len(MAP_END)) if 0 <= begin < end else None


def stale_map(root, order):
    page = root / "ARCHITECTURE.md"
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    place = map_in(text)
    if place is None:
        lines = ["it needs two lines:", MAP_BEGIN, MAP_END]
        return [Violation("map", "map", "ARCHITECTURE.md has no map", lines)]
    written, right = text[place[0] : place[1]].splitlines(), map_text(order).splitlines()
    if written == right:
        return []
    number = text[: place[0]].count("\n") + 1
    for offset, (line, wanted) in enumerate(zip([*written, ""], [*right, ""])):
        if line != wanted:
            return [
                Violation(
                    "map",
                    "map",
                    "the map in ARCHITECTURE.md is stale: run `python3 tests/lint/rooms.py --map`",
                    [f"ARCHITECTURE.md:{number + offset}: {line.strip()}", f"{order.path.name} says: {wanted.strip()}"],
                )
            ]
    return []


def write_map(root, order):
    page = root / "ARCHITECTURE.md"
    text = page.read_text(encoding="utf-8")
    place = map_in(text)
    if place is None:
        sys.exit(f"rooms: error: ARCHITECTURE.md lacks the lines {MAP_BEGIN} and {MAP_END}")
    page.write_text(text[: place[0]] + map_text(order) + text[place[1] :], encoding="utf-8")


def check(root, order_file, report=False):
    order = Order(order_file)
    workspace = Workspace(root)
    violations = [
        *between_crates(workspace, order),
        *circles(workspace, report),
        *upward(workspace, order),
        *named_elsewhere(workspace, order),
        *unnamed(workspace, order),
        *stale_map(root, order),
    ]
    return workspace, violations


def print_report(violations):
    kinds = [
        ("crate", "Crates against the order"),
        ("circle", "Circles (after each, the search goes on without its arrow of the fewest lines)"),
        ("arrow up", "Arrows to a higher room"),
        ("name", "Names outside their place"),
        ("not in the order", "Files and crates that order.ini does not name"),
        ("not in the tree", "Crates and rooms of order.ini that do not exist"),
        ("map", "Map"),
    ]
    for kind, title in kinds:
        of_kind = [violation for violation in violations if violation.kind == kind]
        if not of_kind:
            continue
        groups = defaultdict(list)
        for violation in of_kind:
            groups[violation.group].append(violation)
        print(f"== {title}: {len(of_kind)}\n")
        for group, members in sorted(groups.items(), key=lambda item: item[0]):
            print(f"-- {group}: {len(members)}")
            for violation in members:
                if kind.startswith("not in"):
                    print(f"{violation.title} ({violation.lines[0]})")
                else:
                    print(violation)
            print()


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--root", type=Path, default=HERE.parent.parent, help="the workspace (default: this one)")
    options.add_argument("--order", type=Path, default=HERE / "order.ini", help="the order (default: tests/lint/order.ini)")
    options.add_argument("--report", action="store_true", help="print all circles, and all violations in groups")
    options.add_argument("--map", action="store_true", help="write the map into ARCHITECTURE.md")
    options.add_argument("--arrows", metavar="TEXT", help="print the arrows of the files whose path contains TEXT")
    chosen = options.parse_args()
    root = chosen.root.resolve()
    if chosen.map:
        write_map(root, Order(chosen.order))
        return 0
    begin = time.monotonic()
    workspace, violations = check(root, chosen.order, chosen.report)
    if chosen.arrows:
        for arrow in sorted(workspace.arrows.values(), key=lambda arrow: (arrow.source, arrow.target)):
            if chosen.arrows in arrow.source or chosen.arrows in arrow.target:
                print(f"{arrow.source} → {arrow.target}")
                for line, text in sorted(arrow.places):
                    print(f"    {line}: {text}")
        return 0
    if chosen.report:
        print_report(violations)
    else:
        for violation in violations:
            print(violation)
    files, seconds = workspace.files_read, time.monotonic() - begin
    print(
        f"rooms: {len(violations)} violations in {files} files, {len(workspace.arrows)} arrows ({seconds:.1f} s)",
        file=sys.stderr,
    )
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())

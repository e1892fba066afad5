"""The crates, modules and arrows of a workspace, as the sources say them.

An arrow goes from the file that names an item to the file that defines the item, through re-exports. Code of tests makes no
arrows. Needs Python 3.9 or newer and nothing else.
"""
import re
from collections import defaultdict

from rust import Module, Reader

# Names of methods that the standard library has too: a call does not show whose method it is.
STANDARD = set(
    """abs all any append as_bytes as_ref as_str bytes chain chars checked_add clear clone cloned cmp collect connect
    contains context copied count create default deref display drain drop entry enumerate eq err extend extension file
    filter find finish first flush fold for_each from get get_mut hash id index insert into into_inner into_iter is_empty
    iter join keys kind last len lines lock map map_err max message min name new next ok open parent parse path poll pop
    position push read recv remove replace reset resize retain rev send set shutdown size skip sleep sort spawn split
    start starts_with stop sum swap take then time to_string trim truncate unwrap update value values wait with write
    zip""".split()
)


class Crate:
    def __init__(self, name, folder):
        self.name = name
        self.folder = folder
        self.roots = []  # Module; the library first
        self.modules = []
        self.dependencies = {}  # name as written in sources: (line, text) of Cargo.toml

    @property
    def library(self):
        return self.roots[0] if self.roots and self.roots[0].name == "lib" else None


class Arrow:
    """That `source` names things of `target`. `places` says where: (line, text)."""

    def __init__(self, source, target):
        self.source = source
        self.target = target
        self.places = []

    def place(self):
        return min(self.places, key=lambda place: (not place[1].startswith(("use", "pub use")), place[0]))

    def names(self):
        """What is named, for those who move it: all but the first path segments."""
        return sorted({text.split(", ")[0].split("::")[-1].split()[-1] for _, text in self.places})

    def __str__(self):
        line, text = self.place()
        more = len({place[0] for place in self.places}) - 1
        return f"{self.source}:{line}: {text}" + (f" (and {more} more)" if more else "")


class Workspace:
    def __init__(self, root):
        self.root = root
        self.crates = {}
        self.arrows = {}  # (source file, target file): Arrow
        self.externals = defaultdict(list)  # file: [(line, segments, text)]
        self.file_crate = {}
        self.file_room = {}
        self.files_read = 0
        for member in self.members():
            self.read_crate(member)
        self.find_methods()
        for crate in self.crates.values():
            for module in crate.modules:
                self.find_arrows(module)

    # Reading.

    def members(self):
        text = (self.root / "Cargo.toml").read_text(encoding="utf-8")
        match = re.search(r"^members\s*=\s*\[(.*?)\]", text, re.DOTALL | re.MULTILINE)
        return re.findall(r'"([^"]+)"', match.group(1)) if match else []

    def read_crate(self, member):
        folder = self.root / member
        manifest = (folder / "Cargo.toml").read_text(encoding="utf-8")
        match = re.search(r'^name\s*=\s*"([^"]+)"', manifest, re.MULTILINE)
        crate = Crate(match.group(1) if match else member, folder)
        self.crates[crate.name] = crate
        table = ""
        for number, line in enumerate(manifest.splitlines(), 1):
            header = re.match(r"\[+([^\[\]]+)\]+\s*$", line)
            if header:
                table = header.group(1).strip()
                named = re.search(r"(?:^|\.)(?:build-)?dependencies\.([\w-]+)$", table)
                if named and "dev-" not in table:
                    crate.dependencies[named.group(1).replace("-", "_")] = (number, line.strip())
            elif re.search(r"(?:^|\.)(?:build-)?dependencies$", table):
                key = re.match(r"([\w-]+)", line)
                if key:
                    crate.dependencies[key.group(1).replace("-", "_")] = (number, line.strip())
        source = folder / "src"
        # The room of a root is its own name; a program of several files in src/bin is the room `bin/<name>`.
        roots = [(source / "lib.rs", "lib", source), (source / "main.rs", "main", source)]
        for program in sorted((source / "bin").glob("*")) if (source / "bin").is_dir() else []:
            if program.suffix == ".rs":
                roots.append((program, f"bin/{program.stem}", source / "bin"))
            elif (program / "main.rs").exists():
                roots.append((program / "main.rs", f"bin/{program.name}", program))
        for file, name, children in roots:
            if file.exists():
                root = Module(name, (), self.short(file), None)
                crate.roots.append(root)
                self.read_file(crate, root, file, children)

    def short(self, file):
        return file.relative_to(self.root).as_posix()

    def read_file(self, crate, module, file, children):
        """Reads the file of `module`; the files of its children lie in `children`."""
        self.files_read += 1
        name = self.short(file)
        self.file_crate[name] = crate.name
        in_room = module.path and module.root.name in ("lib", "main")
        self.file_room[name] = module.path[0] if in_room else module.root.name
        if not Reader(module, file.read_text(encoding="utf-8")).read():
            return
        pending = [(module, children)]
        while pending:
            inside, folder = pending.pop()
            crate.modules.append(inside)
            pending.extend((child, folder / child.name) for child in inside.children.values())
            for child_name, line, path_attribute in inside.declared:
                if child_name == "tests":
                    continue
                if path_attribute:
                    candidates = [(file.parent / path_attribute, folder / child_name)]
                else:
                    candidates = [
                        (folder / f"{child_name}.rs", folder / child_name),
                        (folder / child_name / "mod.rs", folder / child_name),
                    ]
                child = Module(child_name, (*inside.path, child_name), None, inside)
                for candidate, below in candidates:
                    if candidate.exists():
                        child.file = self.short(candidate)
                        inside.children[child_name] = child
                        self.read_file(crate, child, candidate, below)
                        break
                else:
                    sys.exit(f"rooms: error: {name}:{line}: the file of `mod {child_name}` is not there")

    # Resolving: each answer is ("item", module, name), ("module", module) or ("external", segments).

    def lookup(self, module, name, seen, prefer_module=False):
        """What `name` means inside `module`, or None."""
        key = (id(module), name)
        if key in seen:
            return None
        seen = seen | {key}
        child = module.children.get(name)
        if child and (prefer_module or name not in module.items):
            return ("module", child)
        if name in module.items:
            return ("item", module, name)
        for bound in module.imports:
            if bound.name == name:
                found = self.resolve(module, bound.path, seen)
                if found:
                    return found
        for bound in module.imports:
            if bound.name == "*":
                found = self.resolve(module, bound.path, seen, prefer_module=True)
                if found and found[0] == "module":
                    found = self.lookup(found[1], name, seen, prefer_module)
                    if found and found[0] != "external":
                        return found
        return None

    def resolve(self, module, path, seen=frozenset(), prefer_module=False):
        if not path:
            return ("module", module)
        first, rest = path[0], path[1:]
        if first == "::":
            return self.outside(rest, seen, prefer_module) if rest else None
        if first in ("crate", "$crate"):
            found = ("module", module.root)
        elif first == "self":
            found = ("module", module)
        elif first == "super":
            found = ("module", module.parent or module)
            while rest and rest[0] == "super":
                found, rest = ("module", found[1].parent or found[1]), rest[1:]
        elif first == "Self":
            return None
        else:
            found = self.lookup(module, first, seen, prefer_module=bool(rest) or prefer_module)
            if not found:
                return self.outside(path, seen, prefer_module)
        return self.walk(found, rest, seen, prefer_module)

    def outside(self, path, seen, prefer_module):
        crate = self.crates.get(path[0])
        if crate and crate.library:
            return self.walk(("module", crate.library), path[1:], seen, prefer_module)
        return ("external", list(path))

    def walk(self, found, rest, seen, prefer_module):
        for number, name in enumerate(rest):
            if found[0] == "external":
                return ("external", found[1] + list(rest[number:]))
            if found[0] == "item":
                return found
            last = number == len(rest) - 1
            module = found[1]
            found = self.lookup(module, name, seen, prefer_module=not last or prefer_module)
            if not found:
                # A macro may have made it. The module itself counts as its file.
                return ("item", module, name)
        return found

    # Arrows.

    def add(self, module, target, line, text):
        if target[0] == "external":
            self.externals[module.file].append((line, target[1], text))
            return
        file = target[1].file
        if file != module.file:
            arrow = self.arrows.setdefault((module.file, file), Arrow(module.file, file))
            if (line, text) not in arrow.places:
                arrow.places.append((line, text))

    def find_methods(self):
        """Finds the methods that a file adds to a type of another file. A call of such a method shows no path, so it is
        recognised by the name of the method, if no other function has that name."""
        defined = defaultdict(int)
        self.added = {}  # (file of the type, type, name): module
        by_name = {}
        for crate in self.crates.values():
            for module in crate.modules:
                for name in module.functions:
                    defined[name] += 1
                for of, name, _ in module.methods:
                    found = self.lookup(module, of, frozenset())
                    if found and found[0] == "item" and found[1].file != module.file:
                        self.added[found[1].file, of, name] = module
                        by_name[name] = module
        self.by_call = {
            name: module for name, module in by_name.items() if defined[name] == 1 and name not in STANDARD
        }

    def find_arrows(self, module):
        through = {segments[0] for segments, _ in module.paths}
        for bound in module.imports:
            found = self.resolve(module, bound.path, frozenset({(id(module), bound.name)}), bound.name == "*")
            if not found:
                continue
            if bound.name == "*" and found[0] == "module":
                self.glob_arrows(module, found[1], bound)
                continue
            if found[0] == "module" and bound.name in through:
                continue  # The paths that begin with the name make the arrows.
            # A re-export alone is no use of the child.
            if bound.public and found[0] != "external" and bound.name not in module.mentions:
                if found[1].within(module):
                    continue
            self.add(module, found, bound.line, bound.text())
        for segments, line in module.paths:
            found = self.resolve(module, segments)
            if found and found[0] == "item" and len(segments) > 1:
                by = self.added.get((found[1].file, found[2], segments[-1]))
                found = ("item", by, segments[-1]) if by else found
            if found:
                self.add(module, found, line, "::".join(segments).replace("::::", "::"))

        for name, line in module.calls:
            added_by = self.by_call.get(name)
            if added_by and added_by.root is module.root:
                text = f".{name}(), which that file adds to a type of another"
                self.add(module, ("item", added_by, name), line, text)

    def glob_arrows(self, module, target, bound):
        for name, line in sorted(module.mentions.items(), key=lambda mention: mention[1]):
            own = name in module.items or name in module.children
            if own or any(other.name == name for other in module.imports):
                continue
            found = self.lookup(target, name, frozenset({(id(module), name)}))
            if found and found[0] != "external":
                self.add(module, found, line, f"{name}, by {bound.text()}")


# Judging.

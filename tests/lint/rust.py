"""Reads Rust sources: tokens, and of each module the items, imports and paths. Skips the code of tests.

This is not a compiler. It knows names and modules but no types, so it knows only the name of a method that is called. It
reads the body of a macro as code.
"""
import re

TOKEN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<comment>//[^\n]*)
  | (?P<block>/\*)
  | (?P<raw>[bc]?r(?P<hashes>\#*)"(?s:.*?)"(?P=hashes))
  | (?P<string>[bc]?"(?:[^"\\]|\\(?s:.))*")
  | (?P<char>b?'(?:[^'\\\n]|\\(?:x[0-9a-fA-F]{2}|u\{[^}]*\}|.))')
  | (?P<lifetime>'[^\W\d]\w*)
  | (?P<name>(?:r\#)?[^\W\d]\w*)
  | (?P<number>\d\w*(?:\.\d\w*)?)
  | (?P<mark>::|->|=>|.)
    """,
    re.VERBOSE,
)
BLOCK_EDGE = re.compile(r"/\*|\*/")
ITEM_WORDS = {"fn", "struct", "enum", "union", "trait", "type", "const", "static", "mod"}
# Words with which an item begins.
BEFORE_ITEM = ITEM_WORDS | {"pub", "use", "impl", "unsafe", "async", "extern", "macro_rules"}


class Token:
    __slots__ = ("kind", "text", "line")

    def __init__(self, kind, text, line):
        self.kind = kind
        self.text = text
        self.line = line


def tokens(text, comments=False):
    """The tokens of a source; comments only if asked for."""
    found = []
    place, line = 0, 1
    while place < len(text):
        match = TOKEN.match(text, place)
        kind = match.lastgroup if match.lastgroup != "hashes" else "raw"
        end = match.end()
        if kind == "block":
            depth = 0
            for edge in BLOCK_EDGE.finditer(text, place):
                depth += 1 if edge.group() == "/*" else -1
                if depth == 0:
                    end = edge.end()
                    break
            else:
                end = len(text)
            kind = "comment"
        written = text[place:end]
        if kind == "raw":
            kind = "string"
        if kind == "name" and written.startswith("r#"):
            written = written[2:]
        if kind != "space" and (comments or kind != "comment"):
            found.append(Token(kind, written, line))
        line += text.count("\n", place, end)
        place = end
    return found


class Import:
    """One name that a `use` brings in: `path`, under `name`; `name` is `*` for all names of `path`."""

    __slots__ = ("path", "name", "line", "public")

    def __init__(self, path, name, line, public):
        self.path = path
        self.name = name
        self.line = line
        self.public = public

    def text(self):
        path = "::".join(self.path)
        if self.name == "*":
            path += "::*"
        elif self.path and self.name != self.path[-1]:
            path += " as " + self.name
        return ("pub use " if self.public else "use ") + path


class Module:
    def __init__(self, name, path, file, parent):
        self.name = name
        self.path = path
        self.file = file
        self.parent = parent
        self.children = {}
        self.declared = []  # `mod name;`: (name, line, path attribute)
        self.items = {}  # name: line
        self.imports = []
        self.paths = []  # (segments, line)
        self.functions = []  # names, those in `impl` blocks too
        self.methods = []  # (type, name, line), of `impl Type` blocks
        self.calls = []  # `.name(`: (name, line)
        self.mentions = {}  # name of a type, function or macro: the first line that has it
        self.root = parent.root if parent else self

    def within(self, other):
        return self.root is other.root and self.path[: len(other.path)] == other.path


def is_test_condition(attribute):
    """Whether the tokens of an attribute are `cfg(test)`, or `cfg(all(test, ...))`."""
    words = [token.text for token in attribute]
    if words[:2] != ["cfg", "("]:
        return False
    return "test" in words and "not" not in words and "any" not in words


class Reader:
    """Fills `module` (a file's) from the file's tokens."""

    def __init__(self, module, text):
        self.tokens = tokens(text)
        self.place = 0
        self.module = module

    def text(self, ahead=0):
        place = self.place + ahead
        return self.tokens[place].text if 0 <= place < len(self.tokens) else ""

    def kind(self, ahead=0):
        place = self.place + ahead
        return self.tokens[place].kind if 0 <= place < len(self.tokens) else ""

    def line(self):
        return self.tokens[min(self.place, len(self.tokens) - 1)].line

    def read(self):
        """Returns False if the file says of itself that it is for tests only."""
        depth = 0
        # Inline modules that are open: (the module around it, depth at which it ends).
        open_modules = []
        # Open `impl` blocks: (type, depth at which it ends).
        open_impls = []
        path_attribute = None
        while self.place < len(self.tokens):
            text = self.text()
            if text == "#" and self.text(1) in ("[", "!"):
                attribute, inner = self.attribute()
                if is_test_condition(attribute):
                    if inner and not open_modules:
                        return False
                    self.skip_item()
                elif [token.text for token in attribute[:2]] == ["path", "="]:
                    path_attribute = attribute[2].text.strip('"')
                else:
                    self.paths_of(attribute)
                continue
            if text == "{":
                depth += 1
            elif text == "}":
                depth -= 1
                if open_modules and open_modules[-1][1] == depth:
                    self.module = open_modules.pop()[0]
                if open_impls and open_impls[-1][1] == depth:
                    open_impls.pop()
            elif self.kind() != "name" and text != "::":
                pass
            elif text == "mod" and self.kind(1) == "name" and self.text(2) in (";", "{"):
                name = self.text(1)
                if self.text(2) == ";":
                    self.module.declared.append((name, self.line(), path_attribute))
                else:
                    inside = Module(name, (*self.module.path, name), self.module.file, self.module)
                    self.module.children[name] = inside
                    open_modules.append((self.module, depth))
                    self.module = inside
                    depth += 1
                path_attribute = None
                self.place += 3
                continue
            elif text == "use" and (self.kind(1) == "name" or self.text(1) in ("::", "{", "*")):
                self.use()
                continue
            elif text == "extern" and self.text(1) == "crate":
                self.place += 3
                continue
            elif text in ITEM_WORDS and self.kind(1) == "name" and self.text(1) not in ITEM_WORDS:
                at_top = depth == (open_modules[-1][1] + 1 if open_modules else 0)
                if at_top and self.text(-1) not in ("*", "&"):
                    self.module.items.setdefault(self.text(1), self.line())
                if text == "fn":
                    self.module.functions.append(self.text(1))
                if text in ("fn", "const") and open_impls and open_impls[-1][1] + 1 == depth:
                    self.module.methods.append((open_impls[-1][0], self.text(1), self.line()))
                self.place += 2
                continue
            elif text == "impl" and depth == (open_modules[-1][1] + 1 if open_modules else 0):
                of = self.implemented_type()
                if of:
                    open_impls.append((of, depth))
                self.place += 1
                continue
            elif text == "macro_rules" and self.text(1) == "!":
                self.module.items.setdefault(self.text(2), self.line())
                self.place += 3
                continue
            else:
                self.path()
                continue
            self.place += 1
        return True

    def implemented_type(self):
        """The type of the `impl Type` block that begins here; None if it implements a trait."""
        place, angles, of = self.place + 1, 0, None
        while place < len(self.tokens) and self.tokens[place].text != "{":
            token = self.tokens[place]
            if token.text == "for" and self.tokens[place + 1].text != "<":
                return None
            if token.text == "where":
                break
            angles += {"<": 1, ">": -1}.get(token.text, 0)
            if token.kind == "name" and angles == 0:
                of = token.text
            place += 1
        return of

    def attribute(self):
        inner = self.text(1) == "!"
        self.place += 3 if inner else 2
        begin, depth = self.place, 1
        while self.place < len(self.tokens):
            if self.text() == "[":
                depth += 1
            elif self.text() == "]":
                depth -= 1
                if depth == 0:
                    break
            self.place += 1
        self.place += 1
        return self.tokens[begin : self.place - 1], inner

    def paths_of(self, attribute):
        # The `]` before which they end is left where it is.
        after = self.place
        self.place = after - 1 - len(attribute)
        while self.place < after - 1:
            if self.kind() == "name" or self.text() == "::":
                self.path()
            else:
                self.place += 1
        self.place = after

    def skip_item(self):
        """Goes past the item, statement, field or arm that begins here."""
        while self.text() == "#":
            self.attribute()
        is_item = self.text() in BEFORE_ITEM
        is_use = False
        depth = 0
        while self.place < len(self.tokens):
            text = self.text()
            if depth == 0 and text == "use":
                is_use = True
            if text in ("{", "(", "["):
                depth += 1
            elif text in ("}", ")", "]"):
                if depth == 0:
                    return
                depth -= 1
                if depth == 0 and text == "}" and not is_use:
                    self.place += 1
                    return
            elif depth == 0 and (text == ";" or (text == "," and not is_item)):
                self.place += 1
                return
            self.place += 1

    def use(self):
        # `pub use`, `pub(crate) use`, `pub(in crate::a) use`.
        back = -1
        while self.text(-1) == ")" and self.text(back) not in ("(", ""):
            back -= 1
        public = "pub" in (self.text(back), self.text(back - 1))
        self.place += 1
        self.use_tree([], public)
        if self.text() == ";":
            self.place += 1

    def use_tree(self, before, public):
        path = list(before)
        if self.text() == "::":
            self.place += 1
            path.append("::")
        while self.place < len(self.tokens):
            text, line = self.text(), self.line()
            if text == "{":
                self.place += 1
                while self.text() not in ("}", ""):
                    self.use_tree(path, public)
                    if self.text() == ",":
                        self.place += 1
                self.place += 1
                return
            if text == "*":
                self.place += 1
                self.module.imports.append(Import(path, "*", line, public))
                return
            if self.kind() == "name":
                self.place += 1
                # In a group, `self` is the module before it.
                if text != "self" or not path:
                    path = [*path, text]
                if self.text() == "::":
                    self.place += 1
                    continue
                name = path[-1]
                if self.text() == "as":
                    name = self.text(1)
                    self.place += 2
                self.module.imports.append(Import(path, name, line, public))
                return
            # Not a use tree after all (a macro's pattern).
            self.place += 1
            return

    def path(self):
        begin, line = self.place, self.line()
        segments = []
        if self.text() == "::":
            # `<T>::name`, `Vec::<u8>::new`: what follows belongs to a type.
            if self.text(-1) == ">" or self.kind(1) != "name":
                self.place += 1
                while self.kind() == "name" and self.text(1) == "::":
                    self.place += 2
                if self.kind() == "name":
                    self.place += 1
                return
            segments.append("::")
            self.place += 1
        while self.kind() == "name":
            segments.append(self.text())
            self.place += 1
            if self.text() == "::" and self.kind(1) == "name":
                self.place += 1
            else:
                break
        before = self.tokens[begin - 1].text if begin else ""
        if before == "." and self.text() in ("(", "::"):
            self.module.calls.append((segments[0], line))
        if before == "." or (before == "in" and self.tokens[begin - 2].text == "("):
            return
        if len(segments) > 1:
            self.module.paths.append((segments, line))
        name = segments[0]
        if name[0].isupper() or self.text() in ("(", "!", "::", "<") or len(segments) > 1:
            self.module.mentions.setdefault(name, line)

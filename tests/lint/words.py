#!/usr/bin/env python3
"""Finds the retired words of words.ini in the names that Rust sources declare, and some of them in prose.

The script reads declarations only: items, fields, variants, parameters, variables, modules, files, and texts that are names
(of metrics, of keys). It does not read calls, so the names of a library pass. Needs Python 3.9 or newer and nothing else.
"""
import argparse
import configparser
import re
import sys
import time
from collections import defaultdict
from pathlib import Path

from rust import ITEM_WORDS, tokens

HERE = Path(__file__).resolve().parent
PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# A text that is a name: of a metric, a field of a log line, a key.
NAME_TEXT = re.compile(r'"([a-z][a-z0-9]*(?:[_.][a-z0-9]+)+)"$')


FILES = (".zip", ".txt", ".csv", ".json", ".yaml", ".leaving", ".part")
# A name of this many words is a sentence.
SENTENCE = 5


class Words:
    def __init__(self, path):
        read = configparser.ConfigParser(delimiters=("=",), interpolation=None)
        read.optionxform = str
        with open(path, encoding="utf-8") as file:
            read.read_file(file)

        def section(name):
            return dict(read[name]) if name in read else {}

        # Each form, as a tuple of words: (first form of its line, what is said instead).
        self.names = {}
        for forms, instead in section("names").items():
            for form in forms.split():
                self.names[tuple(form.split("_"))] = (forms.split()[0], instead)
        self.whole = section("whole")
        self.prose = []
        for forms, instead in section("prose").items():
            # "in hand" is one form of two words, "knock knocks" are two forms of one.
            words = [forms] if " " in forms and not forms.split()[1].startswith(forms.split()[0]) else forms.split()
            for word in words:
                self.prose.append((re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE), words[0], instead))
        self.allowed = section("allow")
        self.prose_allowed = section("allow prose")

    def in_name(self, name, kind):
        """The retired words of a name: [(word, what is said instead)]."""
        if name in self.allowed:
            return []
        if name in self.whole and kind in ("fn", "mod", "file"):
            return [(name, self.whole[name])]
        parts = [part.lower() for part in PART.findall(name)]
        if len(parts) >= SENTENCE:
            sentence = " ".join(parts)
            return [(word, instead) for pattern, word, instead in self.prose if pattern.search(sentence)]
        found = []
        for length in (1, 2):
            for place in range(len(parts) - length + 1):
                hit = self.names.get(tuple(parts[place : place + length]))
                if hit and hit not in found:
                    found.append(hit)
        return found


def declared(text):
    """The names that a source declares: [(name, line, kind)]."""
    found = []
    read = tokens(text)
    enums = []  # depth inside the braces of an open enum
    depth = 0
    for place, token in enumerate(read):
        before = read[place - 1] if place else None
        after = read[place + 1] if place + 1 < len(read) else None
        after_text = after.text if after else ""
        if token.text in ("{", "(", "["):
            depth += 1
        elif token.text in ("}", ")", "]"):
            if enums and enums[-1] == depth:
                enums.pop()
            depth -= 1
        elif token.kind == "string":
            name = NAME_TEXT.match(token.text)
            if name and not name.group(1).endswith(FILES):
                found.append((name.group(1), token.line, "text"))
        elif token.kind == "name":
            if before and before.text in ITEM_WORDS and token.text not in ITEM_WORDS:
                found.append((token.text, token.line, before.text))
                if before.text == "enum":
                    # The next `{` opens it; generics of an enum have none.
                    enums.append(depth + 1)
            elif before and before.text in ("let", "for") and token.text not in ("mut", "Some", "Ok", "Err"):
                if after_text not in ("::", "(", "{", "<"):
                    found.append((token.text, token.line, "variable"))
            elif before and before.text == "mut" and after_text in ("=", ":", ",", ")"):
                found.append((token.text, token.line, "variable"))
            elif after_text == ":" and before and before.text in ("{", ",", "(", "pub", ")", "|", "]", "mut"):
                found.append((token.text, token.line, "field"))
            elif enums and enums[-1] == depth and before.text in ("{", ",", "]"):
                if after_text in (",", "(", "{", "}", "="):
                    found.append((token.text, token.line, "variant"))
    return found


class Finding:
    def __init__(self, group, word, name, place, kind, instead):
        self.group = group
        self.word = word
        self.name = name
        self.place = place
        self.kind = kind
        self.instead = instead

    def __str__(self):
        return f"{self.place}: {self.kind} `{self.name}` has the retired word `{self.word}`: {self.instead}"


def sources(root):
    """(group, file) of all Rust sources of the workspace's crates."""
    text = (root / "Cargo.toml").read_text(encoding="utf-8")
    members = re.search(r"^members\s*=\s*\[(.*?)\]", text, re.DOTALL | re.MULTILINE)
    for member in re.findall(r'"([^"]+)"', members.group(1)):
        for file in sorted((root / member).rglob("*.rs")):
            yield member, file


def check(root, words):
    findings = []

    def prose(group, name, number, line):
        for pattern, word, instead in words.prose:
            if pattern.search(line):
                text = line.strip()
                findings.append(Finding(group, word, text[:90], f"{name}:{number}", "prose", instead))

    for group, file in sources(root):
        name = file.relative_to(root).as_posix()
        for part in name[: -len(".rs")].split("/")[1:]:
            for word, instead in words.in_name(part, "file"):
                findings.append(Finding(group, word, part, name, "file", instead))
        text = file.read_text(encoding="utf-8")
        for declaration, line, kind in declared(text):
            for word, instead in words.in_name(declaration, kind):
                findings.append(Finding(group, word, declaration, f"{name}:{line}", kind, instead))
        if name not in words.prose_allowed:
            for token in tokens(text, comments=True):
                if token.kind in ("comment", "string"):
                    for offset, line in enumerate(token.text.splitlines()):
                        prose(group, name, token.line + offset, line)
    pages = [*root.glob("*.md"), *root.glob("docs/*.md"), *(root / "nats").glob("*.md")]
    for page in sorted(pages):
        name = page.relative_to(root).as_posix()
        if name not in words.prose_allowed:
            for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
                prose("documents", name, number, line)
    return findings


def print_report(findings):
    groups = defaultdict(list)
    for finding in findings:
        groups[finding.group].append(finding)
    for group, members in groups.items():
        counts = defaultdict(int)
        for finding in members:
            counts[finding.word] += 1
        print(f"== {group}: {len(members)}")
        print("   " + ", ".join(f"{word} {count}" for word, count in sorted(counts.items(), key=lambda item: -item[1])))
        by_name = defaultdict(list)
        for finding in members:
            if finding.kind != "prose":
                by_name[finding.word, finding.name].append(finding)
        for word in sorted(counts, key=lambda word: -counts[word]):
            print(f"\n-- {group}: {word} ({next(finding.instead for finding in members if finding.word == word)})")
            for (of, name), places in sorted(by_name.items()):
                if of == word:
                    print(f"{name}")
                    for finding in places:
                        print(f"    {finding.kind:<9} {finding.place}")
            for finding in members:
                if finding.kind == "prose" and finding.word == word:
                    print(f"    prose     {finding.place}: {finding.name}")
        print()


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--root", type=Path, default=HERE.parent.parent, help="the workspace (default: this one)")
    options.add_argument("--words", type=Path, default=HERE / "words.ini", help="the list (default: tests/lint/words.ini)")
    options.add_argument("--report", action="store_true", help="print all, grouped by crate and word")
    chosen = options.parse_args()
    begin = time.monotonic()
    findings = check(chosen.root.resolve(), Words(chosen.words))
    if chosen.report:
        print_report(findings)
    else:
        for finding in findings:
            print(finding)
    print(f"words: {len(findings)} retired words ({time.monotonic() - begin:.1f} s)", file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

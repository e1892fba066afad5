"""Tests of the checks, on small workspaces in temporary folders."""
import contextlib
import io
import subprocess
import sys
import tempfile
import textwrap
import unittest
from pathlib import Path

import rooms
import rust
import words

HERE = Path(__file__).resolve().parent

ORDER = """
[crates]
order =
    worker
    queue
    base

[only]
amqp = queue
sqlx = worker/load

[worker]
about = the program
rooms =
    main: the command line
    lib: the wiring
    run: slots
    load, error: loading

[queue]
about = the queue

[base]
about = names
never = tokio std::fs
"""

CLEAN = {
    "Cargo.toml": '[workspace]\nmembers = ["worker", "queue", "base"]\n',
    "worker/Cargo.toml": """
        [package]
        name = "worker"

        [dependencies]
        base = { path = "../base" }
        queue.workspace = true
        sqlx = "1"

        [dev-dependencies]
        amqp = "1"
    """,
    "worker/src/main.rs": "use worker::run;\nfn main() { run::start() }\n",
    "worker/src/lib.rs": "pub mod run;\nmod load;\nmod error;\n",
    "worker/src/run.rs": """
        mod slots;
        pub use slots::Slots;
        use crate::load::Loader;
        pub fn start() { let _loader: Loader; }
        #[cfg(test)]
        mod tests {
            use crate::start_everything;
        }
    """,
    "worker/src/run/slots.rs": """
        use crate::error::Error;
        pub struct Slots(Error);
    """,
    "worker/src/load.rs": """
        mod insert;
        pub use insert::Loader;
    """,
    "worker/src/load/insert.rs": """
        // use crate::run::Slots; is a comment.
        use base::unit::{Unit, Period as _};
        use sqlx::{query, Row};
        pub struct Loader<'a>(&'a Unit, char);
        const TEXT: &str = "crate::run::Slots";
        const RAW: &str = r#"use "crate::run::Slots";"#;
        fn quote() -> char { '"' }
    """,
    "worker/src/error.rs": "pub struct Error;\n",
    "worker/tests/all.rs": "use amqp::Connection;\nuse worker::run;\n",
    "queue/Cargo.toml": '[package]\nname = "queue"\n[dependencies]\nbase.workspace = true\namqp = "1"\n',
    "queue/src/lib.rs": "use amqp::Connection;\nuse base::unit::Unit;\n",
    "base/Cargo.toml": '[package]\nname = "base"\n',
    "base/src/lib.rs": "pub mod unit;\n",
    "base/src/unit.rs": "pub struct Unit;\npub struct Period;\n",
    "order.ini": ORDER,
}


def plant(folder, changes):
    root = Path(folder)
    for name, text in {**CLEAN, **changes}.items():
        if text is None:
            continue
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
    if "ARCHITECTURE.md" not in changes:
        map_text = rooms.map_text(rooms.Order(root / "order.ini"))
        (root / "ARCHITECTURE.md").write_text(f"# Architecture\n\n{map_text}\n", encoding="utf-8")
    return root


class Rooms(unittest.TestCase):
    def violations(self, changes):
        with tempfile.TemporaryDirectory() as folder:
            root = plant(folder, changes)
            return [str(violation) for violation in rooms.check(root, root / "order.ini")[1]]

    def assert_one(self, changes, *lines):
        found = self.violations(changes)
        self.assertEqual(1, len(found), found)
        for line in lines:
            self.assertIn(line, found[0])

    def test_a_clean_workspace_passes(self):
        self.assertEqual([], self.violations({}))

    def test_a_circle_names_both_lines(self):
        self.assert_one(
            {
                "worker/src/run/slots.rs": "use super::permit::Permit;\npub struct Slots(Permit);\n",
                "worker/src/run/permit.rs": "pub struct Permit;\nfn of(_: crate::run::slots::Slots) {}\n",
                "worker/src/run.rs": "mod permit;\nmod slots;\npub use slots::Slots;\npub fn start() {}\n",
            },
            "circle in worker",
            "worker/src/run/slots.rs:1: use super::permit::Permit",
            "worker/src/run/permit.rs:2: crate::run::slots::Slots",
        )

    def test_a_circle_through_a_reexport_names_the_files_that_define(self):
        self.assert_one(
            {
                "worker/src/load/insert.rs": "use super::Plan;\npub struct Loader(Plan);\n",
                "worker/src/load/plan.rs": "use crate::load::Batch;\npub struct Plan(Batch);\n",
                "worker/src/load/batch.rs": "use super::insert;\npub struct Batch(insert::Loader);\n",
                "worker/src/load.rs": """
                    mod insert;
                    mod plan;
                    mod batch;
                    pub use {insert::Loader, plan::*};
                    pub use batch::Batch;
                """,
            },
            "load/batch.rs → load/insert.rs → load/plan.rs → load/batch.rs",
            "worker/src/load/insert.rs:1: use super::Plan",
            "worker/src/load/plan.rs:1: use crate::load::Batch",
            "worker/src/load/batch.rs:2: insert::Loader",
        )

    def test_a_parent_and_a_child_that_use_each_other_are_a_circle(self):
        self.assert_one(
            {
                "worker/src/run/slots.rs": "use super::*;\npub struct Slots;\nconst N: usize = limit();\n",
                "worker/src/run.rs": """
                    mod slots;
                    use slots::Slots;
                    fn limit() -> usize { 1 }
                    pub fn start() { Slots; }
                """,
            },
            "worker/src/run.rs:2: use slots::Slots",
            "worker/src/run/slots.rs:3: limit, by use super::*",
        )

    def test_a_parent_that_only_reexports_does_not_use_its_child(self):
        self.assertEqual(
            [],
            self.violations(
                {
                    "worker/src/run/slots.rs": "use super::LIMIT;\npub struct Slots([u8; LIMIT]);\n",
                    "worker/src/run.rs": """
                        mod slots;
                        pub use slots::Slots;
                        const LIMIT: usize = 1;
                        pub fn start() {}
                    """,
                }
            ),
        )

    def test_a_call_of_a_method_that_another_file_adds_is_an_arrow(self):
        self.assert_one(
            {
                "worker/src/load.rs": "mod insert;\nmod ledger;\npub use insert::Loader;\n",
                "worker/src/load/insert.rs": "pub struct Loader;\nfn go(loader: &Loader) { loader.record_all() }\n",
                "worker/src/load/ledger.rs": "use super::Loader;\nimpl Loader {\n    pub fn record_all(&self) {}\n}\n",
            },
            "worker/src/load/insert.rs:2: .record_all()",
            "worker/src/load/ledger.rs:1: use super::Loader",
        )

    def test_an_arrow_up_names_its_line_and_the_order(self):
        self.assert_one(
            {
                "worker/src/load/insert.rs": "pub struct Loader;\n\nfn full() -> crate::run::Slots { loop {} }\n",
            },
            "arrow up in worker: load → run",
            "worker/src/load/insert.rs:3: crate::run::Slots, which is in worker/src/run/slots.rs",
            "the allowed direction: worker/src/run.rs:3: use crate::load::Loader",
            "order.ini:16 run, below it order.ini:17 load",
        )

    def test_a_program_may_use_its_library_and_not_the_reverse(self):
        self.assert_one(
            {
                "worker/src/error.rs": "use crate::run::start;\npub struct Error;\n",
                "worker/src/run/slots.rs": "pub struct Slots;\n",
            },
            "arrow up in worker: error → run",
            "worker/src/error.rs:1: use crate::run::start",
        )

    def test_a_crate_against_the_order_is_found_in_sources_and_in_the_manifest(self):
        found = self.violations(
            {
                "base/Cargo.toml": '[package]\nname = "base"\n[dependencies]\nqueue = { path = "../queue" }\n',
                "base/src/unit.rs": "pub struct Unit;\npub struct Period;\nuse queue::Lease;\n",
                "queue/src/lib.rs": "use base::unit::Unit;\npub struct Lease(Unit);\n",
            }
        )
        self.assertEqual(2, len(found), found)
        self.assertIn('base/Cargo.toml:4: queue = { path = "../queue" }', found[0])
        self.assertIn("base/src/unit.rs:3: use queue::Lease", found[1])
        self.assertIn("the other direction: queue/src/lib.rs:1: use base::unit::Unit", found[1])

    def test_a_file_that_the_order_does_not_name_is_refused(self):
        self.assert_one(
            {"worker/src/lib.rs": "pub mod run;\nmod load;\nmod error;\nmod helpers;\n", "worker/src/helpers.rs": ""},
            "`helpers` is not among the rooms",
            "worker/src/helpers.rs",
        )

    def test_a_room_that_is_not_there_is_refused(self):
        self.assert_one(
            {"order.ini": ORDER.replace("    run: slots", "    run: slots\n    job: a message becomes work")},
            "names the room `job`, which is not there",
        )

    def test_a_library_outside_its_place_is_refused(self):
        self.assert_one(
            {"worker/src/error.rs": "pub struct Error(sqlx::Error);\n"},
            "`sqlx` outside worker/load",
            "worker/src/error.rs:1: sqlx::Error",
        )

    def test_a_dependency_outside_its_place_is_refused(self):
        self.assert_one(
            {"base/Cargo.toml": '[package]\nname = "base"\n[dependencies.amqp]\nversion = "1"\n'},
            "`amqp` outside queue",
            "base/Cargo.toml:3: [dependencies.amqp]",
        )

    def test_a_library_that_a_crate_never_names_is_refused(self):
        self.assert_one(
            {"base/src/unit.rs": "use std::{fmt, fs::File};\npub struct Unit(File);\npub struct Period;\n"},
            "`std::fs` in base",
            "base/src/unit.rs:1: use std::fs::File",
        )

    def test_code_for_tests_may_use_anything(self):
        self.assertEqual(
            [],
            self.violations(
                {
                    "worker/src/error.rs": """
                        #[cfg(test)]
                        mod tests;
                        pub struct Error;
                        #[cfg(test)]
                        use amqp::Connection;
                        #[cfg(test)]
                        pub(crate) fn planted() -> crate::run::Slots { loop {} }
                        impl Error {
                            #[cfg(test)]
                            fn of(_: amqp::Connection) -> [u8; 2] { [1, 2] }
                        }
                    """,
                    "worker/src/error/tests.rs": "use crate::run::Slots;\n",
                }
            ),
        )

    def test_a_stale_map_names_both_lines_and_is_written_anew(self):
        with tempfile.TemporaryDirectory() as folder:
            root = plant(folder, {})
            page = root / "ARCHITECTURE.md"
            right = page.read_text(encoding="utf-8")
            page.write_text(right.replace("the queue", "a queue"), encoding="utf-8")
            found = rooms.check(root, root / "order.ini")[1]
            self.assertEqual(1, len(found))
            number = right.splitlines().index("    queue   the queue") + 1
            self.assertIn(f"ARCHITECTURE.md:{number}: queue   a queue", str(found[0]))
            self.assertIn("order.ini says: queue   the queue", str(found[0]))
            rooms.write_map(root, rooms.Order(root / "order.ini"))
            self.assertEqual(right, page.read_text(encoding="utf-8"))

    def test_the_script_exits_with_1_on_a_violation(self):
        with tempfile.TemporaryDirectory() as folder:
            root = plant(folder, {"worker/src/error.rs": "pub struct Error(sqlx::Error);\n"})
            for changed, code in ((False, 1), (True, 0)):
                if changed:
                    (root / "worker/src/error.rs").write_text("pub struct Error;\n", encoding="utf-8")
                done = subprocess.run(
                    [sys.executable, HERE / "rooms.py", "--root", root, "--order", root / "order.ini"],
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                )
                self.assertEqual(code, done.returncode, done.stdout + done.stderr)

    def test_the_report_has_all_circles_of_one_component(self):
        with tempfile.TemporaryDirectory() as folder:
            root = plant(
                folder,
                {
                    "worker/src/load.rs": "mod a;\nmod b;\nmod insert;\npub use insert::Loader;\n",
                    "worker/src/load/insert.rs": "use super::a::A;\nuse super::b::B;\npub struct Loader(A, B);\n",
                    "worker/src/load/a.rs": "use super::insert::Loader;\npub struct A(Loader);\n",
                    "worker/src/load/b.rs": "use super::insert::Loader;\npub struct B(Loader);\n",
                },
            )
            found = rooms.check(root, root / "order.ini", report=True)[1]
            self.assertEqual(2, len(found))
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                rooms.print_report(found)
            self.assertIn("-- worker: 2", printed.getvalue())


WORDS = """
[names]
look looks = check
in_hand = in flight

[whole]
again = retry

[prose]
clerk clerks = the noun of what it does
in hand = in flight

[allow]
look_ahead = the term of parsers

[allow prose]
NEWS.md = is history
"""


class Words(unittest.TestCase):
    def findings(self, source, changes=None, name="base/src/unit.rs"):
        with tempfile.TemporaryDirectory() as folder:
            root = plant(folder, {name: source, "words.ini": WORDS, **(changes or {})})
            return [str(finding) for finding in words.check(root, words.Words(root / "words.ini"))]

    def assert_one(self, source, *parts, **more):
        found = self.findings(source, **more)
        self.assertEqual(1, len(found), found)
        for part in parts:
            self.assertIn(part, found[0])

    def test_a_clean_workspace_passes(self):
        self.assertEqual([], self.findings("pub fn lookup() { outlook.look(); Look::of() }\n"))

    def test_every_kind_of_declaration_is_read(self):
        for source, kind in (
            ("fn look_at() {}", "fn `look_at`"),
            ("struct EarlyLook;", "struct `EarlyLook`"),
            ("enum Step {\n Check,\n Look(u8) }", "unit.rs:3: variant `Look`"),
            ("struct S { pub look: u8 }", "field `look`"),
            ("fn f(looks: u8) {}", "field `looks`"),
            ("const LOOKS_MAX: u8 = 1;", "const `LOOKS_MAX`"),
            ("fn f() { let mut look = 1; }", "variable `look`"),
            ("fn f() { for look in 0..2 {} }", "variable `look`"),
            ('const A: &str = "jobs_in_hand";', "text `jobs_in_hand`"),
            ("struct HttpLookDone;", "struct `HttpLookDone`"),
            ("struct InHand;", "the retired word `in_hand`: in flight"),
        ):
            with self.subTest(source):
                self.assert_one(source, kind)

    def test_a_file_name_is_read(self):
        self.assert_one("", "file `looks`", name="base/src/looks.rs")

    def test_an_allowed_name_passes(self):
        self.assertEqual([], self.findings("fn look_ahead() {}\n"))

    def test_an_adverb_is_retired_only_as_a_whole_name(self):
        self.assert_one("fn again() {}\nfn try_again() { let again = 1; }", "unit.rs:1: fn `again`")

    def test_a_sentence_is_judged_like_prose(self):
        self.assertEqual([], self.findings("fn a_second_look_finds_nothing_new() {}"))
        self.assert_one("fn a_clerk_is_asked_at_most_once() {}", "the retired word `clerk`")

    def test_prose_is_read_in_comments_texts_and_documents(self):
        self.assert_one("/* one\n two in hand */", "base/src/unit.rs:2: prose")
        self.assert_one('const A: &str = "ask the clerk";', "base/src/unit.rs:1: prose")
        self.assert_one("", "README.md:2: prose", changes={"README.md": "a\nClerks work.\n"})
        self.assertEqual([], self.findings("", changes={"NEWS.md": "a clerk\n"}))


class Tokens(unittest.TestCase):
    def test_what_is_no_code_is_no_name(self):
        source = """fn f<'a>(x: &'a str) -> char { /* a /* b */ c */ // d
            let y = (b"e", 'g', '\\'', '\\u{1F600}', r##"h"#i"##, "j\\"k", br"l"); r#type }"""
        names = [token.text for token in rust.tokens(source) if token.kind == "name"]
        self.assertEqual(["fn", "f", "x", "str", "char", "let", "y", "type"], names)

    def test_lines_are_counted_through_texts_and_comments(self):
        source = '"a\nb"\n/* c\n */ d\nr#"\n"# e'
        self.assertEqual([("d", 4), ("e", 6)], [(t.text, t.line) for t in rust.tokens(source) if t.kind == "name"])


if __name__ == "__main__":
    unittest.main()

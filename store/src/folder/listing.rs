//! Keys in their order out of a tree, a page at a time, in memory that does not depend on how many there are.

use std::collections::BTreeSet;
use std::io;

use cap_std::fs::Dir;

use crate::interface::Page;
use crate::path::{self, TEMPORARY};

const KEYS_MAX: usize = 1_000;

/// The first keys behind `after` that begin with `prefix`.
///
/// A folder is read once for each [`KEYS_MAX`] of its entries, and again for each page, which keeps of it only the
/// entries that come next.
pub(super) fn page(root: &Dir, prefix: &str, after: &str) -> io::Result<Page> {
    // One more than a page says whether there is another.
    let mut walk = Walk { prefix, after: after.to_owned(), keys: Vec::new(), keys_max: KEYS_MAX + 1 };
    walk.folder(root, "")?;
    let mut keys = walk.keys;
    let more = keys.len() > KEYS_MAX;
    keys.truncate(KEYS_MAX);
    Ok(Page { next: keys.last().filter(|_| more).cloned(), keys })
}

struct Walk<'p> {
    prefix: &'p str,
    /// Everything up to here is done: a key, or a folder with its slash and all below it.
    after: String,
    keys: Vec<String>,
    keys_max: usize,
}

impl Walk<'_> {
    fn folder(&mut self, folder: &Dir, base: &str) -> io::Result<()> {
        let mut done = None;
        loop {
            let entries = self.next_entries(folder, base, done.as_deref())?;
            let last = entries.len() < KEYS_MAX;
            for entry in entries {
                if let Some(name) = entry.strip_suffix('/') {
                    let name = &name[base.len()..];
                    match folder.open_dir(name) {
                        Ok(below) => self.folder(&below, &entry)?,
                        // Gone since it was listed.
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        Err(error) => return Err(error),
                    }
                } else {
                    self.keys.push(entry.clone());
                }
                if self.keys.len() >= self.keys_max {
                    return Ok(());
                }
                done = Some(entry);
            }
            if last {
                return Ok(());
            }
        }
    }

    /// The next entries of a folder by full key, folders with a slash: so they sort as the keys below them do.
    fn next_entries(&self, folder: &Dir, base: &str, done: Option<&str>) -> io::Result<BTreeSet<String>> {
        let mut entries = BTreeSet::new();
        for entry in folder.read_dir(".")? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| !name.starts_with(TEMPORARY)) else { continue };
            let is_folder = kind.is_dir();
            if !is_folder && !kind.is_file() {
                continue;
            }
            let full = format!("{base}{name}{}", if is_folder { "/" } else { "" });
            if done.is_some_and(|done| full.as_str() <= done) || !self.is_listed(&full, is_folder) {
                continue;
            }
            entries.insert(full);
            if entries.len() > KEYS_MAX {
                entries.pop_last();
            }
        }
        Ok(entries)
    }

    fn is_listed(&self, full: &str, is_folder: bool) -> bool {
        if is_folder {
            let overlaps = full.starts_with(self.prefix) || self.prefix.starts_with(full);
            overlaps && (full > self.after.as_str() || self.after.starts_with(full))
        } else {
            full.starts_with(self.prefix) && full > self.after.as_str() && path::check(full).is_ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use cap_std::ambient_authority;

    use super::*;

    fn all(root: &Dir, prefix: &str) -> Vec<String> {
        let (mut keys, mut after) = (Vec::new(), String::new());
        loop {
            let page = page(root, prefix, &after).expect("a page");
            assert!(page.keys.len() <= KEYS_MAX);
            keys.extend(page.keys);
            match page.next {
                Some(next) => after = next,
                None => return keys,
            }
        }
    }

    #[test]
    fn keys_come_in_the_order_of_a_bucket() {
        let dir = tempfile::tempdir().expect("a folder");
        // A dot sorts before a slash, and a dash before both: a folder's name alone would sort wrongly.
        let mut written =
            vec!["a.zip".to_owned(), "a-b/x".into(), "a/x".into(), "a/b/c".into(), "a0".into(), "ä/ü".into()];
        written.extend((0..2_500).map(|n| format!("many/{n}")));
        written.extend((0..1_200).map(|n| format!("deep/{n}/file")));
        for key in &written {
            let path = dir.path().join(key);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            std::fs::write(path, "").expect("written");
        }
        // Folders without a file hold nothing up, and neither do temporaries and links.
        (0..1_100).for_each(|n| std::fs::create_dir_all(dir.path().join(format!("empty/{n}"))).expect("made"));
        std::fs::write(dir.path().join(format!("a/{TEMPORARY}1")), "").expect("written");
        std::os::unix::fs::symlink(".", dir.path().join("loop")).expect("linked");
        written.sort();

        let root = Dir::open_ambient_dir(dir.path(), ambient_authority()).expect("opens");
        assert_eq!(all(&root, ""), written);
        for prefix in ["a", "a/", "many/1", "deep/", "nothing/", "ä"] {
            let expected: Vec<&String> = written.iter().filter(|key| key.starts_with(prefix)).collect();
            assert_eq!(all(&root, prefix).iter().collect::<Vec<_>>(), expected, "{prefix}");
        }
    }
}

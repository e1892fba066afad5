//! What the file system says happened. A hint where to look and nothing more: events get lost, and some file systems
//! send none; the rescan finds whatever they did not tell.

#[cfg(target_os = "linux")]
mod inotify;
#[cfg(not(target_os = "linux"))]
mod none;

#[cfg(target_os = "linux")]
pub(crate) use self::inotify::{Events, Folders};
#[cfg(not(target_os = "linux"))]
pub(crate) use self::none::{Events, Folders};

use common::unit::Unit;

use crate::local::{layout, marks};

/// Where to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hint {
    /// The `.CHECKSUM` of an archive of it, or its mark.
    Unit(Unit),
    /// An archive of it. One that came by a rename is whole.
    Archive { unit: Unit, path: String, moved: bool },
    /// An archive is being written; there will be another hint when it is closed.
    Written { path: String },
    /// Something that holds archives.
    Everything,
    /// Events were lost.
    Lost,
}

/// What happened to an entry of a folder, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// Made, or closed by who wrote to it.
    File,
    Written,
    Moved,
    Folder,
}

/// `folder` is below `data_dir`, empty for `data_dir` itself.
fn hint(folder: &str, name: &str, change: Change) -> Option<Hint> {
    if folder.is_empty() {
        return match marks::parse(name) {
            Some(unit) => Some(Hint::Unit(unit)),
            None => (name == "data").then_some(Hint::Everything),
        };
    }
    match (layout::unit_of(folder, name), change) {
        (Some(_), Change::Written) => {
            name.ends_with(".zip").then(|| Hint::Written { path: format!("{folder}/{name}") })
        }
        (Some(unit), _) if !name.ends_with(".zip") => Some(Hint::Unit(unit)),
        (Some(unit), change) => {
            Some(Hint::Archive { unit, path: format!("{folder}/{name}"), moved: change == Change::Moved })
        }
        // A folder that comes as a link is not told from a file: the rescan finds it.
        (None, Change::Folder) => Some(Hint::Everything),
        (None, Change::File | Change::Written | Change::Moved) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_where_to_look() {
        let leaf = "data/spot/daily/klines/BTCUSDT/1h";
        let unit: Unit = "binance/spot/klines/1h/2026-02-14".parse().expect("a unit");
        let check = |folder: &str, name: &str, change, expected: Option<Hint>| {
            assert_eq!(hint(folder, name, change), expected, "{folder} {name}");
        };
        for (change, moved) in [(Change::File, false), (Change::Moved, true)] {
            let (unit, path) = (unit.clone(), format!("{leaf}/BTCUSDT-1h-2026-02-14.zip"));
            check(leaf, "BTCUSDT-1h-2026-02-14.zip", change, Some(Hint::Archive { unit, path, moved }));
        }
        let path = format!("{leaf}/BTCUSDT-1h-2026-02-14.zip");
        check(leaf, "BTCUSDT-1h-2026-02-14.zip", Change::Written, Some(Hint::Written { path }));
        check(leaf, "BTCUSDT-1h-2026-02-14.zip.CHECKSUM", Change::Written, None);
        check(leaf, "BTCUSDT-1h-2026-02-14.zip.CHECKSUM", Change::File, Some(Hint::Unit(unit.clone())));
        check(leaf, ".BTCUSDT-1h-2026-02-14.zip.x7Jq", Change::File, None);
        check("", "_SUCCESS__2026-02-14__spot__1h", Change::File, Some(Hint::Unit(unit)));
        check("", "data", Change::Folder, Some(Hint::Everything));
        check("", "lost+found", Change::Folder, None);
        check("data/spot/daily/klines", "ETHUSDT", Change::Folder, Some(Hint::Everything));
    }
}

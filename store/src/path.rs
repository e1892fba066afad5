//! Keys as paths below a folder. Keys come from markers, and markers from anybody who may write to the stream.

use common::object_key::KEY_BYTES_MAX;
use common::text::is_seen;

/// What the name of a file that is still being written begins with. No key has such a name, and no listing shows it.
pub(crate) const TEMPORARY: &str = ".ferry-tmp-";

/// Whether a key is a plain path that stays below the folder it is joined to.
///
/// # Errors
/// Says what is wrong with it.
pub(crate) fn check(key: &str) -> Result<(), &'static str> {
    if key.len() > KEY_BYTES_MAX {
        return Err("the key is longer than 1,024 bytes");
    }
    if key.chars().any(|c| !is_seen(c) || c == '\\') {
        return Err("the key has a character that is not seen as itself, or a backslash");
    }
    if key.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return Err("the key has an empty, '.' or '..' segment");
    }
    if key.split('/').any(|segment| segment.starts_with(TEMPORARY)) {
        return Err("the key is that of a temporary file");
    }
    Ok(())
}

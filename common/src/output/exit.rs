//! Exit codes: users' scripts read them. The table, with examples, is in `docs/CLI.md`.

/// Everything was done.
pub const DONE: u8 = 0;
/// Some of the work failed; stderr says what.
pub const SOME_FAILED: u8 = 1;
/// Wrong usage or configuration.
pub const USAGE: u8 = 2;
/// A server could not be reached.
pub const UNREACHABLE: u8 = 3;
/// A check found differences, filters match nothing, or a stream, consumer or table is not there.
pub const DIFFERENCES: u8 = 4;
/// Whoever read stdout has closed it: what a shell shows of a program that SIGPIPE ended.
pub const CLOSED_PIPE: u8 = 141;

/// The code of a command whose parts ended with these: what kept a part from being looked at outranks what was found.
pub fn worst(codes: impl IntoIterator<Item = u8>) -> u8 {
    const BY_WEIGHT: [u8; 5] = [DONE, DIFFERENCES, SOME_FAILED, UNREACHABLE, USAGE];
    let weight = |code: &u8| BY_WEIGHT.iter().position(|known| known == code);
    codes.into_iter().max_by_key(weight).unwrap_or(DONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_looked_at_outranks_what_was_found() {
        assert_eq!(worst([]), DONE);
        assert_eq!(worst([DONE, DIFFERENCES]), DIFFERENCES);
        assert_eq!(worst([DIFFERENCES, SOME_FAILED, DONE]), SOME_FAILED);
        assert_eq!(worst([DIFFERENCES, UNREACHABLE, SOME_FAILED]), UNREACHABLE);
    }
}

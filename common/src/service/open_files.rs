//! The limit on open files: many systems start processes with a soft limit of 1,024, far below the hard one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard one. To be called when a process starts.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Where a system does not allow that, the limit stays as it is; `doctor` says when it is too low.
    let _raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// How many files and connections this process may have open; `u64::MAX` where there is no limit.
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        raise_limit();
        assert_eq!(limit(), getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX));
    }
}

//! Settings that statements carry, because the account's profile would answer otherwise.

/// What a statement says beside its text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overrides {
    pub queries: Vec<(&'static str, &'static str)>,
    pub inserts: Vec<(&'static str, &'static str)>,
}

//! What several commands share: what they begin with, and checks of their arguments.

pub(crate) mod context;

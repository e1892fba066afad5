//! The tree on disk: layout, marks, walk, completeness, events.

pub(crate) mod arrivals;
pub(crate) mod check;
pub(crate) mod complete;
pub(crate) mod events;
pub(crate) mod layout;
pub(crate) mod marks;
pub(crate) mod scan;
pub(crate) mod seen;
pub(crate) mod signs;
pub(crate) mod spelling;
pub(crate) mod staged_delete;
pub(crate) mod strays;
pub(crate) mod tree;

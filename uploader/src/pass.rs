//! One pass: the units that need work, one after the other.

pub(crate) mod candidate;
pub(crate) mod memory;
pub(crate) mod older;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod scope;

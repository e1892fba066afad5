//! One unit: what it needs, what is published of it, what is cleaned up.

pub(crate) mod cleanup;
pub(crate) mod previous;
pub(crate) mod process;
pub(crate) mod publish;

//! Archives into the bucket: compared, sent, recognised.

pub(crate) mod compare;
pub(crate) mod foreign;
pub(crate) mod multipart;
pub(crate) mod upload;

//! Archives from the bucket.

pub(crate) mod fetcher;

//! The exchange's archives as zip files: one member of the archive's own name, whole, and nothing else in the file.
//!
//! Both sites read archives with it, so that what the uploader announces is what a worker can open. It opens no file
//! itself: the bytes come from a [`Source`]. It panics on no input. What the text in a member means is not known here.

mod source;

mod directory;
mod member;

mod fault;

pub use fault::{ArchiveFault, printable, printable_name};
pub use member::Archive;
pub use source::Source;

//! The zip file around an archive: one member of the archive's own name, whole, and nothing else in the file.

mod member;

mod directory;

mod source;

mod fault;

pub use fault::{ArchiveFault, printable, printable_name};
pub use member::Archive;
pub use source::Source;

//! Where the objects are: put, head, get, list. One interface, [`ObjectStore`], whatever keeps them.
//!
//! - `s3`: a bucket. Only this crate names S3 types. `s3::retry` asks a server again.
//! - `folder`: a folder that both sites can open.
//! - `data_dir` and `rsync`: the two ends of a store that is the remote site's data_dir itself. The uploader's end has
//!   the archives already and writes manifests beside them; the puller's end only fetches.
//!
//! Above each of them: the limit of the [`bandwidth`], [`parts`] of large objects, `current.json` and manifests as they are
//! read, and the checks of `doctor`.
//!
//! Refused here: what is inside an archive, and the queue.

pub mod doctor;
mod rehearsal;

mod manifests;
mod multipart;
mod object_store;

mod data_dir;
mod folder;
mod path;
mod rsync;

mod s3;

pub mod bandwidth;
mod error;
mod interface;
pub mod parts;

pub use error::{StoreError, StoreErrorKind};
pub use interface::{Details, End, Given, Over, Page, Put, Stored};
pub use manifests::{CurrentFile, ManifestFile};
pub use object_store::{Download, ObjectStore};
pub use rehearsal::{Probe, Unfit};

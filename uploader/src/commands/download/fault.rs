//! Why an archive was not fetched; what follows from it is decided by whoever holds it.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::time::Duration;

use common::checksum::Sha256Sum;
use common::text::chain;
use reqwest::StatusCode;

#[derive(Debug, thiserror::Error)]
pub(crate) enum DownloadFault {
    #[error("the exchange cannot be reached: {0}")]
    Unreachable(String),
    #[error("the exchange's certificate is not accepted, or it speaks no TLS: {0}")]
    Untrusted(String),
    #[error("the exchange answered {status}{}", asks(.retry_after.as_ref()))]
    Busy { status: StatusCode, retry_after: Option<Duration> },
    #[error("the transfer broke off: {0}")]
    Cut(String),
    #[error("the exchange refuses it with {status}")]
    Refused { status: StatusCode },
    #[error("the exchange's answer cannot be used: {0}")]
    Odd(String),
    #[error("{what} has more than {bytes_max} bytes, which is not taken")]
    TooLarge { what: &'static str, bytes_max: u64 },
    #[error("is published without its .CHECKSUM; it is taken once a run finds that too")]
    NoChecksum,
    #[error("has a .CHECKSUM at the exchange that cannot be used: {0}; the next run asks again")]
    BadChecksum(String),
    #[error(
        "does not match its .CHECKSUM at the exchange: it has sha256 {actual}, the file says {stated}; not taken, the next run asks again"
    )]
    Mismatch { actual: Sha256Sum, stated: Sha256Sum },
    #[error("another process is fetching it")]
    Locked,
    #[error("cannot be written, the disk of local.data_dir is full: {0}; make room and run it again")]
    DiskFull(io::Error),
    #[error("cannot be written or read below local.data_dir: {0}")]
    Disk(io::Error),
    #[error("stopped by a signal")]
    Stopped,
}

fn asks(retry_after: Option<&Duration>) -> String {
    retry_after.map(|after| format!(" and asks to come back in {} s", after.as_secs())).unwrap_or_default()
}

impl From<io::Error> for DownloadFault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // A limit on the size of files is as full as a disk can be.
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Self::DiskFull(error),
            _ => Self::Disk(error),
        }
    }
}

impl DownloadFault {
    pub(crate) fn from_transfer(error: reqwest::Error) -> Self {
        // The address is known from the line this ends up in.
        let error = error.without_url();
        let text = chain(&error);
        if is_of_tls(&error) {
            Self::Untrusted(text)
        } else if error.is_connect() {
            Self::Unreachable(text)
        } else if error.is_redirect() || error.is_builder() {
            Self::Odd(text)
        } else {
            Self::Cut(text)
        }
    }

    /// Whether other archives would fare no better.
    pub(crate) fn is_of_all(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Untrusted(_))
    }

    /// Whether they would probably fare no better, if many in a row fail like this.
    pub(crate) fn is_the_servers(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Cut(_) | Self::Refused { .. })
    }
}

/// Waiting does not mend a certificate.
fn is_of_tls(error: &(dyn Error + 'static)) -> bool {
    // An I/O error shows the causes of what it wraps, and not that itself.
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    error.is::<rustls::Error>()
        || wrapped.is_some_and(|error| is_of_tls(error))
        || error.source().is_some_and(is_of_tls)
}

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunFault {
    #[error("local.data_dir: {} cannot be written: {why}; check the mount and that this user may write there", dir.display())]
    DataDir { dir: PathBuf, why: io::Error },
    #[error("{base}: {fault}; check download.base_url and the network")]
    Exchange { base: String, fault: DownloadFault },
    #[error("the symbols of {folder} cannot be listed: {fault}; check download.list_url, or name the symbols")]
    List { folder: String, fault: DownloadFault },
    #[error("stopped by a signal")]
    Stopped,
}

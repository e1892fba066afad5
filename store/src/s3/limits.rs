//! Names and limits that every request to a bucket shares.

use std::time::Duration;

/// User metadata that carries an object's sha256 (`x-amz-meta-sha256`).
pub(super) const SHA256: &str = "sha256";
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest silence of the server, also between two chunks of a body.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest silence while a body goes out. A reply comes only after all of it arrived, and the system's buffers may still
/// have a good deal to send on a slow link when we have none left.
pub(super) const UPLOAD_SILENCE: Duration = Duration::from_secs(120);

/// Whether an object is encrypted with a key of its own, by what the server says of its encryption and of the customer's
/// key. The ETag is no MD5 then. With the server's one key (`AES256`) it is.
pub(super) fn is_encrypted(encryption: Option<&str>, customer_algorithm: Option<&str>) -> bool {
    encryption.is_some_and(|encryption| encryption.starts_with("aws:kms")) || customer_algorithm.is_some()
}

//! `nats.limits`: how many bytes each stream may take.

use super::reader::Reader;

/// Bytes of each stream. The server sets them aside when the stream is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamLimits {
    pub markers: u64,
    pub replays: u64,
    pub dead: u64,
    pub advisories: u64,
    pub tasks: u64,
}

impl StreamLimits {
    pub(super) fn read(r: &mut Reader) -> Self {
        let mut size = |name: &str, default: u64| {
            let key = format!("nats.limits.{name}");
            let bytes = r.bytes(&key, default);
            if bytes == 0 || i64::try_from(bytes).is_err() {
                r.problem(&key, "must be a size such as 512MiB; no stream is without a limit");
            }
            bytes
        };
        Self {
            markers: size("markers", 2 << 30),
            replays: size("replays", 512 << 20),
            dead: size("dead", 512 << 20),
            advisories: size("advisories", 32 << 20),
            tasks: size("tasks", 128 << 20),
        }
    }
}

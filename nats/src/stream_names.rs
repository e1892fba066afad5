//! The streams of the queue, and what makes space in them.

pub(crate) const MARKERS: &str = "MARKERS";
pub(crate) const REPLAYS: &str = "REPLAYS";
pub(crate) const DEAD: &str = "DEAD";
pub(crate) const ADVISORIES: &str = "ADVISORIES";
pub(crate) const TASKS: &str = "TASKS";
pub(crate) const SWEEPER: &str = "sweeper";
/// All of them.
pub const STREAMS: [&str; 5] = [MARKERS, REPLAYS, DEAD, ADVISORIES, TASKS];

/// What makes space in a stream.
pub(crate) fn relief_of(stream: &str) -> &'static str {
    match stream {
        MARKERS => "raise nats.limits.markers and run `puller migrate`; markers never leave it by themselves",
        REPLAYS => {
            "wait until workers have loaded what is there (`puller tasks ls`), or raise nats.limits.replays and run \
             `puller migrate`"
        }
        DEAD => "retry or discard some (`puller dead ls`), or raise nats.limits.dead and run `puller migrate`",
        ADVISORIES => "raise nats.limits.advisories and run `puller migrate`",
        _ => "raise nats.limits.tasks and run `puller migrate`",
    }
}

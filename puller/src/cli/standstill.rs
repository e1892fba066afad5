//! Whether workers take anything out of the stream of replays, for commands that wait until there is space in it.

use std::time::{Duration, Instant};

use common::output::Failure;
use nats::Bus;

/// How long a full stream of replays may stand still before the rest is not sent.
const SPACE_WAIT: Duration = Duration::from_secs(30);
pub(crate) const POLL: Duration = Duration::from_millis(500);

/// Whether workers take anything out of the stream of replays.
#[derive(Default)]
pub(crate) struct Standstill(Option<(u64, Instant)>);

impl Standstill {
    /// Whether that has lasted too long; otherwise returns after a pause, for another try.
    pub(crate) async fn is_over(&mut self, bus: &Bus) -> Result<bool, Failure> {
        let first = bus.replays_state().await?.map_or(0, |state| state.first_sequence);
        match self.0 {
            Some((known, since)) if known == first && since.elapsed() > SPACE_WAIT => return Ok(true),
            Some((known, _)) if known == first => {}
            _ => self.0 = Some((first, Instant::now())),
        }
        tokio::time::sleep(POLL).await;
        Ok(false)
    }
}

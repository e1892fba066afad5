//! The time by the server's clock.

use async_nats::jetstream::response::Response;
use jiff::Timestamp;
use serde::Deserialize;

use crate::connection::{Bus, BusError, BusErrorKind};
use crate::stream_names::MARKERS;

#[derive(Deserialize)]
struct Stamped {
    ts: Option<Timestamp>,
}

impl Bus {
    /// The time as the server that leads the stream has it; `None` where it does not tell. The client has a time-out for
    /// requests.
    ///
    /// # Errors
    /// Nobody answers, or this login may not ask about the stream.
    pub async fn server_time(&self) -> Result<Option<Timestamp>, BusError> {
        // Not by async-nats, whose description of a stream leaves the time of the answer out.
        let asked = self.context.request(format!("STREAM.INFO.{MARKERS}"), &()).await;
        match asked.map_err(|error| BusError::unavailable("asking for the time", &error))? {
            Response::Ok(Stamped { ts }) => Ok(ts),
            Response::Err { error } => {
                Err(BusError::plain(BusErrorKind::Missing, "asking for the time", error.to_string()))
            }
        }
    }
}

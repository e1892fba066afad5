//! A durable consumer as the server has it.

use async_nats::jetstream::consumer::{self};

use super::definitions::is_gone;
use crate::connection::{Bus, BusError};

impl Bus {
    /// The settings of a consumer of whatever kind; `None` when it is not there.
    pub(super) async fn consumer_config(&self, stream: &str, name: &str) -> Result<Option<consumer::Config>, BusError> {
        Ok(self.consumer_info(stream, name).await?.map(|info| info.config))
    }

    pub(super) async fn consumer_info(&self, stream: &str, name: &str) -> Result<Option<consumer::Info>, BusError> {
        use async_nats::jetstream::response::Response;
        let doing = || format!("consumer {name} of stream {stream}");
        let answer = self.context.request(format!("CONSUMER.INFO.{stream}.{name}"), &serde_json::json!({})).await;
        match answer.map_err(|error| BusError::unavailable(doing(), &error))? {
            Response::Ok(info) => Ok(Some(info)),
            Response::Err { error } if is_gone(&error) => Ok(None),
            Response::Err { error } => Err(BusError::unavailable(doing(), &error)),
        }
    }
}

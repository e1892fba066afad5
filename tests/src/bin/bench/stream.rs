//! A hand on the stream of one account, for what the product's own commands do not do at this pace.

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, pull},
    stream::Stream,
};
use futures::{StreamExt, future::try_join_all};
use tests::{Context, Result, servers::Account};
use tokio::runtime::Runtime;

const MARKERS: &str = "MARKERS";
/// Publications whose acknowledgement is awaited together.
const PUBLISHED_AT_ONCE: usize = 500;

pub(crate) struct Markers {
    runtime: Runtime,
    jetstream: jetstream::Context,
    stream: Stream,
}

/// Subject and payload.
pub(crate) type Message = (String, Vec<u8>);

impl Markers {
    /// The stream is there when the product has made it.
    pub(crate) fn open(account: &Account) -> Result<Markers> {
        let runtime = Runtime::new().context("a runtime")?;
        let (jetstream, stream) = runtime.block_on(async {
            let (user, password) = (account.user.clone(), account.password.clone());
            let options = async_nats::ConnectOptions::with_user_and_password(user, password);
            let client = options.connect(&account.url).await.context("connecting to NATS")?;
            let jetstream = jetstream::new(client);
            let stream = jetstream.get_stream(MARKERS).await.context(MARKERS)?;
            Result::Ok((jetstream, stream))
        })?;
        Ok(Markers { runtime, jetstream, stream })
    }

    /// All messages, oldest first, which are then no longer in it.
    pub(crate) fn read_messages(&self, count: usize) -> Result<Vec<Message>> {
        let reader = pull::Config { ack_policy: AckPolicy::None, ..pull::Config::default() };
        self.runtime.block_on(async {
            let consumer = self.stream.create_consumer(reader).await.context("a consumer")?;
            let mut messages = consumer.messages().await.context("reading the stream")?.take(count);
            let mut read = Vec::new();
            while let Some(message) = messages.next().await {
                let message = message.context("reading the stream")?;
                read.push((message.subject.to_string(), message.payload.to_vec()));
            }
            self.stream.purge().await.context("purging the stream")?;
            Ok(read)
        })
    }

    /// Returns the time the server stamped it with, in ns since 1970.
    pub(crate) fn publish(&self, (subject, payload): Message) -> Result<i128> {
        self.runtime.block_on(async {
            let sent = self.jetstream.publish(subject, payload.into()).await.context("publishing")?;
            let stored = sent.await.context("publishing")?;
            let message = self.stream.get_raw_message(stored.sequence).await.context("reading a marker back")?;
            Ok(message.time.unix_timestamp_nanos())
        })
    }

    pub(crate) fn publish_all(&self, messages: Vec<Message>) -> Result<()> {
        self.runtime.block_on(async {
            let mut messages = messages.into_iter().peekable();
            while messages.peek().is_some() {
                let mut sent = Vec::new();
                for (subject, payload) in messages.by_ref().take(PUBLISHED_AT_ONCE) {
                    let sending = self.jetstream.publish(subject, payload.into()).await.context("publishing")?;
                    sent.push(sending.into_future());
                }
                try_join_all(sent).await.context("publishing")?;
            }
            Ok(())
        })
    }
}

//! Objects and markers made by hand, for what no uploader of ours would ever send.

use std::future::IntoFuture;
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use futures::StreamExt;
use serde_json::{Value, json};
use tests::data::{ArchiveSpec, sha256};
use tests::project::Project;
use tests::servers::Stack;
use tests::{Context, Failure, Result};
use tokio::runtime::Runtime;

/// A hand on the bucket and on the stream of one project.
pub(crate) struct Handmade<'p> {
    pub(crate) project: &'p Project,
    runtime: Runtime,
    s3: aws_sdk_s3::Client,
    bucket: String,
}

/// A dead letter as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct DeadLetter {
    pub(crate) subject: String,
    pub(crate) class: String,
    pub(crate) error: String,
    pub(crate) payload: Vec<u8>,
}

/// An archive in the bucket, and what a marker says of it.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) key: String,
    pub(crate) symbol: String,
    pub(crate) size: usize,
    pub(crate) sha256: String,
}

impl Placed {
    pub(crate) fn of(project: &Project, spec: &ArchiveSpec, bytes: &[u8]) -> Self {
        Self {
            key: format!("{}/{}", project.prefix(), spec.path()),
            symbol: spec.symbol().to_owned(),
            size: bytes.len(),
            sha256: sha256(bytes),
        }
    }
}

impl<'p> Handmade<'p> {
    /// Streams, consumers and tables are made first, as an operator would.
    pub(crate) fn new(stack: &Stack, project: &'p Project) -> Result<Self> {
        project.puller(&["migrate"])?.expect_code(0)?;
        let runtime = Runtime::new().context("a runtime")?;
        Ok(Self { project, runtime, s3: stack.s3.client(), bucket: stack.s3.bucket().to_owned() })
    }

    pub(crate) fn put(&self, key: &str, bytes: &[u8]) -> Result<()> {
        let put = self.s3.put_object().bucket(&self.bucket).key(key).body(ByteStream::from(bytes.to_vec()));
        self.runtime.block_on(put.send()).map(drop).context(key)
    }

    pub(crate) fn delete(&self, key: &str) -> Result<()> {
        let deleted = self.s3.delete_object().bucket(&self.bucket).key(key).send();
        self.runtime.block_on(deleted).map(drop).context(key)
    }

    pub(crate) fn get(&self, key: &str) -> Result<Vec<u8>> {
        self.runtime.block_on(async {
            let got = self.s3.get_object().bucket(&self.bucket).key(key).send().await.context(key)?;
            Ok(got.body.collect().await.context(key)?.to_vec())
        })
    }

    /// The ETag of an object, and the sha256 in its metadata.
    pub(crate) fn head(&self, key: &str) -> Result<(String, String)> {
        let head = self.s3.head_object().bucket(&self.bucket).key(key).send();
        let head = self.runtime.block_on(head).context(key)?;
        let sha256 = head.metadata().and_then(|metadata| metadata.get("sha256")).cloned();
        Ok((head.e_tag().unwrap_or_default().trim_matches('"').to_owned(), sha256.unwrap_or_default()))
    }

    /// All keys of the project.
    pub(crate) fn keys(&self) -> Result<Vec<String>> {
        let list = self.s3.list_objects_v2().bucket(&self.bucket).prefix(format!("{}/", self.project.prefix()));
        let mut pages = list.into_paginator().send();
        self.runtime.block_on(async {
            let mut keys = Vec::new();
            while let Some(page) = pages.next().await {
                let page = page.context("a listing")?;
                keys.extend(page.contents().iter().filter_map(|object| object.key().map(str::to_owned)));
            }
            Ok(keys)
        })
    }

    pub(crate) fn delete_stream(&self, name: &str) -> Result<()> {
        self.runtime.block_on(async { self.jetstream().await?.delete_stream(name).await.map(drop).context(name) })
    }

    pub(crate) fn purge_stream(&self, name: &str) -> Result<()> {
        self.runtime.block_on(async {
            let stream = self.jetstream().await?.get_stream(name).await.context(name)?;
            stream.purge().await.map(drop).context(name)
        })
    }

    /// Puts an archive where its specification says, whatever the bytes are.
    pub(crate) fn place(&self, spec: &ArchiveSpec, bytes: &[u8]) -> Result<Placed> {
        let placed = Placed::of(self.project, spec, bytes);
        self.put(&placed.key, bytes)?;
        Ok(placed)
    }

    /// A marker for these objects, as the format's description says.
    pub(crate) fn marker(&self, unit: &str, objects: &[Placed]) -> Value {
        let parts: Vec<&str> = unit.split('/').collect();
        let list: Vec<Value> = objects
            .iter()
            .map(|object| {
                json!({
                    "key": object.key, "symbol": object.symbol, "size": object.size, "sha256": object.sha256,
                    "generated_at": "2025-06-01T00:00:00Z",
                })
            })
            .collect();
        json!({
            "schema": "marketferry.marker/1",
            "id": "00000000-0000-5000-8000-000000000000",
            "exchange": parts[0], "market": parts[1], "dataset": parts[2], "interval": parts[3], "period": parts[4],
            "revision": revision(objects),
            "bucket": self.bucket,
            "objects": list,
            "published_at": "2025-06-01T00:10:00Z",
            "uploader": "by-hand",
        })
    }

    /// Publishes on the unit's backfill subject and waits for the ack.
    pub(crate) fn publish(&self, unit: &str, payload: &[u8]) -> Result<()> {
        self.publish_on(&format!("marker.backfill.{}", unit.replace('/', ".")), payload)
    }

    pub(crate) fn publish_marker(&self, unit: &str, objects: &[Placed]) -> Result<()> {
        self.publish(unit, self.marker(unit, objects).to_string().as_bytes())
    }

    /// Puts an archive into the bucket, and announces it as generated at this time.
    pub(crate) fn publish_generated_at(&self, spec: &ArchiveSpec, time: &str) -> Result<()> {
        let mut marker = self.marker(&spec.unit(), &[self.place(spec, &spec.zip())?]);
        marker["objects"][0]["generated_at"] = time.into();
        self.publish(&spec.unit(), marker.to_string().as_bytes())
    }

    /// The messages of the stream MARKERS: subject and payload, oldest first.
    pub(crate) fn markers(&self) -> Result<Vec<(String, Value)>> {
        let messages = self.messages("MARKERS")?;
        messages
            .into_iter()
            .map(|message| {
                let marker = serde_json::from_slice(&message.payload).context(message.subject.as_str())?;
                Ok((message.subject.to_string(), marker))
            })
            .collect()
    }

    pub(crate) fn dead_letters(&self) -> Result<Vec<DeadLetter>> {
        let messages = self.messages("DEAD")?;
        let letter = |message: async_nats::Message| {
            let headers = message.headers.clone().unwrap_or_default();
            let header = |name: &str| headers.get(name).map(ToString::to_string).unwrap_or_default();
            DeadLetter {
                class: header("Ferry-Class"),
                error: header("Ferry-Error"),
                subject: message.subject.to_string(),
                payload: message.payload.to_vec(),
            }
        };
        Ok(messages.into_iter().map(letter).collect())
    }

    /// Makes the server give a message up after so many deliveries.
    pub(crate) fn limit_deliveries(&self, consumer: &str, count: i64) -> Result<()> {
        use async_nats::jetstream::consumer::{PullConsumer, pull};
        self.runtime.block_on(async {
            let jetstream = self.jetstream().await?;
            let found: PullConsumer =
                jetstream.get_consumer_from_stream(consumer, "MARKERS").await.context("a consumer")?;
            let found = &found.cached_info().config;
            let limited = pull::Config {
                durable_name: found.durable_name.clone(),
                ack_policy: found.ack_policy,
                ack_wait: found.ack_wait,
                max_ack_pending: found.max_ack_pending,
                filter_subject: found.filter_subject.clone(),
                filter_subjects: found.filter_subjects.clone(),
                max_deliver: count,
                ..Default::default()
            };
            jetstream.create_consumer_on_stream(limited, "MARKERS").await.map(drop).context("a limit on deliveries")
        })
    }

    /// Takes a message from a durable consumer and hands it back at once, again and again: a crash loop.
    pub(crate) fn spend_deliveries(&self, consumer: &str, count: i64) -> Result<()> {
        use async_nats::jetstream::{AckKind, consumer::PullConsumer};
        self.runtime.block_on(async {
            let jetstream = self.jetstream().await?;
            let consumer: PullConsumer =
                jetstream.get_consumer_from_stream(consumer, "MARKERS").await.context("a consumer")?;
            for delivery in 1..=count {
                let batch = consumer.batch().max_messages(1).expires(Duration::from_secs(10));
                let mut batch = batch.messages().await.context("a pull")?;
                let message = batch.next().await.ok_or_else(|| Failure::new("nothing is delivered"))?;
                let message = message.context("a message")?;
                assert_eq!(message.info().context("its info")?.delivered, delivery);
                message.double_ack_with(AckKind::Nak(None)).await.context("a nak")?;
            }
            Ok(())
        })
    }

    /// Takes messages from a durable consumer as a worker would, and does nothing with them.
    pub(crate) fn hold(&self, consumer: &str, count: usize) -> Result<Vec<async_nats::jetstream::Message>> {
        use async_nats::jetstream::consumer::PullConsumer;
        self.runtime.block_on(async {
            let jetstream = self.jetstream().await?;
            let found: PullConsumer =
                jetstream.get_consumer_from_stream(consumer, "MARKERS").await.context("a consumer")?;
            let mut messages = Vec::new();
            while messages.len() < count {
                let pull = found.batch().max_messages((count - messages.len()).min(500));
                let mut batch = pull.expires(Duration::from_secs(3)).messages().await.context("a pull")?;
                let before = messages.len();
                while let Some(message) = batch.next().await {
                    messages.push(message.context("a message")?);
                }
                if messages.len() == before {
                    return Err(Failure::new(format!("{} of {count} messages are delivered", messages.len())));
                }
            }
            Ok(messages)
        })
    }

    /// Has messages delivered again after this time.
    pub(crate) fn nak(&self, messages: &[async_nats::jetstream::Message], delay: Duration) -> Result<()> {
        self.runtime.block_on(async {
            for message in messages {
                let nak = async_nats::jetstream::AckKind::Nak(Some(delay));
                message.ack_with(nak).await.context("a nak")?;
            }
            match messages.last() {
                Some(last) => last.context.client().flush().await.context("the naks"),
                None => Ok(()),
            }
        })
    }

    /// What the server says of a durable consumer of MARKERS.
    pub(crate) fn consumer(&self, name: &str) -> Result<async_nats::jetstream::consumer::Info> {
        use async_nats::jetstream::consumer::PullConsumer;
        self.runtime.block_on(async {
            let jetstream = self.jetstream().await?;
            let found: PullConsumer = jetstream.get_consumer_from_stream(name, "MARKERS").await.context(name)?;
            Ok(found.cached_info().clone())
        })
    }

    /// Limits how many messages a durable consumer may have delivered and not acked.
    pub(crate) fn limit_pending(&self, name: &str, max: i64) -> Result<()> {
        use async_nats::jetstream::consumer::{FromConsumer, PullConsumer, pull};
        self.runtime.block_on(async {
            let jetstream = self.jetstream().await?;
            let found: PullConsumer = jetstream.get_consumer_from_stream(name, "MARKERS").await.context(name)?;
            let mut config = found.cached_info().config.clone();
            config.max_ack_pending = max;
            let config = pull::Config::try_from_consumer_config(config).context(name)?;
            jetstream.create_consumer_on_stream(config, "MARKERS").await.map(drop).context(name)
        })
    }

    /// Publishes what the server says when the deliveries of a marker ran out.
    pub(crate) fn advise(&self, consumer: &str, sequence: u64) -> Result<()> {
        let subject = format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.MARKERS.{consumer}");
        let advisory = json!({ "stream": "MARKERS", "consumer": consumer, "stream_seq": sequence, "deliveries": 25 });
        self.publish_on(&subject, advisory.to_string().as_bytes())
    }

    /// How many advisories are acked, once none is left.
    pub(crate) fn swept(&self) -> Result<Option<u64>> {
        use async_nats::jetstream::consumer::PullConsumer;
        self.runtime.block_on(async {
            let jetstream = self.jetstream().await?;
            let consumer: PullConsumer =
                jetstream.get_consumer_from_stream("sweeper", "ADVISORIES").await.context("the sweeper")?;
            let info = consumer.cached_info();
            let idle = info.num_pending == 0 && info.num_ack_pending == 0;
            Ok(idle.then_some(info.ack_floor.consumer_sequence))
        })
    }

    /// Stores a dead letter as somebody else might, headers and all.
    pub(crate) fn store_letter(&self, subject: &str, payload: &[u8], headers: &[(&str, &str)]) -> Result<()> {
        let mut map = async_nats::HeaderMap::new();
        headers.iter().for_each(|(name, value)| map.insert(*name, *value));
        self.runtime.block_on(async {
            let jetstream = self.jetstream().await?;
            let (subject, payload) = (subject.to_owned(), payload.to_vec());
            let stored = jetstream.publish_with_headers(subject, map, payload.into()).await.context("a letter")?;
            stored.await.map(drop).context("a letter")
        })
    }

    /// Answers everybody who asks for the workers of a destination, as long as this value lives.
    pub(crate) fn answer_presence(&self, destination: &str, state: &Value) -> Result<()> {
        let (subject, answer) = (format!("ferry.workers.{destination}"), state.to_string());
        let client = self.runtime.block_on(self.connect())?;
        let mut asked = self.runtime.block_on(client.subscribe(subject)).context("the question of presence")?;
        self.runtime.block_on(client.flush()).context("the question of presence")?;
        self.runtime.spawn(async move {
            while let Some(question) = asked.next().await {
                if let Some(reply) = question.reply {
                    client.publish(reply, answer.clone().into()).await.expect("an answer");
                }
            }
        });
        Ok(())
    }

    /// Makes it impossible to delete dead letters, for good.
    pub(crate) fn forbid_deleting_letters(&self) -> Result<()> {
        self.runtime.block_on(async {
            let jetstream = self.jetstream().await?;
            let mut config = jetstream.get_stream("DEAD").await.context("DEAD")?.cached_info().config.clone();
            config.deny_delete = true;
            jetstream.update_stream(config).await.map(drop).context("DEAD")
        })
    }

    /// The same on many subjects, without waiting for each.
    pub(crate) fn publish_all(&self, subjects: &[String], payload: &[u8]) -> Result<()> {
        self.runtime.block_on(async {
            let jetstream = self.jetstream().await?;
            for subjects in subjects.chunks(500) {
                let mut acks = Vec::new();
                for subject in subjects {
                    let ack = jetstream.publish(subject.clone(), payload.to_vec().into()).await.context(subject)?;
                    acks.push(ack.into_future());
                }
                for ack in acks {
                    ack.await.context("an ack")?;
                }
            }
            Ok(())
        })
    }

    /// Publishes on any subject that a stream has, and waits for the ack.
    pub(crate) fn publish_on(&self, subject: &str, payload: &[u8]) -> Result<()> {
        self.runtime.block_on(async {
            let jetstream = self.jetstream().await?;
            let ack = jetstream.publish(subject.to_owned(), payload.to_vec().into()).await.context(subject)?;
            ack.await.map(drop).context(subject)
        })
    }

    fn messages(&self, stream: &str) -> Result<Vec<async_nats::Message>> {
        use async_nats::jetstream::consumer::{AckPolicy, pull};
        self.runtime.block_on(async {
            let jetstream = self.jetstream().await?;
            let stream = jetstream.get_stream(stream).await.context(stream)?;
            let count = usize::try_from(stream.cached_info().state.messages).context("a count")?;
            let reader = pull::Config { ack_policy: AckPolicy::None, ..Default::default() };
            let consumer = stream.create_consumer(reader).await.context("a consumer")?;
            let mut batch = consumer.fetch().max_messages(count.max(1)).messages().await.context("messages")?;
            let mut messages = Vec::new();
            while let Some(message) = batch.next().await {
                messages.push(message.context("a message")?.message);
            }
            // One may have come since they were counted.
            assert!(messages.len() >= count, "{} of {count} messages", messages.len());
            Ok(messages)
        })
    }

    /// Does something to the streams by the library.
    pub(crate) fn act<T>(&self, act: impl AsyncFnOnce(async_nats::jetstream::Context) -> Result<T>) -> Result<T> {
        self.runtime.block_on(async { act(self.jetstream().await?).await })
    }

    /// Changes the settings of a stream, as an operator would by the `nats` tool.
    pub(crate) fn change_stream(
        &self,
        name: &str,
        change: impl FnOnce(&mut async_nats::jetstream::stream::Config),
    ) -> Result<()> {
        self.act(async |jetstream| {
            let mut config = jetstream.get_stream(name).await.context(name)?.cached_info().config.clone();
            change(&mut config);
            jetstream.update_stream(config).await.map(drop).context(name)
        })
    }

    /// Deletes a stream and makes it with other settings.
    pub(crate) fn remake_stream(
        &self,
        name: &str,
        change: impl FnOnce(&mut async_nats::jetstream::stream::Config),
    ) -> Result<()> {
        self.act(async |jetstream| {
            let mut config = jetstream.get_stream(name).await.context(name)?.cached_info().config.clone();
            config.metadata.clear();
            change(&mut config);
            jetstream.delete_stream(name).await.context(name)?;
            jetstream.create_stream(config).await.map(drop).context(name)
        })
    }

    pub(crate) fn stream_config(&self, name: &str) -> Result<async_nats::jetstream::stream::Config> {
        self.act(async |jetstream| Ok(jetstream.get_stream(name).await.context(name)?.cached_info().config.clone()))
    }

    /// How many messages a stream has.
    pub(crate) fn count(&self, stream: &str) -> Result<u64> {
        self.act(async |jetstream| Ok(jetstream.get_stream(stream).await.context(stream)?.cached_info().state.messages))
    }

    async fn jetstream(&self) -> Result<async_nats::jetstream::Context> {
        Ok(async_nats::jetstream::new(self.connect().await?))
    }

    async fn connect(&self) -> Result<async_nats::Client> {
        let account = self.project.account();
        let options =
            async_nats::ConnectOptions::with_user_and_password(account.user.clone(), account.password.clone());
        options.connect(&account.url).await.context("NATS")
    }
}

/// Hex sha256 over the sorted lines `<key>\t<size>\t<sha256>\n`.
pub(crate) fn revision(objects: &[Placed]) -> String {
    let mut lines: Vec<String> = objects.iter().map(|o| format!("{}\t{}\t{}\n", o.key, o.size, o.sha256)).collect();
    lines.sort();
    sha256(lines.concat().as_bytes())
}

//! The key of one role in a thief's hands: requests whose replies go where the role may not publish.
//!
//! JetStream answers on the reply subject of a request as the server itself, without asking whether its sender may
//! publish there; some answers are empty, as requests to delete are. So every kind of request of every role is sent with every
//! reply subject that could do harm, and afterwards streams and consumers must be what they were.

use std::time::Duration;

use async_nats::HeaderMap;
use futures::StreamExt;
use serde_json::{Value, json};
use tests::{Context, Failure, Result};

use crate::permissions::{Hand, Site, UNIT};

const STREAMS: [&str; 5] = ["MARKERS", "REPLAYS", "DEAD", "ADVISORIES", "TASKS"];
const CONSUMERS: [(&str, &str); 5] = [
    ("MARKERS", "ingest-primary"),
    ("MARKERS", "backfill-primary"),
    ("MARKERS", "ingest-backup"),
    ("REPLAYS", "replay-primary"),
    ("ADVISORIES", "sweeper"),
];
/// A marker that the uploader's thief stored for what a server makes of it when it passes it on.
const POISON: &str = "marker.ready.binance.spot.klines.1h.2025-01-01";
const EMPTY: &str = "marker.ready.binance.spot.klines.1h.2025-01-02";
/// A subject without a message.
const ABSENT: &str = "marker.ready.binance.spot.klines.1h.2024-01-01";

/// A request of a role, so made that it changes nothing itself.
struct Request {
    subject: String,
    payload: &'static str,
    headers: Vec<(&'static str, &'static str)>,
}

fn request(subject: impl Into<String>, payload: &'static str) -> Request {
    Request { subject: subject.into(), payload, headers: Vec::new() }
}

/// A publish that the stream refuses, and answers.
fn refused(subject: impl Into<String>) -> Request {
    Request { headers: vec![("Nats-Expected-Stream", "NONE")], ..request(subject, "") }
}

/// What the role may ask; `delivery` is the reply subject of a delivery that the worker holds.
fn requests(role: &str, delivery: &str) -> Vec<Request> {
    let api = |rest: &str, payload| request(format!("$JS.API.{rest}"), payload);
    let infos = ["STREAM.INFO.NONE", "CONSUMER.INFO.ADVISORIES.sweeper", "CONSUMER.INFO.MARKERS.reader-1"];
    let mut requests: Vec<Request> = infos.into_iter().map(|rest| api(rest, "")).collect();
    requests.extend(STREAMS.iter().map(|stream| api(&format!("STREAM.INFO.{stream}"), "{\"subjects_filter\":\">\"}")));
    match role {
        "uploader" => {
            for subject in [ABSENT, POISON, EMPTY] {
                requests.push(api(&format!("DIRECT.GET.MARKERS.{subject}"), ""));
            }
            requests.push(api("STREAM.MSG.GET.MARKERS", "{\"seq\":999999}"));
            requests.push(api("CONSUMER.MSG.NEXT.MARKERS.reader-1", "{\"no_wait\":true,\"batch\":10}"));
            requests.push(api("CONSUMER.RESET.MARKERS.reader-1", "{\"seq\":1}"));
            requests.push(api("CONSUMER.RESET.MARKERS.reader-1", ""));
            requests.push(refused(format!("marker.ready.{UNIT}")));
            requests.push(refused(format!("marker.backfill.{UNIT}")));
        }
        "worker" => {
            for durable in
                ["MARKERS.ingest-primary", "MARKERS.backfill-primary", "REPLAYS.replay-primary", "ADVISORIES.sweeper"]
            {
                requests.push(api(&format!("CONSUMER.MSG.NEXT.{durable}"), "{\"no_wait\":true}"));
                requests.push(api(&format!("CONSUMER.MSG.NEXT.{durable}"), "{\"batch\":1,\"expires\":1000000}"));
            }
            requests.push(api("CONSUMER.INFO.MARKERS.ingest-primary", ""));
            requests.push(api("CONSUMER.INFO.REPLAYS.replay-primary", ""));
            requests.push(api("CONSUMER.NAMES.MARKERS", ""));
            requests.push(api("CONSUMER.NAMES.REPLAYS", ""));
            requests.push(api("DIRECT.GET.MARKERS", "{\"seq\":999999}"));
            requests.push(api("DIRECT.GET.REPLAYS", "{\"seq\":999999}"));
            requests.push(api("STREAM.MSG.GET.REPLAYS", "{\"seq\":999999}"));
            requests.push(api(
                "DIRECT.GET.MARKERS",
                "{\"last_by_subj\":\"marker.ready.binance.spot.klines.1h.2025-01-01\"}",
            ));
            requests.push(api(
                "DIRECT.GET.MARKERS",
                "{\"last_by_subj\":\"marker.ready.binance.spot.klines.1h.2025-01-02\"}",
            ));
            requests.push(api("DIRECT.GET.TASKS.task.none", ""));
            requests.push(api("STREAM.MSG.GET.MARKERS", "{\"seq\":999999}"));
            // The confirmation of an extension has no body.
            requests.push(request(delivery, "+WPI"));
            requests.push(refused(format!("dead.primary.{UNIT}")));
            requests.push(refused(format!("task.t1.{UNIT}")));
        }
        "monitor" | "operator" => {
            for rest in ["INFO", "STREAM.NAMES", "STREAM.LIST", "CONSUMER.NAMES.MARKERS", "CONSUMER.LIST.MARKERS"] {
                requests.push(api(rest, ""));
            }
            requests.push(api("CONSUMER.INFO.MARKERS.none", ""));
            requests.push(api("DIRECT.GET.MARKERS", "{\"seq\":999999}"));
            requests.push(api(
                "DIRECT.GET.MARKERS",
                "{\"last_by_subj\":\"marker.ready.binance.spot.klines.1h.2025-01-01\"}",
            ));
            requests.push(api(
                "DIRECT.GET.MARKERS",
                "{\"last_by_subj\":\"marker.ready.binance.spot.klines.1h.2025-01-02\"}",
            ));
            requests.push(request("ferry.workers.primary", ""));
            requests.push(request("ferry.workers.nobody", ""));
        }
        _ => {}
    }
    if ["operator", "worker"].contains(&role) {
        requests.push(api("DIRECT.GET.DEAD", "{\"seq\":999999}"));
        requests.push(api("STREAM.MSG.DELETE.DEAD", "{\"seq\":999999}"));
    }
    if role == "operator" {
        requests.push(api("STREAM.MSG.GET.DEAD", "{\"seq\":999999}"));
        requests.push(api("STREAM.CREATE.NONE", "{}"));
        requests.push(api("CONSUMER.CREATE.MARKERS.none", "{}"));
        requests.push(api("CONSUMER.MSG.NEXT.MARKERS.reader-1", "{\"no_wait\":true}"));
        requests.push(refused(format!("marker.replay.primary.{UNIT}")));
        requests.push(refused("task.t1"));
    }
    requests
}

/// Reply subjects that could do harm, but for those that the role may publish on anyhow.
fn replies(role: &str) -> Vec<String> {
    let mut replies: Vec<String> = Vec::new();
    let mut api = |rest: String| replies.extend(["", "INGEST."].map(|prefix| format!("{prefix}$JS.API.{rest}")));
    for stream in STREAMS {
        for verb in ["DELETE", "PURGE", "SNAPSHOT", "RESTORE", "MSG.DELETE", "LEADER.STEPDOWN"] {
            // Deleting a dead letter is work of these two.
            if !["operator", "worker"].contains(&role) || (verb, stream) != ("MSG.DELETE", "DEAD") {
                api(format!("STREAM.{verb}.{stream}"));
            }
        }
        if role != "operator" {
            ["CREATE", "UPDATE"].iter().for_each(|verb| api(format!("STREAM.{verb}.{stream}")));
        }
    }
    for (stream, consumer) in CONSUMERS {
        let mut verbs = vec!["UNPIN", "RESET", "LEADER.STEPDOWN"];
        if role != "operator" {
            verbs.extend(["DELETE", "CREATE", "PAUSE"]);
        }
        verbs.iter().for_each(|verb| api(format!("CONSUMER.{verb}.{stream}.{consumer}")));
    }
    api("CONSUMER.MSG.NEXT.MARKERS.ingest-backup".into());
    let advisory = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.MARKERS.ingest-primary";
    let backup = ["$JS.ACK.MARKERS.ingest-backup.1.1.1.1.1", "$JS.ACK.d.h.MARKERS.ingest-backup.1.1.1.1.1.x"];
    replies.extend([advisory, "$SYS.REQ.SERVER.PING", "_R_.x", "_GR_.x.y.z"].map(String::from));
    replies.extend(backup.map(String::from));
    replies.push(format!("dead.backup.{UNIT}"));
    replies.push(format!("marker.replay.backup.{UNIT}"));
    if role != "uploader" {
        replies.extend([format!("marker.ready.{UNIT}"), format!("marker.backfill.{UNIT}"), POISON.to_owned()]);
        // As an upload in many parts names them, which the server answers in another way.
        replies.push(format!("marker.ready.{UNIT}.10.ok.1.0.$FI"));
    }
    if role != "operator" {
        replies.push("task.t1".to_owned());
    }
    if role != "worker" {
        replies.push("$JS.ACK.MARKERS.ingest-primary.1.1.1.1.1".to_owned());
    }
    replies
}

/// Sends a request with the reply subject and more headers than its own.
fn attack(hand: &Hand, request: &Request, reply: &str, headers: &[(&'static str, &str)]) -> Result<()> {
    let mut all = HeaderMap::new();
    for (name, value) in request.headers.iter().chain(headers) {
        all.insert(*name, *value);
    }
    let (subject, reply) = (request.subject.clone(), reply.to_owned());
    let sent = hand.client.publish_with_reply_and_headers(subject, reply, all, request.payload.into());
    hand.runtime.block_on(sent).context(&request.subject)
}

/// Waits until the server has everything, and JetStream has had time to act on it.
fn wait_for_server(hand: &Hand) -> Result<()> {
    hand.runtime.block_on(hand.client.flush()).context("flushing")?;
    std::thread::sleep(Duration::from_secs(1));
    Ok(())
}

fn ask(hand: &Hand, subject: &str, payload: &Value) -> Result<Value> {
    let payload = if payload.is_null() { String::new() } else { payload.to_string() };
    let answer = hand.runtime.block_on(hand.client.request(subject.to_owned(), payload.into())).context(subject)?;
    serde_json::from_slice(&answer.payload).context(subject)
}

/// Takes one delivery; returns the subject on which it is acknowledged.
fn pull(hand: &Hand, durable: &str) -> Result<String> {
    let subject = format!("$JS.API.CONSUMER.MSG.NEXT.MARKERS.{durable}");
    hand.runtime.block_on(async {
        let inbox = hand.client.new_inbox();
        let mut answers = hand.client.subscribe(inbox.clone()).await.context("subscribing")?;
        let payload = "{\"batch\":1,\"expires\":5000000000}".into();
        hand.client.publish_with_reply(subject, inbox, payload).await.context(durable)?;
        let answer = tokio::time::timeout(Duration::from_secs(10), answers.next()).await.context(durable)?;
        let reply = answer.and_then(|answer| answer.reply);
        reply.map(|reply| reply.to_string()).ok_or_else(|| Failure::new(format!("nothing came from {durable}")))
    })
}

/// Streams and consumers as the operator sees them, without what reading them changes.
fn state(operator: &Hand) -> Result<Vec<String>> {
    let mut state = Vec::new();
    let mut streams = ask(operator, "$JS.API.STREAM.LIST", &Value::Null)?["streams"].take();
    for stream in streams.as_array_mut().ok_or_else(|| Failure::new("no list of streams"))? {
        let name = stream["config"]["name"].as_str().unwrap_or_default().to_owned();
        state.push(format!("stream {name}: {} {}", stream["config"], stream["state"]));
        let mut consumers = ask(operator, &format!("$JS.API.CONSUMER.LIST.{name}"), &Value::Null)?["consumers"].take();
        for consumer in consumers.as_array_mut().ok_or_else(|| Failure::new("no list of consumers"))? {
            let name = consumer["name"].as_str().unwrap_or_default().to_owned();
            let counts = if name.starts_with("reader-") {
                // Setting them back is what they are there for.
                Value::Null
            } else {
                let sequence = |field: &str| consumer[field]["stream_seq"].clone();
                let counts = ["num_pending", "num_ack_pending", "num_redelivered", "paused"];
                json!([sequence("delivered"), sequence("ack_floor"), counts.map(|count| consumer[count].clone())])
            };
            state.push(format!("consumer {name}: {} {counts}", consumer["config"]));
        }
    }
    state.sort();
    Ok(state)
}

/// A site with its streams, three markers, and a delivery of one of them that each of two workers holds.
struct Scene {
    uploader: Hand,
    worker: Hand,
    operator: Hand,
    monitor: Hand,
    /// Where the worker acknowledges the last of its deliveries.
    delivery: String,
    site: Site,
}

impl Scene {
    fn new(label: &str) -> Result<Scene> {
        let site = Site::new(label)?;
        site.run("operator", "puller", &["migrate"], 0)?;
        let connect = |role| Hand::connect(&site, role);
        let (uploader, worker, backup) = (connect("uploader")?, connect("worker")?, connect("backup")?);
        let (operator, monitor) = (connect("operator")?, connect("monitor")?);
        let durable = json!({"stream_name": "MARKERS", "config": {
            "name": "ingest-backup", "durable_name": "ingest-backup", "ack_policy": "explicit",
            "ack_wait": 300_000_000_000_u64, "filter_subjects": ["marker.ready.>"],
        }});
        ask(&operator, "$JS.API.CONSUMER.CREATE.MARKERS.ingest-backup", &durable)?;
        // What looks like an advisory of the server's, and nothing at all.
        let forged = json!({"stream": "MARKERS", "consumer": "ingest-primary", "stream_seq": 1, "deliveries": 25});
        for (subject, payload) in [(POISON, &forged), (EMPTY, &Value::Null), (POISON, &forged)] {
            ask(&uploader, subject, payload)?;
        }
        // The worker has every marker in flight, so that it is answered with nothing when it pulls without waiting. Of
        // the backup's three it is one, so that there is something to take and something to acknowledge.
        let mut delivery = String::new();
        for _ in 0..3 {
            delivery = pull(&worker, "ingest-primary")?;
        }
        pull(&backup, "ingest-backup")?;
        Ok(Scene { uploader, worker, operator, monitor, delivery, site })
    }

    /// Every role can still do its work.
    fn works(&self) -> Result<()> {
        self.site.archive("2025-03-01")?;
        self.site.run("uploader", "uploader", &["upload"], 0)?;
        let _ = &self.delivery;
        self.site.run("operator", "puller", &["replay", "--force"], 0)?;
        self.site.run("monitor", "puller", &["status"], 0).map(drop)
    }
}

#[test]
fn a_reply_to_a_role_does_nothing_that_the_role_may_not() -> Result<()> {
    let scene = Scene::new("answers")?;
    let before = state(&scene.operator)?;
    for hand in [&scene.monitor, &scene.uploader, &scene.worker, &scene.operator] {
        let role = hand.role.as_str();
        let replies = replies(role);
        for request in requests(role, &scene.delivery) {
            for reply in &replies {
                attack(hand, &request, reply, &[])?;
            }
            for target in ["$JS.API.STREAM.DELETE.DEAD", "marker.replay.backup.a.b.c.d.e", "dead.backup.a.b.c.d.e"] {
                // The server reports what becomes of a message to a subject, and believes some clients who asks.
                for headers in [
                    &[("Nats-Trace-Dest", target)][..],
                    &[("Nats-Trace-Dest", target), ("Nats-Trace-Only", "true")],
                    &[("Nats-Request-Info", "{\"acc\":\"INGEST\",\"svc\":\"INGEST\"}")],
                ] {
                    if (role, target) != ("operator", "marker.replay.backup.a.b.c.d.e") {
                        attack(hand, &request, target, headers)?;
                    }
                }
            }
        }
        wait_for_server(hand)?;
        let after = state(&scene.operator)?;
        let changed: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
        assert_eq!(before, after, "{role} changed {changed:#?}");
    }
    scene.works()
}

#[test]
fn a_delivery_is_stored_nowhere_whatever_its_reply_subject() -> Result<()> {
    let scene = Scene::new("deliveries")?;
    let sequences = |state: Vec<String>| -> Vec<String> {
        state.into_iter().filter(|line| !line.starts_with("consumer ingest-primary")).collect()
    };
    let before = sequences(state(&scene.operator)?);
    let next = request("$JS.API.CONSUMER.MSG.NEXT.MARKERS.ingest-primary", "{\"batch\":1,\"no_wait\":true}");
    for reply in replies("worker") {
        let nak = request(scene.delivery.as_str(), "-NAK");
        attack(&scene.worker, &nak, "_INBOX_worker.x", &[])?;
        attack(&scene.worker, &next, &reply, &[])?;
    }
    wait_for_server(&scene.worker)?;
    assert_eq!(before, sequences(state(&scene.operator)?));
    scene.works()
}

#[test]
fn an_uploader_may_not_make_a_consumer_that_delivers_elsewhere() -> Result<()> {
    let scene = Scene::new("elsewhere")?;
    let before = state(&scene.operator)?;
    let targets =
        ["$JS.API.CONSUMER.MSG.NEXT.MARKERS.ingest-backup", "$JS.API.STREAM.DELETE.DEAD", "dead.backup.a.b.c.d.e"];
    for name in ["reader-1", "reader-uploader-1", "mine"] {
        for target in targets {
            let config = json!({"stream_name": "MARKERS", "config": {
                "name": name, "ack_policy": "explicit", "deliver_subject": target, "idle_heartbeat": 100_000_000,
            }});
            for subject in ["CONSUMER.CREATE.MARKERS", "CONSUMER.DURABLE.CREATE.MARKERS"] {
                let subject = format!("$JS.API.{subject}.{name}");
                let sent =
                    scene.uploader.client.publish_with_reply(subject, "_INBOX_uploader.x", config.to_string().into());
                scene.uploader.runtime.block_on(sent).context("asking for a consumer")?;
            }
        }
    }
    wait_for_server(&scene.uploader)?;
    assert_eq!(before, state(&scene.operator)?);
    Ok(())
}

#[test]
fn headers_of_a_message_remove_no_other_message() -> Result<()> {
    let scene = Scene::new("headers")?;
    let state = |scene: &Scene| -> Result<Vec<Value>> {
        STREAMS
            .iter()
            .map(|stream| {
                let info = ask(&scene.operator, &format!("$JS.API.STREAM.INFO.{stream}"), &Value::Null)?;
                Ok(json!([stream, info["state"]["first_seq"], info["state"]["num_deleted"]]))
            })
            .collect()
    };
    ask(&scene.worker, &format!("dead.primary.{UNIT}"), &json!("a letter"))?;
    ask(&scene.operator, "task.t1", &json!({}))?;
    let before = state(&scene)?;
    for (hand, subjects) in [
        (&scene.uploader, vec![format!("marker.ready.{UNIT}"), format!("marker.backfill.{UNIT}")]),
        (&scene.worker, vec![format!("dead.primary.{UNIT}"), format!("task.t2.{UNIT}")]),
    ] {
        for subject in subjects {
            let target = format!("marker.replay.backup.{UNIT}");
            for headers in [
                &[("Nats-Rollup", "all")][..],
                &[("Nats-Rollup", "sub")],
                &[("Nats-TTL", "1s")],
                &[("Nats-Schedule", "@every 1s"), ("Nats-Schedule-Target", &target)],
                &[("Nats-Incr", "+1")],
                &[("Nats-Batch-Id", "b"), ("Nats-Batch-Sequence", "1"), ("Nats-Batch-Commit", "1")],
            ] {
                attack(hand, &request(subject.as_str(), "{}"), &format!("_INBOX_{}.x", hand.role), headers)?;
            }
        }
        wait_for_server(hand)?;
    }
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(before, state(&scene)?);
    let replays = json!({"subjects_filter": format!("marker.replay.backup.{UNIT}")});
    let scheduled = ask(&scene.operator, "$JS.API.STREAM.INFO.REPLAYS", &replays)?;
    assert!(scheduled["state"]["subjects"].is_null(), "{scheduled}");
    Ok(())
}

//! Each role's account of `deploy/nats/users.conf` can do its work, and is refused everything else.

use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event, RequestErrorKind};
use serde_json::{Value, json};
use tests::data::mark_all;
use tests::process::Finished;
use tests::project::{Project, Service};
use tests::servers::{Nats, Roles, RunDir, Stack};
use tests::{Context, Failure, Result};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::scenario::{SOON, assert_nothing_uploaded, btc};

pub(crate) const UNIT: &str = "binance.spot.klines.1h.2025-03-01";

/// A project whose NATS gives each role an account of its own.
pub(crate) struct Site {
    project: Project,
    roles: Roles,
    nats: Nats,
    // Dropped last.
    _dir: RunDir,
}

impl Site {
    pub(crate) fn new(label: &str) -> Result<Site> {
        let dir = RunDir::new(label)?;
        let (nats, roles) = Nats::start_with_roles(&dir.path().join("nats"))?;
        let mut project = Project::new(Stack::shared(), label)?;
        for (key, value) in [("url", json!(nats.url())), ("user", Value::Null), ("password", Value::Null)] {
            project.set(&format!("nats.{key}"), value)?;
        }
        Ok(Site { project, roles, nats, _dir: dir })
    }

    pub(crate) fn archive(&self, day: &str) -> Result<()> {
        btc(day).write(self.project.data_dir())?;
        mark_all(self.project.data_dir()).map(drop)
    }

    fn env(&self, role: &str) -> Result<[(&'static str, String); 3]> {
        let seed = self.roles.seed_file(role);
        let seed = seed.to_str().ok_or_else(|| Failure::new("the path is not UTF-8"))?.to_owned();
        Ok([
            ("FERRY__NATS__ROLE", role.to_owned()),
            ("FERRY__NATS__NKEY_FILE", seed),
            ("FERRY__NATS__MANAGE", (role == "operator").to_string()),
        ])
    }

    /// Runs a command; fails also when the server refused any part of it, for some refusals are only logged.
    pub(crate) fn run(&self, role: &str, binary: &str, args: &[&str], code: i32) -> Result<Finished> {
        let env = self.env(role)?;
        let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let finished = self.project.start(binary, args, &env)?.wait(SOON)?.expect_code(code)?;
        no_violation(&finished.name, &finished.stderr)?;
        Ok(finished)
    }

    fn spawn_worker(&self) -> Result<Service> {
        let env = self.env("worker")?;
        let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.project.spawn("puller", &["run"], &env)
    }
}

fn no_violation(who: &str, stderr: &str) -> Result<()> {
    let refused = stderr.lines().find(|line| line.to_lowercase().contains("permissions violation"));
    refused.map_or(Ok(()), |line| Err(Failure::new(format!("{who}: {line}"))))
}

#[test]
fn every_role_can_do_its_work() -> Result<()> {
    let site = Site::new("roles")?;
    site.archive("2025-03-01")?;
    // Twice, for what is there already is compared and not made.
    site.run("operator", "puller", &["migrate"], 0)?;
    site.run("operator", "puller", &["migrate", "--prune"], 0)?;
    site.run("operator", "puller", &["doctor"], 0)?;
    for (binary, role) in [("uploader", "uploader"), ("puller", "worker")] {
        site.run(role, binary, &["doctor"], 0)?;
    }

    site.run("uploader", "uploader", &["upload"], 0)?;
    site.run("worker", "puller", &["pull", "--dry-run"], 0)?;
    site.run("worker", "puller", &["pull"], 0)?;
    site.project.check_tables(24)?;
    site.archive("2025-03-02")?;
    site.run("uploader", "uploader", &["upload"], 0)?;
    assert_nothing_uploaded(&site.run("uploader", "uploader", &["upload", "--json"], 0)?.json()?);
    site.run("uploader", "uploader", &["reconcile"], 0)?;
    site.run("uploader", "uploader", &["reconcile", "--fix"], 0)?;
    site.run("uploader", "uploader", &["adopt"], 0)?;

    let mut worker = site.spawn_worker()?;
    site.project.wait_for_archives(2, SOON)?;
    for role in ["operator", "monitor"] {
        let status = site.run(role, "puller", &["status", "--json"], 0)?.json()?;
        assert_eq!(status["destinations"][0]["workers"].as_array().map(Vec::len), Some(1), "{role}: {status}");
    }
    site.run("operator", "puller", &["replay", "--force", "--wait"], 0)?;
    let tasks = site.run("operator", "puller", &["tasks", "ls", "--json"], 0)?.json()?;
    let id = tasks["tasks"][0]["task"].as_str().ok_or_else(|| Failure::new(format!("no task: {tasks}")))?;
    // What the worker wrote.
    let task = site.run("operator", "puller", &["tasks", "show", id, "--json"], 0)?.json()?;
    assert_eq!(task["progress"]["success"], json!(2), "{task}");
    site.run("operator", "puller", &["explain", "binance/spot/klines/1h/2025-03-01"], 0)?;
    site.run("operator", "puller", &["history"], 0)?;
    site.run("operator", "puller", &["verify"], 0)?;

    site.run("operator", "puller", &["pause"], 0)?;
    site.archive("2025-03-03")?;
    site.run("uploader", "uploader", &["upload"], 0)?;
    let status = site.run("monitor", "puller", &["status", "--json"], 0)?.json()?;
    assert_eq!(
        (&status["destinations"][0]["paused"], &status["destinations"][0]["pending"]),
        (&json!(true), &json!(1)),
        "{status}"
    );
    assert!(status["destinations"][0]["oldest_unfinished"].is_string(), "{status}");
    site.run("operator", "puller", &["resume"], 0)?;
    site.project.wait_for_archives(3, SOON)?;

    // What is no marker becomes a dead letter, which is sent again, becomes one again, and is discarded.
    let hand = Hand::connect(&site, "uploader")?;
    hand.runtime.block_on(async {
        hand.client.publish(format!("marker.ready.{UNIT}"), "no marker".into()).await.context("publishing")?;
        hand.client.flush().await.context("publishing")
    })?;
    let letters = |count: usize| {
        site.project.wait_until(&format!("{count} dead letters"), SOON, || {
            let letters = site.run("operator", "puller", &["dead", "ls", "--json"], 0)?.json()?;
            Ok(letters["findings"].as_array().is_some_and(|letters| letters.len() == count))
        })
    };
    letters(1)?;
    site.run("operator", "puller", &["dead", "show", "1"], 0)?;
    site.run("operator", "puller", &["dead", "retry", "1", "--reason", "again"], 0)?;
    letters(1)?;
    site.run("operator", "puller", &["dead", "discard", "2", "--reason", "no marker"], 0)?;
    letters(0)?;
    worker.sigterm()?;
    let finished = worker.wait(SOON)?.expect_code(0)?;
    no_violation(&finished.name, &finished.stderr)?;
    site.project.check_tables(72)
}

#[test]
fn uploaders_that_read_the_stream_at_the_same_time_all_read_everything() -> Result<()> {
    let site = Site::new("readers")?;
    site.run("operator", "puller", &["migrate"], 0)?;
    for day in 1..=5 {
        site.archive(&format!("2025-03-0{day}"))?;
    }
    site.run("uploader", "uploader", &["upload"], 0)?;
    let env = site.env("uploader")?;
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    // One process whose reading never ends, too.
    let hand = Hand::connect(&site, "uploader")?;
    let starts = (0..8).map(|_| site.project.start("uploader", &["reconcile"], &env)).collect::<Result<Vec<_>>>()?;
    for mut start in starts {
        for reader in 1..=2 {
            let (subject, payload) = (format!("$JS.API.CONSUMER.RESET.MARKERS.reader-{reader}"), "{\"seq\":1}");
            hand.runtime.block_on(hand.client.request(subject, payload.into())).context("setting a reader back")?;
        }
        let finished = start.wait(SOON)?.expect_code(0)?;
        no_violation(&finished.name, &finished.stderr)?;
        assert!(
            finished.stdout.contains("5 the same, 0 only in the bucket, 0 only on the stream"),
            "{}",
            finished.stdout
        );
    }
    Ok(())
}

/// What a role may not do: refused by the permissions of its user, and means nothing in its account.
struct Denied<'a> {
    role: &'a str,
    refused: &'a [&'a str],
    unanswered: &'a [&'a str],
}

const ANNOUNCE: &str = "marker.ready.binance.spot.klines.1h.2025-03-01";
const REPLAY: &str = "marker.replay.primary.binance.spot.klines.1h.2025-03-01";
const DENIED: [Denied; 4] = [
    Denied {
        role: "worker",
        refused: &[
            ANNOUNCE,
            REPLAY,
            "_INBOX_worker.x",
            "$JS.API.CONSUMER.CREATE.MARKERS.ingest-primary",
            "$JS.API.CONSUMER.DELETE.MARKERS.ingest-primary",
            "$JS.API.CONSUMER.PAUSE.MARKERS.ingest-primary",
            "$JS.API.CONSUMER.RESET.MARKERS.ingest-primary",
            "$JS.API.STREAM.DELETE.MARKERS",
            "$JS.API.STREAM.MSG.DELETE.MARKERS",
        ],
        unanswered: &[
            "dead.backup.binance.spot.klines.1h.2025-03-01",
            "task.some-replay",
            "$JS.API.CONSUMER.INFO.MARKERS.ingest-backup",
            "$JS.API.CONSUMER.MSG.NEXT.MARKERS.ingest-backup",
            "$JS.API.STREAM.MSG.GET.DEAD",
            "$JS.ACK.MARKERS.ingest-backup.1.1.1.1.0",
            "$JS.ACK.d.h.MARKERS.ingest-backup.1.1.1.1.0.x",
            // The first form of another consumer's, in the guise of the second of one's own.
            "$JS.ACK.MARKERS.ingest-backup.MARKERS.ingest-primary.1.1.1",
        ],
    },
    Denied {
        role: "uploader",
        refused: &[
            REPLAY,
            "dead.primary.binance.spot.klines.1h.2025-03-01",
            "_INBOX_uploader.x",
            "$JS.API.STREAM.DELETE.MARKERS",
            "$JS.API.STREAM.PURGE.MARKERS",
            "$JS.API.STREAM.UPDATE.MARKERS",
            "$JS.API.STREAM.MSG.DELETE.MARKERS",
            "$JS.API.CONSUMER.DELETE.MARKERS.ingest-primary",
            "$JS.API.CONSUMER.CREATE.MARKERS.ingest-primary",
            "$JS.API.CONSUMER.CREATE.MARKERS.reader-1",
            "$JS.API.CONSUMER.CREATE.MARKERS",
            "$JS.ACK.MARKERS.ingest-primary.1.1.1.1.0",
        ],
        unanswered: &[
            "$JS.API.CONSUMER.INFO.MARKERS.ingest-primary",
            "$JS.API.CONSUMER.MSG.NEXT.MARKERS.ingest-primary",
            "$JS.API.CONSUMER.RESET.MARKERS.ingest-primary",
            "$JS.API.DIRECT.GET.DEAD",
            "$JS.API.STREAM.MSG.GET.TASKS",
        ],
    },
    Denied {
        role: "operator",
        refused: &[
            ANNOUNCE,
            "dead.primary.binance.spot.klines.1h.2025-03-01",
            "_INBOX_operator.x",
            "$JS.API.STREAM.DELETE.MARKERS",
            "$JS.API.STREAM.PURGE.MARKERS",
            "$JS.API.STREAM.SNAPSHOT.MARKERS",
            "$JS.API.STREAM.RESTORE.MARKERS",
            "$JS.API.STREAM.MSG.DELETE.MARKERS",
            "$JS.ACK.MARKERS.ingest-primary.1.1.1.1.0",
        ],
        unanswered: &[
            "$JS.API.CONSUMER.MSG.NEXT.MARKERS.ingest-primary",
            "$JS.API.CONSUMER.RESET.MARKERS.ingest-primary",
        ],
    },
    Denied {
        role: "monitor",
        refused: &[
            ANNOUNCE,
            REPLAY,
            "dead.primary.binance.spot.klines.1h.2025-03-01",
            "task.some-replay",
            "_INBOX_monitor.x",
            "$JS.API.STREAM.DELETE.MARKERS",
            "$JS.API.STREAM.CREATE.MARKERS",
            "$JS.API.CONSUMER.CREATE.MARKERS.reader-1",
            "$JS.API.CONSUMER.MSG.NEXT.MARKERS.ingest-primary",
            "$JS.API.CONSUMER.PAUSE.MARKERS.ingest-primary",
            "$JS.ACK.MARKERS.ingest-primary.1.1.1.1.0",
            "$SYS.REQ.SERVER.PING",
            "anything",
        ],
        unanswered: &["$JS.API.DIRECT.GET.DEAD"],
    },
];

#[test]
fn a_role_is_refused_all_other_requests() -> Result<()> {
    let site = Site::new("refused")?;
    site.run("operator", "puller", &["migrate"], 0)?;
    for Denied { role, refused, unanswered } in DENIED {
        let mut hand = Hand::connect(&site, role)?;
        for subject in refused {
            hand.expect_no_publish(subject)?;
        }
        for subject in unanswered {
            hand.expect_no_answer(subject)?;
        }
        let others = ["_INBOX.>", "marker.>", "$JS.API.>", "$JS.ACK.>"];
        let inboxes = ["uploader", "worker", "operator", "monitor"].map(|other| format!("_INBOX_{other}.>"));
        let foreign = inboxes.iter().map(String::as_str).filter(|inbox| !inbox.contains(role));
        for subject in others.into_iter().chain(foreign) {
            hand.expect_no_subscription(subject)?;
        }
    }
    Ok(())
}

/// A client of one role, and what the server told it.
pub(crate) struct Hand {
    pub(crate) role: String,
    pub(crate) runtime: Runtime,
    pub(crate) client: Client,
    errors: mpsc::UnboundedReceiver<String>,
}

impl Hand {
    pub(crate) fn connect(site: &Site, role: &str) -> Result<Hand> {
        let (errors_seen, errors) = mpsc::unbounded_channel();
        let runtime = Runtime::new().context("a runtime")?;
        let options = ConnectOptions::with_nkey(site.roles.seed(role)?)
            .custom_inbox_prefix(format!("_INBOX_{role}"))
            .event_callback(move |event| {
                let errors_seen = errors_seen.clone();
                async move {
                    if let Event::ServerError(error) = event {
                        // Only gone when the test is.
                        drop(errors_seen.send(error.to_string()));
                    }
                }
            });
        let client = runtime.block_on(options.connect(site.nats.url())).context(role)?;
        Ok(Hand { role: role.to_owned(), runtime, client, errors })
    }

    fn expect_no_publish(&mut self, subject: &str) -> Result<()> {
        self.runtime.block_on(async {
            // Empty, so that a request which is not refused does the least harm.
            self.client.publish(subject.to_owned(), "".into()).await.context(subject)
        })?;
        self.expect_refusal(subject)
    }

    /// The subject means nothing in the role's account.
    fn expect_no_answer(&self, subject: &str) -> Result<()> {
        let asked = self.runtime.block_on(self.client.request(subject.to_owned(), "".into()));
        match asked {
            Err(error) if error.kind() == RequestErrorKind::NoResponders => Ok(()),
            Err(error) => Err(Failure::new(format!("{}, {subject}: {error}", self.role))),
            Ok(answer) => Err(Failure::new(format!("{}, {subject}: {:?}", self.role, answer.payload))),
        }
    }

    fn expect_no_subscription(&mut self, subject: &str) -> Result<()> {
        let subscription = self.runtime.block_on(self.client.subscribe(subject.to_owned())).context(subject)?;
        let refused = self.expect_refusal(subject);
        drop(subscription);
        refused
    }

    /// The next thing the server says is that it refuses this.
    fn expect_refusal(&mut self, subject: &str) -> Result<()> {
        let errors_seen = self.runtime.block_on(async {
            self.client.flush().await.context("flushing")?;
            tokio::time::timeout(Duration::from_secs(10), self.errors.recv()).await.context(subject)
        });
        let role = &self.role;
        let errors_seen = errors_seen.context(format!("{role} was not refused {subject}"))?.unwrap_or_default();
        let is_refused = errors_seen.to_lowercase().contains("permissions violation") && errors_seen.contains(subject);
        if is_refused { Ok(()) } else { Err(Failure::new(format!("{role}, {subject}: {errors_seen}"))) }
    }
}

//! The servers alone, until they are no longer wanted.

use std::path::Path;

use tests::{
    Context, Result,
    servers::{Stack, ensure_installed},
};
use tokio::signal::unix::{SignalKind, signal};

pub(crate) fn run(dir: Option<&Path>) -> Result<()> {
    ensure_installed()?;
    let mut stack = match dir {
        Some(dir) => Stack::start(&std::path::absolute(dir).context(dir.display())?)?,
        None => Stack::own()?,
    };
    println!("{}", exports(&stack)?);
    eprintln!(
        "\nThe servers are up. Paste the lines above into another shell, set LOCAL_DATA_DIR there, and use `uploader` \
         and `puller`.\nNATS monitoring: http://{}   Stop everything: Ctrl-C here.",
        stack.nats.monitor()
    );
    wait_for_a_signal()?;
    eprintln!("stopping the servers");
    stack.stop()
}

fn exports(stack: &Stack) -> Result<String> {
    let account = stack.nats.account()?;
    let (s3, clickhouse) = (&stack.s3, &stack.clickhouse);
    let lines = [
        ("STORAGE__TYPE", "r2".to_owned()),
        ("STORAGE__R2__ENDPOINT", s3.endpoint()),
        ("STORAGE__R2__BUCKET", s3.bucket().to_owned()),
        ("STORAGE__R2__PATH_STYLE", "true".to_owned()),
        ("STORAGE__R2__ACCESS_KEY_ID", s3.credentials().access_key_id.clone()),
        ("STORAGE__R2__SECRET_ACCESS_KEY", s3.credentials().secret_access_key.clone()),
        ("NATS__URL", account.url),
        ("NATS__USER", account.user),
        ("NATS__PASSWORD", account.password),
        ("CLICKHOUSE__HOST", clickhouse.host().to_owned()),
        ("CLICKHOUSE__PORT", clickhouse.port().to_string()),
        ("CLICKHOUSE__USER", clickhouse.user().to_owned()),
        ("CLICKHOUSE__PASSWORD", clickhouse.password().to_owned()),
    ];
    let lines: Vec<String> = lines.iter().map(|(key, value)| format!("export FERRY__{key}={value}")).collect();
    Ok(lines.join("\n"))
}

fn wait_for_a_signal() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting a runtime")?;
    runtime.block_on(async { a_signal()?.await.context("listening for Ctrl-C") })
}

/// Listens from now on; resolves at Ctrl-C or SIGTERM.
pub(crate) fn a_signal() -> Result<impl Future<Output = std::io::Result<()>>> {
    let mut term = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    Ok(async move {
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted,
            _ = term.recv() => Ok(()),
        }
    })
}

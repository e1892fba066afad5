//! An S3 server of its own, where the demo is spread over containers.

use std::{fs, net::SocketAddr, path::PathBuf};

use tests::{
    Context, Failure, Result,
    servers::{Credentials, serve_s3},
};

use crate::stack::a_signal;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long, default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// Objects are files below it
    #[arg(long)]
    dir: PathBuf,
    /// Made if it is not there
    #[arg(long, default_value = "ferry")]
    bucket: String,
    #[arg(long, value_name = "FILE")]
    access_key_id_file: PathBuf,
    #[arg(long, value_name = "FILE")]
    secret_access_key_file: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let credentials = Credentials {
        access_key_id: secret(&args.access_key_id_file)?,
        secret_access_key: secret(&args.secret_access_key_file)?,
    };
    let runtime = tokio::runtime::Runtime::new().context("starting a runtime")?;
    let served = runtime.block_on(async {
        let signal = a_signal()?;
        eprintln!("S3 on {}, bucket {}", args.listen, args.bucket);
        // However the listening for signals ends, it ends the server.
        serve_s3(args.listen, &args.dir, &args.bucket, &credentials, async { drop(signal.await) }).await
    });
    // Requests that are under way are cut.
    runtime.shutdown_background();
    served
}

/// Secrets come in files only: arguments are everybody's to read.
pub(crate) fn secret(file: &std::path::Path) -> Result<String> {
    let text = fs::read_to_string(file).context(file.display())?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(Failure::new(format!("{} is empty", file.display()))),
        secret => Ok(secret.to_owned()),
    }
}

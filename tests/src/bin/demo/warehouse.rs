//! Looking into a ClickHouse that runs elsewhere.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use ::tests::{
    Context, Failure, Result,
    servers::SqlClient,
    truth::{Series, Truth},
};

use crate::{report, s3::secret};

const POLL_EVERY: Duration = Duration::from_secs(1);
/// What is shown when rows still come would be half of it.
const QUIET: u32 = 3;

#[derive(clap::Args)]
pub(crate) struct Server {
    /// Its HTTP port
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8123")]
    clickhouse: String,
    #[arg(long, default_value = "default")]
    user: String,
    /// Without it the password is empty
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    #[arg(long, default_value = "marketferry")]
    database: String,
}

#[derive(clap::Args)]
pub(crate) struct Compare {
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    #[command(flatten)]
    server: Server,
    /// storage.r2.prefix
    #[arg(long, default_value = "download")]
    prefix: String,
    /// Try until they are equal, at most for so long
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "0s")]
    wait: Duration,
}

#[derive(clap::Args)]
pub(crate) struct Show {
    #[command(flatten)]
    server: Server,
    /// How long rows are waited for
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "120s")]
    wait: Duration,
}

impl Server {
    /// Looks the name up anew: a container that was made again has another address.
    fn client(&self) -> Result<SqlClient> {
        let password = self.password_file.as_deref().map(secret).transpose()?.unwrap_or_default();
        Ok(SqlClient::new(address(&self.clickhouse)?, &self.user, &password))
    }
}

fn address(url: &str) -> Result<SocketAddr> {
    let host = url.strip_prefix("http://").ok_or_else(|| Failure::new(format!("{url} does not begin with http://")))?;
    let host = host.trim_end_matches('/');
    let mut found = host.to_socket_addrs().context(host)?;
    found.next().ok_or_else(|| Failure::new(format!("{host} has no address")))
}

pub(crate) fn compare(args: &Compare) -> Result<()> {
    let truth = Truth::of_tree(&args.data_dir)?;
    let (server, database) = (&args.server, &args.server.database);
    let once = || {
        let sql = server.client()?;
        truth.compare_rows(&sql, database, 1)?;
        truth.compare_ledger(&sql, database, &args.prefix)
    };
    until(args.wait, once)?;
    let (archives, rows) = (truth.archives().len() as u64, truth.rows() as u64);
    println!("equal: {} rows of {} archives", report::grouped(rows), report::grouped(archives));
    Ok(())
}

pub(crate) fn show(args: &Show) -> Result<()> {
    let (server, database) = (&args.server, &args.server.database);
    let (mut last, mut quiet) = (0, 0);
    until(args.wait, || {
        let count = server.client()?.query(&format!("SELECT count() FROM `{database}`.klines_latest"))?;
        let count: u64 = count.trim().parse().context(format!("a count of rows: {count:?}"))?;
        quiet = if count == last { quiet + 1 } else { 0 };
        last = count;
        match count {
            0 => Err(Failure::new(format!("there are no rows in {database}"))),
            _ if quiet < QUIET => Err(Failure::new(format!("rows still come, {count} until now"))),
            _ => Ok(()),
        }
    })
    .or_else(|failure| if last > 0 { Ok(()) } else { Err(failure) })?;
    let sql = server.client()?;
    println!("{}\n", report::units(&sql, database)?);
    let series = longest_series(&sql, database)?;
    println!("{}", report::daily(&sql, database, &series)?);
    Ok(())
}

fn longest_series(sql: &SqlClient, database: &str) -> Result<Series> {
    let answer = sql.query(&format!(
        "SELECT exchange, market, dataset, interval, symbol FROM `{database}`.klines_latest GROUP BY ALL \
         ORDER BY count() DESC, exchange, market, dataset, interval, symbol LIMIT 1 FORMAT TabSeparatedRaw"
    ))?;
    let fields: Vec<&str> = answer.trim_end_matches('\n').split('\t').collect();
    let [exchange, market, dataset, interval, symbol] = fields.as_slice() else {
        return Err(Failure::new(format!("no series: {answer:?}")));
    };
    Ok(Series {
        exchange: (*exchange).to_owned(),
        market: (*market).to_owned(),
        dataset: (*dataset).to_owned(),
        interval: (*interval).to_owned(),
        symbol: (*symbol).to_owned(),
    })
}

/// Tries until it succeeds; when the time is over, the last failure counts.
fn until(wait: Duration, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(failure) if start.elapsed() >= wait => return Err(failure),
            Err(_) => thread::sleep(POLL_EVERY),
            Ok(()) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_comes_from_a_url() {
        assert_eq!(address("http://127.0.0.1:8123/").expect("an address").to_string(), "127.0.0.1:8123");
        assert!(address("https://127.0.0.1:8443").is_err());
        assert!(address("http://127.0.0.1").is_err());
    }

    #[test]
    fn what_fails_is_tried_until_the_time_is_over() {
        let mut tries = 0;
        let failed = until(Duration::ZERO, || {
            tries += 1;
            Err(Failure::new("no"))
        });
        assert!(failed.is_err());
        assert_eq!(tries, 1);
        assert!(until(Duration::ZERO, || Ok(())).is_ok());
    }
}

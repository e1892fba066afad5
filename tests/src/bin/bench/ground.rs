//! One workload, generated, uploaded and announced; and a fresh place to load it to for every run.

use std::{fs, time::Duration};

use serde_json::{Value, json};
use tests::{Context, Failure, Result, data::period_bounds, project::Project, servers::SqlClient};

use crate::{
    shape::{Periods, Shape, Totals, Written},
    world::World,
};

const UPLOAD_TIMEOUT: Duration = Duration::from_secs(1800);
/// Rows of [`crate::growth`] have symbols between these two, those of a [`Shape`] have not.
const NOT_FILLED: &str = "(symbol < 'FILL' OR symbol >= 'FILM')";

pub(crate) struct Ground {
    pub(crate) project: Project,
    pub(crate) shape: Shape,
    pub(crate) written: Written,
    /// Where and as whom, without a database.
    pub(crate) clickhouse: Value,
    pub(crate) sql: SqlClient,
    destinations: u32,
}

impl Ground {
    /// A project whose archives are made elsewhere.
    pub(crate) fn of_project(world: &World, mut project: Project) -> Result<Ground> {
        // Everything goes to the subject of live units, however old it is.
        project.set("publish.live_days", 36_500)?;
        project.set("log.level", "warn")?;
        // The destination of this name would be there in every run.
        let clickhouse = project.config()["clickhouse"].clone();
        project.set("clickhouse", json!({}))?;
        let shape = Shape { symbols: 0, interval: "", periods: Periods::days("2025-02-01", 0) };
        Ok(Ground { project, shape, written: Written::default(), clickhouse, sql: world.sql(), destinations: 0 })
    }

    /// Archives and marks on disk, nothing uploaded.
    pub(crate) fn generate(world: &World, label: &str, shape: Shape) -> Result<Ground> {
        let label = label.replace('/', "-");
        let project = Project::in_dir(&world.stack, &world.fast_folder(&label)?, &label)?;
        let written = shape.write(project.data_dir())?;
        Ok(Ground { shape, written, ..Ground::of_project(world, project)? })
    }

    /// For the report.
    pub(crate) fn size(&self) -> String {
        let Written { totals, zip_bytes } = &self.written;
        format!(
            "{} units, {} archives, {} rows, {:.1} MB of zips",
            self.shape.units(),
            self.shape.archives(),
            totals.rows,
            *zip_bytes as f64 / 1e6
        )
    }

    /// In the bucket and announced.
    pub(crate) fn prepare(world: &World, label: &str, shape: Shape) -> Result<Ground> {
        let ground = Ground::generate(world, label, shape)?;
        ground.upload()?;
        Ok(ground)
    }

    pub(crate) fn upload(&self) -> Result<()> {
        self.project.start("uploader", &["upload"], &[])?.wait(UPLOAD_TIMEOUT)?.expect_code(0).map(drop)
    }

    /// A new destination with a new database and the product's own tables; returns the database's name.
    pub(crate) fn fresh_destination(&mut self) -> Result<String> {
        let database = format!("{}_{}", self.project.database(), self.destinations + 1);
        self.new_destination(&database)?;
        Ok(database)
    }

    /// A new destination, which has seen nothing of the stream, with this database; the former one is removed.
    pub(crate) fn new_destination(&mut self, database: &str) -> Result<()> {
        self.destinations += 1;
        let mut destination = self.clickhouse.clone();
        destination["name"] = format!("run{}", self.destinations).into();
        destination["type"] = "clickhouse".into();
        destination["database"] = database.into();
        destination["initial_days"] = 36_500.into();
        self.project.set("destinations", json!([destination]))?;
        self.project.puller(&["migrate", "--prune"])?.expect_code(0)?;
        Ok(())
    }

    /// Fails unless the view has exactly the rows that were generated, by number and by the sums of their columns.
    pub(crate) fn check(&self, database: &str) -> Result<()> {
        self.check_where(database, "1")
    }

    /// The same in a database that was full before: only rows of this workload are looked at.
    pub(crate) fn check_in_full(&self, database: &str) -> Result<()> {
        let micros = |period: Option<&String>, end: bool| {
            let (first, next) = period_bounds(period?)?;
            Some(if end { next } else { first }.as_microsecond())
        };
        let periods = self.shape.periods.list();
        let bounds = micros(periods.first(), false).zip(micros(periods.last(), true));
        let (first, end) = bounds.ok_or_else(|| Failure::new("the workload has no period"))?;
        let condition = format!(
            "interval = '{}' AND open_time >= fromUnixTimestamp64Micro({first}, 'UTC') \
             AND open_time < fromUnixTimestamp64Micro({end}, 'UTC') AND {NOT_FILLED}",
            self.shape.interval
        );
        self.check_where(database, &condition)
    }

    fn check_where(&self, database: &str, condition: &str) -> Result<()> {
        let query = Totals::query(&format!("{database}.klines_latest"), condition);
        let found = Totals::parse(&self.sql.query(&query)?)?;
        if found == self.written.totals {
            return Ok(());
        }
        Err(Failure::new(format!("wrong rows in {database}: {found:?}, generated were {:?}", self.written.totals)))
    }

    /// Fails unless the product has recorded every archive and every unit.
    pub(crate) fn check_records(&self, database: &str) -> Result<()> {
        let recorded = self.sql.query(&format!(
            "SELECT (SELECT count() FROM {database}.archives FINAL), \
             (SELECT uniqExact(exchange, market, dataset, interval, period) FROM {database}.ingest_log \
              WHERE outcome = 'loaded') FORMAT TabSeparated"
        ))?;
        let expected = format!("{}\t{}", self.shape.archives(), self.shape.units());
        if recorded.trim() == expected {
            return Ok(());
        }
        Err(Failure::new(format!("archives and units recorded are {recorded:?}, expected {expected:?}")))
    }

    pub(crate) fn drop_database(&self, database: &str) -> Result<()> {
        self.sql.query(&format!("DROP DATABASE {database} SYNC")).map(drop)
    }

    /// Takes archives and objects away, so that memory is free for the next.
    pub(crate) fn remove(self, world: &World) -> Result<()> {
        let objects = world.stack.s3.bucket_dir().join(self.project.prefix());
        fs::remove_dir_all(&objects).context(format!("removing {}", objects.display()))?;
        self.remove_archives()
    }

    /// The same for one that was never uploaded.
    pub(crate) fn remove_archives(self) -> Result<()> {
        let folder = self.project.dir();
        fs::remove_dir_all(folder).context(format!("removing {}", folder.display()))
    }
}

//! Does the ledger have each archive once, as the file is?

use std::collections::BTreeMap;

use super::{Archive, Truth};
use crate::{Context, Failure, Result, servers::SqlClient};

const SHOWN: usize = 10;

impl Truth {
    /// Fails with the first differences unless `archives` has exactly these, each once, with its hash, size and rows.
    pub fn compare_ledger(&self, sql: &SqlClient, database: &str, prefix: &str) -> Result<()> {
        let query =
            format!("SELECT object_key, sha256, size, rows FROM `{database}`.archives FINAL FORMAT TabSeparatedRaw");
        let mut differences = Vec::new();
        let mut ledger: BTreeMap<String, Archive> = BTreeMap::new();
        sql.query_lines(&query, |line| {
            let (key, archive) = parse(line).context(format!("row {line:?} of archives"))?;
            let key = key.strip_prefix(&format!("{prefix}/")).unwrap_or(&key).to_owned();
            if ledger.contains_key(&key) {
                differences.push(format!("{key} is there more than once"));
            }
            ledger.insert(key, archive);
            Ok(())
        })?;
        for (key, archive) in &self.archives {
            match ledger.remove(key) {
                None => differences.push(format!("{key} is missing")),
                Some(found) if found != *archive => {
                    differences.push(format!("{key} is {found:?}, should be {archive:?}"));
                }
                Some(_) => {}
            }
        }
        differences.extend(ledger.into_keys().map(|key| format!("{key} is no archive of ours")));
        if differences.is_empty() {
            return Ok(());
        }
        let count = differences.len();
        differences.truncate(SHOWN);
        Err(Failure::new(format!("{count} differences in the ledger:\n  {}", differences.join("\n  "))))
    }
}

fn parse(line: &str) -> Result<(String, Archive)> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [key, sha256, size, rows] = fields.as_slice() else {
        return Err(Failure::new("not four columns"));
    };
    let archive = Archive {
        sha256: (*sha256).to_owned(),
        size: size.parse().context("size")?,
        rows: rows.parse().context("rows")?,
    };
    Ok(((*key).to_owned(), archive))
}

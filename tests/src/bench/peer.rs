//! drift and what it is compared with: their tables, their indexes, the settings they are swept by.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Instant;

use anyhow::{bail, ensure, Context, Result};
use postgres::Client;
use serde::{Deserialize, Serialize};

use super::dataset::{Dataset, Matrix, Metric};
use super::host::{bytes, Host};
use super::load::Session;
use super::options::Options;
use super::wire::Request;
use crate::progress::Progress;
use crate::vector::{encode, BinaryCopy, Field};

/// What makes a table be searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// This extension.
    Drift,
    /// pgvector's graph, with its default m = 16 and ef_construction = 64.
    Hnsw,
    /// pgvector's inverted lists.
    IvfFlat,
}

impl Engine {
    /// What it is called in reports.
    pub fn label(self) -> &'static str {
        match self {
            Engine::Drift => "drift",
            Engine::Hnsw => "pgvector hnsw",
            Engine::IvfFlat => "pgvector ivfflat",
        }
    }

    /// Its database: both extensions define the type vector.
    pub fn database(self) -> &'static str {
        match self {
            Engine::Drift => "drift",
            Engine::Hnsw | Engine::IvfFlat => "pgvector",
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Engine::Drift => "drift_pg",
            Engine::Hnsw | Engine::IvfFlat => "vector",
        }
    }

    /// Whether it has an operator class for the metric.
    pub fn supports(self, metric: Metric) -> bool {
        self != Engine::IvfFlat || metric != Metric::L1
    }

    /// `USING ...` of its index on column `v` of a table of so many rows.
    pub fn using(self, metric: Metric, rows: usize) -> String {
        let class = metric.sql().class;
        match self {
            Engine::Drift => format!("USING drift (v {class})"),
            Engine::Hnsw => {
                format!("USING hnsw (v {class}) WITH (m = 16, ef_construction = 64)")
            }
            Engine::IvfFlat => {
                format!("USING ivfflat (v {class}) WITH (lists = {})", lists(rows))
            }
        }
    }

    /// The setting that trades recall for speed.
    pub fn knob(self) -> &'static str {
        match self {
            Engine::Drift => "drift.target_recall",
            Engine::Hnsw => "hnsw.ef_search",
            Engine::IvfFlat => "ivfflat.probes",
        }
    }

    /// The values it is swept through.
    pub fn values(self, options: &Options, rows: usize) -> Vec<String> {
        let efforts: &[usize] = match self {
            Engine::Drift => return options.targets.iter().map(f64::to_string).collect(),
            Engine::Hnsw => &[10, 20, 30, 40, 60, 80, 120, 160, 200, 300, 400, 600, 800],
            Engine::IvfFlat => &[1, 2, 3, 5, 8, 13, 20, 32, 50, 80, 128, 200],
        };
        let most = if self == Engine::IvfFlat { lists(rows) } else { usize::MAX };
        efforts.iter().filter(|it| **it <= most).map(usize::to_string).collect()
    }

    /// What its sessions set, beyond what all do.
    pub fn session(self, options: &Options) -> String {
        match self {
            Engine::Drift => {
                let set = |(name, value): &(String, String)| {
                    format!("SET {name} = '{}';", value.replace('\'', "''"))
                };
                options.session.iter().map(set).collect()
            }
            // Its planner leaves the index for the sequential scan before the sweep ends.
            Engine::Hnsw | Engine::IvfFlat => "SET enable_seqscan = off;".to_owned(),
        }
    }
}

/// As many lists as the square root of the rows.
fn lists(rows: usize) -> usize {
    (rows as f64).sqrt().round().max(1.0) as usize
}

/// A table with an index, and what is asked of it.
pub struct Peer<'a> {
    /// What makes it be searched.
    pub engine: Engine,
    /// What it is called in reports.
    pub label: String,
    /// Its table; `<table>_v` is the index.
    pub table: String,
    /// Its rows.
    pub data: &'a Dataset,
}

/// What building took and made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Built {
    /// Tells whether a kept index is of the same rows, extension and parameters.
    mark: String,
    /// Seconds of COPY.
    pub load_seconds: f64,
    /// Seconds of CREATE INDEX.
    pub seconds: f64,
    /// What followed `CREATE INDEX ... ON ...`.
    pub using: String,
    /// Bytes of the index's pages.
    pub page_bytes: u64,
    /// Bytes of the files beside it.
    pub arena_bytes: u64,
}

impl Peer<'_> {
    /// The index's name.
    pub fn index(&self) -> String {
        format!("{}_v", self.table)
    }

    /// The query that is measured.
    pub fn select(&self) -> String {
        let operator = self.data.metric.sql().operator;
        format!(
            "SELECT id FROM {} ORDER BY v {operator} $1 LIMIT {}",
            self.table, self.data.nearest
        )
    }

    /// Loads the table and builds the index, unless a kept cluster has them.
    ///
    /// # Errors
    /// A statement fails.
    pub fn build(&self, host: &Host, version: &str, data_hash: u64) -> Result<Built> {
        let mut client = database(host, self.engine)?;
        let using = self.engine.using(self.data.metric, self.data.base.len());
        let rows = self.data.base.len();
        let bears = |(name, _): &&(String, String)| name.contains("maintenance");
        let settings: Vec<_> = host.facts.settings.iter().filter(bears).collect();
        let mark = format!("{version} {data_hash:016x} {rows} {using} {settings:?}");
        let kept = "SELECT obj_description(to_regclass($1), 'pg_class')";
        let kept: Option<String> = client.query_one(kept, &[&self.index()])?.get(0);
        let kept = kept.and_then(|text| serde_json::from_str::<Built>(&text).ok());
        if let Some(built) = kept.filter(|built| built.mark == mark) {
            println!("  {:<34} kept from before", self.label);
            return Ok(built);
        }
        let load_seconds = load(&mut client, &self.table, &self.data.base)?;
        client.batch_execute(&format!("VACUUM (FREEZE, ANALYZE) {}", self.table))?;
        client.batch_execute("CHECKPOINT")?;
        let progress = Progress::spinner(&format!("Building {}", self.label));
        let started = Instant::now();
        let (table, index) = (&self.table, self.index());
        client.batch_execute(&format!("CREATE INDEX {index} ON {table} {using}"))?;
        let seconds = started.elapsed().as_secs_f64();
        progress.done(&using);
        let size = format!("SELECT pg_relation_size('{index}')");
        let page_bytes = client.query_one(&size, &[])?.get::<_, i64>(0).try_into()?;
        let arena_bytes = match self.engine {
            Engine::Drift => bytes(&host.cluster.arena_files(self.engine.database(), &index)?)?,
            _ => 0,
        };
        let built = Built { mark, load_seconds, seconds, using, page_bytes, arena_bytes };
        let text = serde_json::to_string(&built)?.replace('\'', "''");
        client.batch_execute(&format!("COMMENT ON INDEX {index} IS '{text}'"))?;
        client.batch_execute("CHECKPOINT")?;
        Ok(built)
    }

    /// Opens sessions that are ready to be asked, each on a core of its own.
    ///
    /// # Errors
    /// There are fewer cores, or a statement fails.
    pub fn sessions(&self, host: &Host, options: &Options, count: usize) -> Result<Vec<Session>> {
        ensure!(
            count <= host.cores.len(),
            "{count} clients need as many cores, and there are {}; see --clients",
            host.cores.len()
        );
        let own = self.engine.session(options);
        host.cores
            .iter()
            .take(count)
            .map(|&core| {
                let socket = host.cluster.socket_dir();
                let mut session = Session::open(socket, self.engine.database(), core)?;
                // One plan for all parameters: planning each time is not what is compared.
                session.connection().simple(&format!(
                    "SET plan_cache_mode = force_generic_plan;
                     SET max_parallel_workers_per_gather = 0; {own}"
                ))?;
                Ok(session)
            })
            .collect()
    }

    /// Sets the knob and prepares the query.
    ///
    /// # Errors
    /// A statement fails, or the plan is no scan of the index.
    pub fn turn(&self, sessions: &mut [Session], value: &str) -> Result<()> {
        for session in sessions.iter_mut() {
            let connection = session.connection();
            connection.simple(&format!("SET {} = {value}", self.engine.knob()))?;
            connection.prepare(&self.select())?;
        }
        let session = sessions.first_mut().context("no sessions")?;
        let ones = vec!["1"; self.data.base.dimensions()].join(",");
        let plan = session.connection().simple(&format!(
            "PREPARE plan AS {}; EXPLAIN (COSTS OFF) EXECUTE plan('[{ones}]'); DEALLOCATE plan",
            self.select()
        ))?;
        let wanted = format!("Index Scan using {}", self.index());
        if !plan.iter().any(|line| line.contains(&wanted)) {
            bail!("{}, {value}: the plan is no index scan:\n{}", self.label, plan.join("\n"));
        }
        Ok(())
    }

    /// The queries, as messages.
    ///
    /// # Errors
    /// A vector is too long.
    pub fn requests(&self) -> Result<Vec<Request>> {
        self.data.queries.rows().map(|query| Request::new(&[&wire_form(query)?])).collect()
    }
}

/// The parameter of a query or an insert: the binary form of the type `vector`.
///
/// # Errors
/// The vector is too long.
pub fn wire_form(elements: &[f32]) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(4 + 4 * elements.len());
    encode(elements, &mut bytes)?;
    Ok(bytes)
}

/// Connects to an engine's database, which is made if it is not there.
///
/// # Errors
/// A statement fails.
pub fn database(host: &Host, engine: Engine) -> Result<Client> {
    let (database, extension) = (engine.database(), engine.extension());
    let mut client = host.cluster.connect()?;
    let exists = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)";
    if !client.query_one(exists, &[&database])?.get::<_, bool>(0) {
        client.batch_execute(&format!("CREATE DATABASE {database}"))?;
    }
    let mut client = host.cluster.connect_to(database)?;
    client.batch_execute(&format!(
        "SET client_min_messages = warning; CREATE EXTENSION IF NOT EXISTS {extension}"
    ))?;
    Ok(client)
}

/// Makes a table of rows with their numbers as ids; returns the seconds of COPY.
///
/// # Errors
/// A statement fails.
pub fn load(client: &mut Client, table: &str, rows: &Matrix) -> Result<f64> {
    client.batch_execute(&format!(
        "DROP TABLE IF EXISTS {table}; CREATE TABLE {table} (id integer, v vector({}))",
        rows.dimensions()
    ))?;
    let progress = Progress::bar(&format!("Loading {table}"), rows.len() as u64);
    let started = Instant::now();
    copy(client, table, (0..).zip(rows.rows()), |done| progress.advance(done))?;
    let seconds = started.elapsed().as_secs_f64();
    progress.done(&format!("{} rows, {} dimensions", rows.len(), rows.dimensions()));
    Ok(seconds)
}

/// Copies rows into a table; `done` is told how many now and then.
///
/// # Errors
/// The copy fails.
pub fn copy<'a>(
    client: &mut Client,
    table: &str,
    rows: impl Iterator<Item = (i32, &'a [f32])>,
    done: impl Fn(u64),
) -> Result<()> {
    const STEP: usize = 4096;
    let statement = format!("COPY {table} FROM STDIN BINARY");
    let mut copy = BinaryCopy::new(client.copy_in(&statement)?)?;
    for (number, (id, row)) in rows.enumerate() {
        copy.row(&[Field::Integer(id), Field::Vector(row)])?;
        if (number + 1).is_multiple_of(STEP) {
            done(STEP as u64);
        }
    }
    copy.finish()?.finish()?;
    Ok(())
}

/// Tells one set of rows from another.
pub fn hash(rows: &Matrix) -> u64 {
    let mut hasher = DefaultHasher::new();
    rows.dimensions().hash(&mut hasher);
    for row in rows.rows() {
        for element in row {
            element.to_bits().hash(&mut hasher);
        }
    }
    hasher.finish()
}

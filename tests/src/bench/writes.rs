//! Inserts, copies, and queries beside them: into an index of drift, into the same table without
//! an index, and into pgvector's HNSW.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use serde::{Deserialize, Serialize};

use super::curve::median;
use super::dataset::{Dataset, Matrix};
use super::host::{Facts, Host};
use super::load::{answers, round, sum_up, together, Load, Round, Session};
use super::options::Options;
use super::peer::{self, wire_form, Engine};
use super::wire::Request;
use super::{pgvector, report, sweep};
use crate::progress::Progress;
use crate::state;

/// The most rows that are at hand to be inserted; more begin with the first again.
const POOL: usize = 400_000;

/// The most rows of a COPY, and how many times fewer go into an index that takes that much longer.
const COPIED: usize = 200_000;
const FEWER: usize = 40;

/// Queries held against a sequential scan after the inserts.
const CHECKED: usize = 100;

/// A table that is written to.
struct Subject {
    label: &'static str,
    table: &'static str,
    /// Where it lives, and what indexes it.
    engine: Engine,
    indexed: bool,
}

const SUBJECTS: [Subject; 3] = [
    Subject { label: "no index", table: "writes_plain", engine: Engine::Drift, indexed: false },
    Subject { label: "drift", table: "writes_drift", engine: Engine::Drift, indexed: true },
    Subject { label: "pgvector hnsw", table: "writes_hnsw", engine: Engine::Hnsw, indexed: true },
];

/// Everything measured of writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// What the set is called.
    pub name: String,
    /// Rows in each table at first.
    pub indexed: usize,
    /// Elements a row.
    pub dimensions: usize,
    /// The machine and the server.
    pub host: Facts,
    /// Single-row inserts, each committed.
    pub inserts: Vec<Inserts>,
    /// Copies of many rows.
    pub copies: Vec<Copies>,
    /// Queries while another client inserts.
    pub beside: Vec<Beside>,
}

/// Single-row inserts, each a transaction of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inserts {
    /// The table.
    pub table: String,
    /// `synchronous_commit`
    pub synchronous: bool,
    /// Rows a second, and microseconds a row.
    pub load: Load,
}

/// Copies into a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Copies {
    /// The table.
    pub table: String,
    /// Rows of each.
    pub rows: usize,
    /// Seconds of each COPY.
    pub seconds: Vec<f64>,
    /// Seconds until the index's log has been flushed, too.
    pub flushed_seconds: Vec<f64>,
}

impl Copies {
    /// Rows a second: median.
    pub fn rate(&self) -> f64 {
        self.rows as f64 / median(self.seconds.iter().copied())
    }

    /// Rows a second, the flush included: median.
    pub fn flushed_rate(&self) -> f64 {
        self.rows as f64 / median(self.flushed_seconds.iter().copied())
    }
}

/// Queries of one client, alone and while another inserts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Beside {
    /// The table.
    pub table: String,
    /// Alone.
    pub quiet: Load,
    /// While another inserts.
    pub busy: Load,
    /// Rows a second that the other inserts meanwhile.
    pub inserting: Load,
    /// Recall, at once after that.
    pub recall: f64,
}

/// Measures, prints and writes.
///
/// # Errors
/// Anything that keeps a figure from being measured.
pub fn run(options: &Options) -> Result<()> {
    let data = sweep::dataset(options)?;
    // A fifth at least is left to be inserted.
    let indexed = options.indexed.min(data.base.len() / 5 * 4);
    ensure!(indexed > 0, "{} rows are too few", data.base.len());
    let host = Host::start(options)?;
    ensure!(host.cores.len() > 1, "queries beside inserts need two cores");
    report::host(&host.facts);
    if options.pgvector {
        pgvector::install(&host.state, &host.tree)?;
    }
    let subjects: Vec<&Subject> =
        SUBJECTS.iter().filter(|it| options.pgvector || it.engine == Engine::Drift).collect();
    let head = data.base.part(0..indexed);
    for subject in &subjects {
        prepare(&host, subject, &head, &data)?;
    }
    warm_up(&host)?;
    let pool = Pool::new(&data, indexed)?;
    let results = Results {
        name: data.name.clone(),
        indexed,
        dimensions: data.base.dimensions(),
        host: host.facts.clone(),
        inserts: inserts(&host, options, &subjects, &pool)?,
        beside: beside(&host, options, &subjects, &data, &pool)?,
        copies: copies(&host, options, &subjects, &data, indexed)?,
    };
    print(&results);
    let dir = options.out.clone().unwrap_or_else(|| state::target().join("bench-sql"));
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let path = dir.join(format!("{}.writes.json", options.name));
    fs::write(&path, serde_json::to_string_pretty(&results)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("\nWritten: {}", path.display());
    host.stop()
}

fn prepare(host: &Host, subject: &Subject, rows: &Matrix, data: &Dataset) -> Result<()> {
    let mut client = peer::database(host, subject.engine)?;
    peer::load(&mut client, subject.table, rows)?;
    client.batch_execute(&format!("VACUUM (FREEZE, ANALYZE) {}", subject.table))?;
    if subject.indexed {
        let progress = Progress::spinner(&format!("Building {}", subject.label));
        let using = subject.engine.using(data.metric, rows.len());
        client.batch_execute(&format!("CREATE INDEX ON {} {using}", subject.table))?;
        progress.done(&using);
    }
    Ok(client.batch_execute("CHECKPOINT")?)
}

/// Rows to be inserted, as messages. An id is the number of its vector in the set.
struct Pool(Vec<Request>);

impl Pool {
    fn new(data: &Dataset, first: usize) -> Result<Pool> {
        let rows = (first..data.base.len()).take(POOL);
        let request = |number: usize| {
            let row = data.base.row(number).context("a row is missing")?;
            Request::new(&[&i32::try_from(number)?.to_be_bytes(), &wire_form(row)?])
        };
        rows.map(request).collect::<Result<_>>().map(Pool)
    }
}

/// Sessions that insert, each from another place of the pool on.
fn writers(host: &Host, subject: &Subject, cores: &[usize], pool: &Pool) -> Result<Vec<Session>> {
    let insert = format!("INSERT INTO {} (id, v) VALUES ($1, $2)", subject.table);
    let mut sessions = Vec::new();
    for (number, &core) in cores.iter().enumerate() {
        let socket = host.cluster.socket_dir();
        let mut session = Session::open(socket, subject.engine.database(), core)?;
        session.connection().prepare(&insert)?;
        session.begin_at(number * pool.0.len() / cores.len());
        sessions.push(session);
    }
    Ok(sessions)
}

/// Puts the server into the state of one that has run for a while: it uses old files of its log
/// again, instead of filling new ones with zeroes first, and buffers that the system has given it
/// memory for before.
fn warm_up(host: &Host) -> Result<()> {
    let mut client = host.cluster.connect()?;
    client.batch_execute(
        "SELECT pg_logical_emit_message(false, 'bench', repeat('x', 1048576))
         FROM generate_series(1, 3072);
         CREATE UNLOGGED TABLE filler (page text);
         ALTER TABLE filler ALTER page SET STORAGE PLAIN;
         INSERT INTO filler SELECT repeat('x', 8000) FROM generate_series(1, 400000);
         DROP TABLE filler",
    )?;
    // What a checkpoint leaves of the files depends on the one before, too.
    for _ in 0..2 {
        client.batch_execute("CHECKPOINT")?;
    }
    Ok(())
}

fn synchronize(sessions: &mut [Session], synchronous: bool) -> Result<()> {
    let value = if synchronous { "on" } else { "off" };
    for session in sessions {
        session.connection().simple(&format!("SET synchronous_commit = {value}"))?;
    }
    Ok(())
}

fn inserts(
    host: &Host,
    options: &Options,
    subjects: &[&Subject],
    pool: &Pool,
) -> Result<Vec<Inserts>> {
    let most = options.clients.iter().copied().max().unwrap_or(1);
    let cores = host.cores.get(..most).context("fewer cores than clients; see --clients")?;
    let mut sessions = Vec::new();
    for subject in subjects {
        sessions.push(writers(host, subject, cores, pool)?);
    }
    let mut cases = Vec::new();
    for synchronous in [false, true] {
        for &clients in &options.clients {
            for subject in 0..subjects.len() {
                cases.push((synchronous, clients, subject, Vec::new()));
            }
        }
    }
    let progress = Progress::bar("Inserting", (options.rounds * cases.len()) as u64);
    for _ in 0..options.rounds {
        for (synchronous, clients, subject, rounds) in &mut cases {
            let sessions: &mut [Session] = sessions.get_mut(*subject).context("no sessions")?;
            let sessions = sessions.get_mut(..*clients).context("fewer sessions than clients")?;
            synchronize(sessions, *synchronous)?;
            rounds.push(round(sessions, &pool.0, options.time)?);
            progress.advance(1);
        }
    }
    progress.done(&format!("{} rounds of {} cases", options.rounds, cases.len()));
    let inserts = cases.into_iter().map(|(synchronous, clients, subject, rounds)| Inserts {
        table: subjects[subject].label.to_owned(),
        synchronous,
        load: Load::new(clients, rounds),
    });
    Ok(inserts.collect())
}

/// One round of queries on the first session, and of inserts on the second meanwhile.
fn side_by_side(
    pair: &mut [Session; 2],
    queries: &[Request],
    pool: &Pool,
    time: Duration,
) -> Result<(Round, Round)> {
    let asking = pair[0].core();
    let results = together(pair, |session| {
        let requests = if session.core() == asking { queries } else { &pool.0 };
        session.go_on(requests, time)
    })?;
    let mut results = results.into_iter();
    let mut next = || results.next().map(|it| sum_up(vec![it])).context("a client is missing");
    Ok((next()?, next()?))
}

fn beside(
    host: &Host,
    options: &Options,
    subjects: &[&Subject],
    data: &Dataset,
    pool: &Pool,
) -> Result<Vec<Beside>> {
    let &[reading, writing, ..] = host.cores.as_slice() else { return Ok(Vec::new()) };
    let operator = data.metric.sql().operator;
    let queries: Vec<Request> = data
        .queries
        .rows()
        .map(|query| Request::new(&[&wire_form(query)?]))
        .collect::<Result<_>>()?;
    let subjects: Vec<&&Subject> = subjects.iter().filter(|it| it.indexed).collect();
    let mut cases = Vec::new();
    for subject in &subjects {
        let mut reader =
            Session::open(host.cluster.socket_dir(), subject.engine.database(), reading)?;
        let own = subject.engine.session(options);
        reader.connection().simple(&format!("SET plan_cache_mode = force_generic_plan; {own}"))?;
        let select = format!(
            "SELECT id FROM {} ORDER BY v {operator} $1 LIMIT {}",
            subject.table, data.nearest
        );
        reader.connection().prepare(&select)?;
        let mut writer = writers(host, subject, &[writing], pool)?.pop().context("no session")?;
        writer.begin_at(pool.0.len() / 3);
        synchronize(std::slice::from_mut(&mut writer), false)?;
        cases.push(([reader, writer], select, [Vec::new(), Vec::new(), Vec::new()]));
    }
    let progress = Progress::bar("Queries beside inserts", (options.rounds * cases.len()) as u64);
    for _ in 0..options.rounds {
        for (pair, _, [quiet, busy, inserting]) in &mut cases {
            let [reader, _] = pair;
            quiet.push(round(std::slice::from_mut(reader), &queries, options.time)?);
            let (asked, inserted) = side_by_side(pair, &queries, pool, options.time)?;
            busy.push(asked);
            inserting.push(inserted);
            progress.advance(1);
        }
    }
    progress.done(&format!("{} rounds", options.rounds));
    let mut results = Vec::new();
    for ((pair, select, [quiet, busy, inserting]), subject) in cases.into_iter().zip(subjects) {
        let [mut reader, mut writer] = pair;
        // The log is to be as full as it is in the middle of inserts.
        round(std::slice::from_mut(&mut writer), &pool.0, options.time)?;
        let recall = recall(&mut reader, &select, data, &queries)?;
        results.push(Beside {
            table: subject.label.to_owned(),
            quiet: Load::new(1, quiet),
            busy: Load::new(1, busy),
            inserting: Load::new(1, inserting),
            recall,
        });
    }
    Ok(results)
}

/// The recall of what the session answers, against sequential scans.
fn recall(reader: &mut Session, select: &str, data: &Dataset, queries: &[Request]) -> Result<f64> {
    let queries = queries.get(..CHECKED).unwrap_or(queries);
    let reader = std::slice::from_mut(reader);
    let found = answers(reader, queries)?;
    for session in reader.iter_mut() {
        let connection = session.connection();
        connection.simple("SET enable_seqscan = on; SET enable_indexscan = off")?;
        connection.prepare(select)?;
    }
    let exact = answers(reader, queries)?;
    let (mut hits, mut wanted) = (0, 0);
    for (query, (found, exact)) in data.queries.rows().zip(found.iter().zip(&exact)) {
        let (found, exact) = (data.ranks(query, found)?, data.ranks(query, exact)?);
        let bound = exact.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        wanted += exact.len();
        hits += found.iter().filter(|rank| data.within(**rank, bound)).count().min(exact.len());
    }
    Ok(hits as f64 / wanted as f64)
}

fn copies(
    host: &Host,
    options: &Options,
    subjects: &[&Subject],
    data: &Dataset,
    first: usize,
) -> Result<Vec<Copies>> {
    let most = (data.base.len() - first).min(COPIED);
    let mut copies: Vec<Copies> = subjects
        .iter()
        .map(|subject| {
            let rows = if subject.engine == Engine::Hnsw { (most / FEWER).max(1) } else { most };
            let (table, none) = (subject.label.to_owned(), Vec::new);
            Copies { table, rows, seconds: none(), flushed_seconds: none() }
        })
        .collect();
    let progress = Progress::bar("Copying", (options.rounds * copies.len()) as u64);
    for _ in 0..options.rounds {
        for (copies, subject) in copies.iter_mut().zip(subjects) {
            let mut client = peer::database(host, subject.engine)?;
            let numbers = (0_i32..).zip(data.base.rows()).skip(first).take(copies.rows);
            let started = Instant::now();
            peer::copy(&mut client, subject.table, numbers, |_| ())?;
            copies.seconds.push(started.elapsed().as_secs_f64());
            if subject.indexed && subject.engine == Engine::Drift {
                let flush = "SELECT drift_flush(indexrelid) FROM pg_index WHERE indrelid = $1::text::regclass";
                client.query(flush, &[&subject.table])?;
            }
            copies.flushed_seconds.push(started.elapsed().as_secs_f64());
            progress.advance(1);
        }
    }
    progress.done(&format!("{} rounds", options.rounds));
    Ok(copies)
}

fn print(results: &Results) {
    println!(
        "\n{}: {} rows at first, {} dimensions",
        results.name, results.indexed, results.dimensions
    );
    println!(
        "\n{:<28}{:>10}{:>12}{:>9}{:>9}{:>14}{:>12}",
        "inserts, each committed",
        "clients",
        "rows/s",
        "p50 us",
        "p99 us",
        "of no index",
        "drift is"
    );
    let rate = |table: &str, like: &Inserts| {
        let same = |it: &&Inserts| {
            it.table == table
                && it.synchronous == like.synchronous
                && it.load.clients == like.load.clients
        };
        results.inserts.iter().find(same).map_or(f64::NAN, |it| it.load.median.qps)
    };
    for case in &results.inserts {
        let Round { qps, p50_us, p99_us, .. } = case.load.median;
        let mode = if case.synchronous { "on" } else { "off" };
        println!(
            "{:<28}{:>10}{qps:>12.0}{p50_us:>9.0}{p99_us:>9.0}{:>13.0}%{:>11.1}x",
            format!("{}, sync {mode}", case.table),
            case.load.clients,
            100.0 * qps / rate("no index", case),
            rate("drift", case) / qps
        );
    }
    println!(
        "\n{:<28}{:>10}{:>12}{:>18}{:>14}",
        "COPY", "rows", "rows/s", "flushed rows/s", "of no index"
    );
    let none = results.copies.first().map_or(f64::NAN, Copies::flushed_rate);
    for copies in &results.copies {
        let flushed = copies.flushed_rate();
        println!(
            "{:<28}{:>10}{:>12.0}{flushed:>18.0}{:>13.0}%",
            copies.table,
            copies.rows,
            copies.rate(),
            100.0 * flushed / none
        );
    }
    println!(
        "\n{:<20}{:>8}{:>8}{:>18}{:>18}{:>12}{:>9}",
        "queries, us", "p50", "p99", "p50 beside", "p99 beside", "inserts/s", "recall"
    );
    for beside in &results.beside {
        let (quiet, busy) = (beside.quiet.median, beside.busy.median);
        let times = |busy: f64, quiet: f64| format!("{busy:.0} ({:.1}x)", busy / quiet);
        println!(
            "{:<20}{:>8.0}{:>8.0}{:>18}{:>18}{:>12.0}{:>9.4}",
            beside.table,
            quiet.p50_us,
            quiet.p99_us,
            times(busy.p50_us, quiet.p50_us),
            times(busy.p99_us, quiet.p99_us),
            beside.inserting.median.qps,
            beside.recall
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_the_median_time() {
        let copies = Copies {
            table: String::new(),
            rows: 100,
            seconds: vec![1.0, 4.0, 2.0],
            flushed_seconds: vec![5.0, 4.0, 10.0],
        };
        assert_eq!((copies.rate(), copies.flushed_rate()), (50.0, 20.0));
    }
}

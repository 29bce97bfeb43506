//! Thousands of random statements from several sessions, and exact mode held against the
//! sequential scan after each batch.
//!
//! `DRIFT_SEED` repeats a run's statements; `DRIFT_SOAK=1` makes runs ten times as long, and the
//! one with the janitor last for ten minutes.

use anyhow::{Context, Result};
use harness::cluster::{Builder, Cluster};
use harness::oracle::{compare, require_quiet_log, DISTANCES};
use postgres::error::SqlState;
use postgres::Client;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::{Duration, Instant};

const SESSIONS: u64 = 4;

/// How long a run is.
#[derive(Clone, Copy)]
enum Length {
    Batches(usize),
    Time(Duration),
}

impl Length {
    /// Whether there is to be another batch after so many.
    fn goes_on(self, batches: usize, begun: Instant) -> bool {
        match self {
            Length::Batches(wanted) => batches < wanted,
            Length::Time(wanted) => begun.elapsed() < wanted,
        }
    }
}

fn seed() -> u64 {
    let seed = std::env::var("DRIFT_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| StdRng::from_os_rng().random());
    println!("DRIFT_SEED={seed}");
    seed
}

/// A vector as text: near one of a few centres that move on with `epoch`, or an odd one; none is
/// NULL.
fn vector(rng: &mut StdRng, dims: usize, epoch: usize) -> Option<String> {
    let centre = f64::from(rng.random_range(0..5)) * 3.0 + epoch as f64;
    let scale = match rng.random_range(0..100) {
        0..3 => return None,
        3..5 => 0.0,
        5..7 => 1e15,
        7..9 => 1e-15,
        _ => 1.0,
    };
    let components = (0..dims).map(|d| {
        let value = ((d as f64 * 1.3 + centre).sin() * 4.0 + rng.random_range(-1.0..1.0)) * scale;
        format!("{value:.3e}")
    });
    Some(format!("[{}]", components.collect::<Vec<_>>().join(",")))
}

/// One random statement, or a few in a transaction.
fn step(client: &mut Client, rng: &mut StdRng, dims: usize, epoch: usize) -> Result<()> {
    let many = if dims > 1000 { 5 } else { 60 };
    let insert = |client: &mut Client, rng: &mut StdRng, count: usize| -> Result<()> {
        let rows: Vec<Option<String>> = (0..count).map(|_| vector(rng, dims, epoch)).collect();
        client.execute("INSERT INTO t (e) SELECT v::vector FROM unnest($1::text[]) v", &[&rows])?;
        Ok(())
    };
    match rng.random_range(0..100) {
        0..30 => insert(client, rng, 1)?,
        30..45 => {
            let count = rng.random_range(2..many);
            insert(client, rng, count)?;
        }
        45..60 => {
            let value = vector(rng, dims, epoch);
            let (modulus, rest) = (rng.random_range(20..200), rng.random_range(0..20));
            client.execute(
                "UPDATE t SET e = $1::text::vector WHERE id % $2 = $3",
                &[&value, &modulus, &rest],
            )?;
        }
        60..72 => {
            let (modulus, rest) = (rng.random_range(4..60), rng.random_range(0..4));
            client.execute("DELETE FROM t WHERE id % $1 = $2", &[&modulus, &rest])?;
        }
        72..77 => client.batch_execute("VACUUM t")?,
        77..83 => {
            let index = format!("t_{}", rng.random_range(0..DISTANCES.len()));
            client.execute("SELECT drift_flush($1::text::regclass)", &[&index])?;
        }
        83..90 => {
            client.batch_execute("BEGIN; SAVEPOINT a")?;
            insert(client, rng, 3)?;
            client.batch_execute("ROLLBACK TO a; DELETE FROM t WHERE id % 9 = 1")?;
            insert(client, rng, 2)?;
            client.batch_execute(if rng.random_bool(0.5) { "ROLLBACK" } else { "COMMIT" })?;
        }
        90..92 => client.batch_execute("REINDEX INDEX t_1")?,
        92..99 => {
            let query =
                vector(rng, dims, epoch).unwrap_or_else(|| format!("[1{}]", ",0".repeat(dims - 1)));
            let distance = DISTANCES[rng.random_range(0..DISTANCES.len())];
            let limit = [Some(1), Some(10), Some(100), None][rng.random_range(0..4)];
            compare(client, "t", distance, &query, limit)?;
        }
        _ => client.batch_execute("ANALYZE t")?,
    }
    Ok(())
}

/// A session's share of a batch. A deadlock between REINDEX and others only ends its statement.
fn session(
    client: &mut Client,
    rng: &mut StdRng,
    dims: usize,
    epoch: usize,
    steps: usize,
) -> Result<()> {
    for _ in 0..steps {
        match step(client, rng, dims, epoch) {
            Err(error) if is_deadlock(&error) => client.batch_execute("ROLLBACK")?,
            result => result?,
        }
    }
    Ok(())
}

fn is_deadlock(error: &anyhow::Error) -> bool {
    let code = error.downcast_ref::<postgres::Error>().and_then(|error| error.code());
    code == Some(&SqlState::T_R_DEADLOCK_DETECTED)
}

/// The most private memory that any of the janitor's processes had, in kilobytes.
fn janitors_memory(cluster: &Cluster, client: &mut Client) -> Result<u64> {
    let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'drift janitor%'";
    let pids: Vec<i32> = client.query(sql, &[])?.iter().map(|row| row.get(0)).collect();
    Ok(pids.into_iter().filter_map(|pid| cluster.private_memory(pid)).max().unwrap_or(0) / 1024)
}

/// Memory that a process of the janitor may have.
const MOST_MEMORY: u64 = 64 << 10;

fn run(builder: Builder, dims: usize, length: Length, steps: usize) -> Result<()> {
    let seed = seed();
    let cluster = builder.start()?;
    let mut judge = cluster.connect()?;
    judge.batch_execute(&format!(
        "CREATE EXTENSION drift_pg; CREATE TABLE t (id serial PRIMARY KEY, e vector({dims}))"
    ))?;
    for (nth, distance) in DISTANCES.iter().enumerate() {
        judge.batch_execute(&format!(
            "CREATE INDEX t_{nth} ON t USING drift (e {})",
            distance.class
        ))?;
    }
    let mut sessions = Vec::new();
    for nth in 0..SESSIONS {
        let mut client = cluster.connect()?;
        if nth % 2 == 0 {
            client.batch_execute("SET drift.log_limit = '64kB'")?;
        }
        sessions.push((client, StdRng::seed_from_u64(seed.wrapping_add(nth))));
    }
    let mut rng = StdRng::seed_from_u64(!seed);
    let begun = Instant::now();
    let mut batches = 0;
    let mut memory = Vec::new();
    while length.goes_on(batches, begun) {
        let epoch = batches;
        batches += 1;
        std::thread::scope(|scope| {
            let running: Vec<_> = sessions
                .iter_mut()
                .map(|(client, rng)| scope.spawn(move || session(client, rng, dims, epoch, steps)))
                .collect();
            running.into_iter().try_for_each(|handle| match handle.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
        .with_context(|| format!("batch {epoch} of DRIFT_SEED={seed}"))?;
        let mut query = None;
        while query.is_none() {
            query = vector(&mut rng, dims, epoch);
        }
        for distance in DISTANCES {
            for limit in [Some(10), None] {
                compare(&mut judge, "t", distance, query.as_deref().unwrap_or_default(), limit)
                    .with_context(|| format!("after batch {epoch} of DRIFT_SEED={seed}"))?;
            }
        }
        memory.push(janitors_memory(&cluster, &mut judge)?);
    }
    let (first, last) = memory.split_at(memory.len() / 2);
    let most = |part: &[u64]| part.iter().copied().max().unwrap_or(0);
    println!(
        "{batches} batches in {:.0?}; janitor: {} kB at most in the first half, {} in the second",
        begun.elapsed(),
        most(first),
        most(last)
    );
    assert!(most(&memory) < MOST_MEMORY, "memory of the janitor's processes: {memory:?}");

    judge.batch_execute("VACUUM t")?;
    let last =
        vector(&mut rng, dims, batches).unwrap_or_else(|| format!("[1{}]", ",0".repeat(dims - 1)));
    for (nth, distance) in DISTANCES.into_iter().enumerate() {
        compare(&mut judge, "t", distance, &last, None)?;
        let index = format!("t_{nth}");
        let info = judge.query_one(
            "SELECT segments, arenas, rows, log_rows, pg_relation_size($1::text::regclass)
             FROM drift_index_info($1::text::regclass)",
            &[&index],
        )?;
        let (segments, arenas): (i32, i32) = (info.get(0), info.get(1));
        let (rows, log_rows, bytes): (i64, i64, i64) = (info.get(2), info.get(3), info.get(4));
        println!("{index}: {segments} segments, {rows} rows, {bytes} bytes");
        assert!(segments <= 12 && arenas == segments && log_rows == 0);
        let live = rows * (dims as i64 * 4 + 6);
        assert!(bytes < 8 * live + (16 << 20), "{bytes} bytes for {live} bytes of rows");
        let routers = usize::from(segments > 0);
        assert_eq!(cluster.arena_files("postgres", &index)?.len(), segments as usize + routers);
    }
    require_quiet_log(&cluster.log())
}

fn is_soak() -> bool {
    std::env::var_os("DRIFT_SOAK").is_some()
}

fn batches(few: usize) -> Length {
    Length::Batches(if is_soak() { 10 * few } else { few })
}

#[test]
fn short_vectors() -> Result<()> {
    run(Cluster::builder(), 16, batches(12), 60)
}

/// The library preloaded, with a memtable of this size.
fn preloaded(memtable: &str) -> Builder {
    Cluster::builder()
        .conf("shared_preload_libraries", "drift_pg")
        .conf("drift.memtable_size", memtable)
}

#[test]
fn short_vectors_and_the_janitor() -> Result<()> {
    let length = if is_soak() { Length::Time(Duration::from_secs(600)) } else { batches(12) };
    run(preloaded("128MB").conf("drift.log_limit", "64kB"), 16, length, 60)
}

#[test]
fn vectors_longer_than_a_page() -> Result<()> {
    run(Cluster::builder(), 2100, batches(4), 20)
}

#[test]
fn short_vectors_in_a_memtable() -> Result<()> {
    run(preloaded("128MB").conf("drift.janitor", "off"), 16, batches(12), 60)
}

#[test]
fn a_memtable_that_is_too_small() -> Result<()> {
    run(preloaded("384kB"), 16, batches(6), 60)?;
    run(preloaded("1MB"), 2100, batches(4), 20)
}

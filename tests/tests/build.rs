//! Builds: larger than memory, cancelled, watched, and beside writers.

use anyhow::{ensure, Context, Result};
use harness::cluster::Cluster;
use harness::oracle::{compare, require_quiet_log, DISTANCES};
use postgres::error::SqlState;
use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// `rows` vectors of 64 components around 50 centres.
fn fill(cluster: &Cluster, rows: u32) -> Result<()> {
    cluster.connect()?.batch_execute(&format!(
        "CREATE EXTENSION drift_pg;
         CREATE TABLE t (id integer PRIMARY KEY, e vector(64));
         INSERT INTO t SELECT i, (SELECT array_agg(sin(i % 50 * d * 0.71) * 5
                 + (hashint4(i * 64 + d) % 1000) / 1000.0 ORDER BY d)
             FROM generate_series(1, 64) d)::vector
         FROM generate_series(1, {rows}) i"
    ))?;
    Ok(())
}

fn query() -> String {
    let components: Vec<String> = (0..64).map(|d| (f64::from(d) * 2.1).sin().to_string()).collect();
    format!("[{}]", components.join(","))
}

/// Files in the database's directory and in that of temporary files that a build may leave.
fn leftovers(cluster: &Cluster) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for database in fs::read_dir(cluster.data_dir().join("base"))? {
        for file in fs::read_dir(database?.path())? {
            let name = file?.file_name().to_string_lossy().into_owned();
            if name.starts_with("pgsql_tmp") {
                found.push(name);
            }
        }
    }
    Ok(found)
}

#[test]
fn larger_than_memory() -> Result<()> {
    let cluster = Cluster::builder().conf("log_temp_files", "0").start()?;
    fill(&cluster, 40_000)?;
    let mut client = cluster.connect()?;
    client
        .batch_execute("SET maintenance_work_mem = '1MB'; CREATE INDEX t_e ON t USING drift (e)")?;
    ensure!(cluster.log().contains("temporary file"), "the build went through files");
    // The arenas of the segment and of the router.
    ensure!(leftovers(&cluster)?.len() == 2, "{:?}", leftovers(&cluster)?);
    let tuples: f32 =
        client.query_one("SELECT reltuples FROM pg_class WHERE relname = 't_e'", &[])?.get(0);
    ensure!(tuples == 40_000.0, "{tuples}");
    for limit in [Some(100), None] {
        compare(&mut client, "t", DISTANCES[0], &query(), limit)?;
    }
    require_quiet_log(&cluster.log())
}

#[test]
fn cancelled_within_a_second() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    fill(&cluster, 120_000)?;
    let mut client = cluster.connect()?;
    client.batch_execute("SET maintenance_work_mem = '1GB'")?;
    let build = "CREATE INDEX t_e ON t USING drift (e); DROP INDEX t_e";
    // The first one touches memory that the others find ready.
    client.batch_execute(build)?;
    let started = Instant::now();
    client.batch_execute(build)?;
    let whole = started.elapsed();
    println!("120,000 rows of 64 components are built in {whole:.1?}");
    let mut cancelled = 0;
    for part in 1..10 {
        let delay = whole * part / 10;
        let token = client.cancel_token();
        let started = Instant::now();
        let canceller = std::thread::spawn(move || {
            std::thread::sleep(delay);
            let asked = Instant::now();
            token.cancel_query(postgres::NoTls).map(|()| asked)
        });
        let result = client.batch_execute("CREATE INDEX t_e ON t USING drift (e)");
        let ended = Instant::now();
        let asked = canceller.join().map_err(|_| anyhow::anyhow!("canceller panicked"))??;
        match result {
            Err(error) => {
                ensure!(error.code() == Some(&SqlState::QUERY_CANCELED), "{error}");
                let took = ended.duration_since(asked);
                ensure!(took < Duration::from_secs(1), "cancelled after {delay:?}: took {took:?}");
                cancelled += 1;
            }
            // Too late: it was ready. What is cancelled is the next statement, if any.
            Ok(()) => {
                let next = client.batch_execute("SELECT pg_sleep(0.2)");
                let code = next.err().and_then(|error| error.code().cloned());
                ensure!(code.is_none_or(|code| code == SqlState::QUERY_CANCELED), "{delay:?}");
                client.batch_execute("DROP INDEX t_e")?;
            }
        }
        // An error reaches the client before its transaction has been cleared away.
        client.batch_execute("SELECT 1")?;
        ensure!(
            leftovers(&cluster)?.is_empty(),
            "{:?} after {:?}",
            leftovers(&cluster)?,
            started.elapsed()
        );
    }
    ensure!(cancelled >= 5, "{cancelled} of 9");
    client.batch_execute("CREATE INDEX t_e ON t USING drift (e)")?;
    compare(&mut client, "t", DISTANCES[0], &query(), Some(100))?;
    require_quiet_log(&cluster.log())
}

#[test]
fn phases_and_counts_are_shown() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    fill(&cluster, 120_000)?;
    let done = AtomicBool::new(false);
    let (mut phases, mut counts) = (BTreeSet::new(), BTreeSet::new());
    std::thread::scope(|scope| -> Result<()> {
        let mut builder = cluster.connect()?;
        let done = &done;
        let building = scope.spawn(move || {
            let result = builder.batch_execute(
                "SET maintenance_work_mem = '8MB'; CREATE INDEX t_e ON t USING drift (e)",
            );
            done.store(true, Ordering::Relaxed);
            result
        });
        let mut watcher = cluster.connect()?;
        while !done.load(Ordering::Relaxed) {
            let progress = "SELECT phase, tuples_done FROM pg_stat_progress_create_index";
            for row in watcher.query(progress, &[])? {
                phases.insert(row.get::<_, String>(0));
                counts.insert(row.get::<_, i64>(1));
            }
        }
        Ok(building.join().map_err(|_| anyhow::anyhow!("builder panicked"))??)
    })?;
    for phase in ["scanning table", "training centroids", "assigning rows", "writing segment"] {
        let full = format!("building index: {phase}");
        ensure!(phases.contains(&full), "{full} is not in {phases:?}");
    }
    ensure!(counts.len() > 10, "{counts:?}");
    Ok(())
}

#[test]
fn beside_writers() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    fill(&cluster, 20_000)?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let mut writer = cluster.connect()?;
        let done = &done;
        let writing = scope.spawn(move || -> Result<u32> {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                writer.batch_execute(&format!(
                    "INSERT INTO t SELECT id + 100000 + {rounds} * 50, e FROM t
                         WHERE id BETWEEN 50 AND 99;
                     DELETE FROM t WHERE id % 97 = {rounds} % 97"
                ))?;
                rounds += 1;
            }
            Ok(rounds)
        });
        let mut builder = cluster.connect()?;
        let mut build = || -> Result<()> {
            builder.batch_execute("CREATE INDEX CONCURRENTLY t_e ON t USING drift (e)")?;
            compare(&mut builder, "t", DISTANCES[0], &query(), None).context("built")?;
            builder.batch_execute("REINDEX INDEX CONCURRENTLY t_e")?;
            compare(&mut builder, "t", DISTANCES[0], &query(), None).context("rebuilt")?;
            builder.batch_execute("VACUUM t")?;
            compare(&mut builder, "t", DISTANCES[0], &query(), None).context("vacuumed")
        };
        let built = build();
        done.store(true, Ordering::Relaxed);
        let rounds = writing.join().map_err(|_| anyhow::anyhow!("writer panicked"))??;
        built?;
        ensure!(rounds > 1, "{rounds} rounds of writing");
        Ok(())
    })?;
    compare(&mut cluster.connect()?, "t", DISTANCES[0], &query(), None)?;
    require_quiet_log(&cluster.log())
}

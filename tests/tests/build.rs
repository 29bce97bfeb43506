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

/// Settings with which any table is read by workers too.
const WORKERS: &str = "SET min_parallel_table_scan_size = 0;
    SET maintenance_work_mem = '256MB'; SET max_parallel_maintenance_workers = 2";

/// Makes `reader(e)`, which is `e`, takes a while, so that workers are there before the leader is
/// done, and runs `body` first.
fn slow_reader(cluster: &Cluster, body: &str) -> Result<()> {
    cluster.connect()?.batch_execute(&format!(
        "CREATE OR REPLACE FUNCTION reader(e vector) RETURNS vector
         IMMUTABLE PARALLEL SAFE LANGUAGE plpgsql AS
         $$ BEGIN {body} PERFORM pg_sleep(0.0002); RETURN e; END $$"
    ))?;
    Ok(())
}

#[test]
fn workers_read_the_table_too() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    fill(&cluster, 5_000)?;
    slow_reader(&cluster, "RAISE LOG 'read by %', pg_backend_pid();")?;
    let mut client = cluster.connect()?;
    client.batch_execute(WORKERS)?;
    for build in [
        "CREATE INDEX t_e ON t USING drift ((reader(e)::vector(64)))",
        "CREATE INDEX CONCURRENTLY t_e ON t USING drift ((reader(e)::vector(64)))",
    ] {
        let before = cluster.log().matches("read by ").count();
        client.batch_execute(build).context(build)?;
        let read = cluster.log().matches("read by ").count() - before;
        ensure!(read == 5_000, "{build}: {read} rows were read");
        let counted = "SELECT count(*) FROM pg_class
            WHERE relname IN ('t', 't_e') AND reltuples = 5000";
        let counted: i64 = client.query_one(counted, &[])?.get(0);
        ensure!(counted == 2, "{build}: of table and index {counted} are counted right");
        client.batch_execute("DROP INDEX t_e")?;
    }
    let log = cluster.log();
    let readers: BTreeSet<&str> =
        log.split("read by ").skip(1).filter_map(|rest| rest.split_whitespace().next()).collect();
    // A leader and its two workers, twice; at times one comes too late.
    ensure!(readers.len() >= 4, "{readers:?}");

    // The same rows as a scan of the table, each once.
    client.batch_execute("CREATE INDEX t_e ON t USING drift (e)")?;
    for limit in [Some(100), None] {
        compare(&mut client, "t", DISTANCES[0], &query(), limit)?;
    }
    Ok(())
}

/// Tables that only their own transaction sees, partitions, unlogged tables, and savepoints that are
/// given up.
#[test]
fn workers_build_wherever_an_index_can_be_made() -> Result<()> {
    let cluster = Cluster::builder().conf("log_min_messages", "debug1").start()?;
    fill(&cluster, 4_000)?;
    let mut client = cluster.connect()?;
    client.batch_execute(WORKERS)?;
    let own = "CREATE TABLE own (LIKE t); INSERT INTO own SELECT * FROM t;";
    let index = |table: &str| format!("CREATE INDEX ON {table} USING drift (e);");
    let failing = "BEGIN CREATE INDEX ON own USING drift (e); PERFORM 1 / 0;
         EXCEPTION WHEN division_by_zero THEN NULL; END";
    for (what, table, statements) in [
        ("in its transaction", "own", format!("BEGIN; {own} {} COMMIT", index("own"))),
        ("in a block", "own", format!("DO $$ BEGIN {own} {} END $$", index("own"))),
        (
            "after a savepoint",
            "own",
            format!("DO $$ BEGIN {own} {failing}; {} END $$", index("own")),
        ),
        ("unlogged", "own", format!("{own} ALTER TABLE own SET UNLOGGED; {}", index("own"))),
        ("some rows", "own", format!("{own} DELETE FROM own WHERE id % 3 = 0; {}", index("own"))),
        (
            "partitions",
            "parted",
            format!(
                "CREATE TABLE parted (LIKE t) PARTITION BY RANGE (id);
                 CREATE TABLE low PARTITION OF parted FOR VALUES FROM (0) TO (1500);
                 CREATE TABLE high PARTITION OF parted FOR VALUES FROM (1500) TO (5000);
                 INSERT INTO parted SELECT * FROM t; {}",
                index("parted")
            ),
        ),
        (
            "emptied",
            "own",
            format!(
                "{own} {} BEGIN; TRUNCATE own; INSERT INTO own SELECT * FROM t; COMMIT",
                index("own")
            ),
        ),
    ] {
        let started = || cluster.log().matches("parallel worker for PID").count();
        let before = started();
        client.batch_execute(&statements).context(what)?;
        ensure!(started() > before, "{what}: no worker took part");
        for limit in [Some(20), None] {
            compare(&mut client, table, DISTANCES[0], &query(), limit).context(what)?;
        }
        client.batch_execute(&format!("DROP TABLE {table}"))?;
    }
    require_quiet_log(&cluster.log())
}

#[test]
fn workers_and_files_of_rows() -> Result<()> {
    let settings = Cluster::builder().conf("log_temp_files", "0");
    let cluster = settings.conf("log_min_messages", "debug1").start()?;
    fill(&cluster, 20_000)?;
    let mut client = cluster.connect()?;
    // Under 64 MB PostgreSQL plans no worker; half of it holds 125,000 rows.
    client.batch_execute(
        "INSERT INTO t SELECT id + 20000 * k, e + array_fill(k / 100.0, ARRAY[64])::vector
         FROM t, generate_series(1, 7) k;
         SET maintenance_work_mem = '64MB'",
    )?;
    let build = "CREATE INDEX t_e ON t USING drift (e)";
    for timeout in [10, 30, 60, 100, 200] {
        client.batch_execute(&format!("SET statement_timeout = {timeout}"))?;
        let started = Instant::now();
        let Err(error) = client.batch_execute(build) else {
            anyhow::bail!("was built in {timeout} ms")
        };
        ensure!(error.code() == Some(&SqlState::QUERY_CANCELED), "{error}");
        ensure!(started.elapsed() < Duration::from_secs(1), "{timeout}: {:?}", started.elapsed());
        client.batch_execute("SET statement_timeout = 0")?;
        ensure!(leftovers(&cluster)?.is_empty(), "{:?}", leftovers(&cluster)?);
    }
    client.batch_execute(build)?;
    let log = cluster.log();
    ensure!(log.contains("temporary file"), "the build went through files");
    ensure!(log.contains("parallel worker for PID"), "a worker took part");
    compare(&mut client, "t", DISTANCES[0], &query(), None)?;
    require_quiet_log(&log)
}

#[test]
fn an_error_of_a_worker_ends_the_build() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    fill(&cluster, 5_000)?;
    let mut client = cluster.connect()?;
    client.batch_execute(WORKERS)?;
    let leader: i32 = client.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    let build = "CREATE INDEX t_e ON t USING drift ((reader(e)::vector(64)))";
    for (body, message) in [
        ("RAISE 'no row of mine';", "no row of mine"),
        ("PERFORM pg_terminate_backend(pg_backend_pid());", "due to administrator command"),
    ] {
        slow_reader(&cluster, &format!("IF pg_backend_pid() <> {leader} THEN {body} END IF;"))?;
        let Err(error) = client.batch_execute(build) else { anyhow::bail!("{body}: was built") };
        let said = error.as_db_error().map(|error| error.message()).unwrap_or_default();
        ensure!(said.contains(message), "{body}: {error:?}");
        client.batch_execute("SELECT 1")?;
        ensure!(leftovers(&cluster)?.is_empty(), "{:?}", leftovers(&cluster)?);
    }
    slow_reader(&cluster, "")?;
    client.batch_execute(build)?;
    client.batch_execute("DROP INDEX t_e; CREATE INDEX t_e ON t USING drift (e)")?;
    compare(&mut client, "t", DISTANCES[0], &query(), None)
}

/// An index does not serve those who still see a version of a row whose HOT chain goes on with
/// another value, whoever has read that chain.
#[test]
fn hot_chains_that_workers_meet_are_heeded() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    fill(&cluster, 5_000)?;
    let mut client = cluster.connect()?;
    // The leader is slow, so that workers come to the last rows.
    let leader: i32 = client.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    let wait = format!("IF pg_backend_pid() = {leader} THEN PERFORM pg_sleep(0.01); END IF;");
    slow_reader(&cluster, &wait)?;
    client.batch_execute(&format!(
        "{WORKERS}; CREATE TABLE h (id integer, e vector(64)) WITH (fillfactor = 40);
         INSERT INTO h SELECT id, e FROM t"
    ))?;
    let mut reader = cluster.connect()?;
    let mut old = reader
        .build_transaction()
        .isolation_level(postgres::IsolationLevel::RepeatableRead)
        .start()?;
    let seen = |row: postgres::Row| row.get::<_, i64>(0);
    ensure!(seen(old.query_one("SELECT count(*) FROM h", &[])?) == 5_000);
    client.execute("UPDATE h SET e = e + e WHERE id > 4990", &[])?;
    client.batch_execute("CREATE INDEX h_e ON h USING drift ((reader(e)::vector(64)))")?;
    let broken: bool = client
        .query_one("SELECT indcheckxmin FROM pg_index WHERE indexrelid = 'h_e'::regclass", &[])?
        .get(0);
    ensure!(broken, "the index serves old snapshots");
    ensure!(seen(old.query_one("SELECT count(*) FROM h", &[])?) == 5_000);
    Ok(())
}

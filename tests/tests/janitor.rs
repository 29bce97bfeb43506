//! The janitor: work in the background, in nobody's way.

use anyhow::{ensure, Context, Result};
use harness::cluster::{Builder, Cluster, Stop};
use harness::oracle::{compare, require_quiet_log, DISTANCES};
use postgres::Client;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

const QUERY: &str = "[1,-1,0.5,0,2,0.1,1,1]";
/// How long the janitor may take for anything a test waits for, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(10);
/// After three seconds without rows the janitor takes an index for one that is left alone.
const LONGER_THAN_QUIET: Duration = Duration::from_secs(10);

/// A function that makes vectors of any length, quickly.
const WAVE: &str = "
    CREATE EXTENSION drift_pg;
    CREATE FUNCTION wave(i integer, dims integer) RETURNS vector LANGUAGE sql IMMUTABLE AS
    $$ SELECT array_agg(sin(i * 0.37 + d * d * 1.7) * (1 + i % 5) ORDER BY d)::vector
       FROM generate_series(1, dims) d $$;";

fn preloaded() -> Builder {
    Cluster::builder()
        .conf("shared_preload_libraries", "drift_pg")
        .conf("drift.log_janitor_min_duration", "0")
        .conf("drift.log_limit", "64kB")
}

/// A table `t` with an index `t_e`, both empty.
fn table(client: &mut Client, dims: u32) -> Result<()> {
    client.batch_execute(WAVE)?;
    client.batch_execute(&format!(
        "CREATE TABLE t (id integer, e vector({dims})); CREATE INDEX t_e ON t USING drift (e)"
    ))?;
    Ok(())
}

fn insert(client: &mut Client, dims: u32, from: i32, to: i32) -> Result<()> {
    let sql =
        format!("INSERT INTO t SELECT i, wave(i, {dims}) FROM generate_series({from}, {to}) i");
    Ok(client.batch_execute(&sql)?)
}

fn check(client: &mut Client) -> Result<()> {
    for limit in [Some(10), None] {
        compare(client, "t", DISTANCES[0], QUERY, limit)?;
    }
    Ok(())
}

/// Sets a parameter of the server.
fn set(client: &mut Client, name: &str, value: &str) -> Result<()> {
    client.batch_execute(&format!("ALTER SYSTEM SET {name} = {value}"))?;
    Ok(client.batch_execute("SELECT pg_reload_conf()")?)
}

/// Waits until a query with one boolean result says true.
fn wait_until(client: &mut Client, condition: &str) -> Result<()> {
    let begun = Instant::now();
    while !client.query_one(&format!("SELECT {condition}"), &[])?.get::<_, bool>(0) {
        ensure!(begun.elapsed() < PATIENCE, "never: {condition}");
        sleep(PAUSE);
    }
    Ok(())
}

const LOG_ROWS: &str = "(SELECT log_rows FROM drift_index_info('t_e'))";
const WORKERS: &str =
    "(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'drift janitor')";

/// The process id of a janitor's worker once there is one with a job.
fn wait_for_worker(client: &mut Client) -> Result<i32> {
    const FIND: &str = "SELECT pid, query FROM pg_stat_activity
        WHERE backend_type = 'drift janitor' AND state = 'active'";
    let begun = Instant::now();
    loop {
        if let Some(row) = client.query_opt(&format!("{FIND} LIMIT 1"), &[])? {
            let query: String = row.get(1);
            ensure!(query.starts_with("drift: flush of index "), "it says what it does: {query}");
            return Ok(row.get(0));
        }
        ensure!(begun.elapsed() < PATIENCE, "no worker has come");
        sleep(PAUSE);
    }
}

/// A job that takes long: a budget so small that the worker mostly sleeps.
fn slow_job(cluster: &Cluster, database: &str) -> Result<Client> {
    let mut client = cluster.connect_to(database)?;
    set(&mut client, "drift.janitor_cost", "1")?;
    table(&mut client, 64)?;
    client.batch_execute("SET drift.log_limit = '16MB'")?;
    insert(&mut client, 64, 1, 30_000)?;
    client.batch_execute("SET drift.log_limit = '64kB'")?;
    // A full log is flushed by who fills it. Twice its limit is the janitor's.
    client.batch_execute("SET drift.log_limit = '5MB'")?;
    insert(&mut client, 64, 30_001, 30_100)?;
    Ok(client)
}

#[test]
fn a_worker_flushes_indexes_in_turns_and_across_trainings() -> Result<()> {
    let cluster = preloaded().start()?;
    let mut client = cluster.connect()?;
    table(&mut client, 64)?;
    client.batch_execute("CREATE TABLE u (LIKE t); CREATE INDEX u_e ON u USING drift (e)")?;
    for round in 0..40 {
        insert(&mut client, 64, round * 250 + 1, round * 250 + 250)?;
        client.batch_execute("INSERT INTO u SELECT id, e FROM t ORDER BY id DESC LIMIT 250")?;
    }
    let query: String = client.query_one("SELECT wave(77, 64)::text", &[])?.get(0);
    for name in ["t", "u"] {
        let info = format!("drift_index_info('{name}_e')");
        wait_until(&mut client, &format!("(SELECT log_rows < 1000 FROM {info})"))?;
        let buckets: i64 =
            client.query_one(&format!("SELECT buckets::bigint FROM {info}"), &[])?.get(0);
        ensure!(buckets > 20, "trained anew as it grew: {buckets}");
        for limit in [Some(10), None] {
            compare(&mut client, name, DISTANCES[0], &query, limit)?;
        }
    }
    require_quiet_log(&cluster.log())
}

#[test]
fn logs_are_flushed_without_vacuum_and_workers_leave() -> Result<()> {
    let cluster = preloaded().start()?;
    let mut client = cluster.connect()?;
    table(&mut client, 8)?;
    for round in 0..20 {
        insert(&mut client, 8, round * 1000 + 1, round * 1000 + 1000)?;
    }
    wait_until(&mut client, &format!("{LOG_ROWS} < 2000 AND {WORKERS} = 0"))?;
    let info = client.query_one("SELECT segments, rows FROM drift_index_info('t_e')", &[])?;
    let (segments, rows): (i32, i64) = (info.get(0), info.get(1));
    ensure!((1..8).contains(&segments) && rows >= 18_000, "{segments} segments, {rows} rows");
    check(&mut client)?;
    let log = cluster.log();
    ensure!(log.contains("automatic flush of index \"postgres.public.t_e\": log rows: "), "{log}");
    let launcher = "(SELECT count(*) FROM pg_stat_activity
                     WHERE backend_type = 'drift janitor launcher' AND datid IS NULL)";
    wait_until(&mut client, &format!("{launcher} = 1"))?;
    require_quiet_log(&log)
}

#[test]
fn an_index_left_alone_is_put_in_order() -> Result<()> {
    let cluster = preloaded().start()?;
    let mut client = cluster.connect()?;
    table(&mut client, 8)?;
    // Trained on the first rows, and on all. Whether a segment is left to be merged is a matter of
    // timing: the last training takes all there are. Rows that come later are segments of their own.
    let in_order = || {
        let log = cluster.log();
        let merged = "automatic merge of index \"postgres.public.t_e\": ";
        log.contains(merged) && log.matches("(trained anew)").count() >= 2
    };
    let mut rounds = 0..;
    for load in [20, 4, 4, 4, 4] {
        for round in rounds.by_ref().take(load) {
            insert(&mut client, 8, round * 1000 + 1, round * 1000 + 1000)?;
        }
        let alone = Instant::now();
        while alone.elapsed() < LONGER_THAN_QUIET && !in_order() {
            sleep(PAUSE);
        }
        if in_order() {
            break;
        }
    }
    ensure!(in_order(), "{}", cluster.log());
    wait_until(&mut client, &format!("{WORKERS} = 0"))?;
    let info = client.query_one("SELECT segments, rows FROM drift_index_info('t_e')", &[])?;
    let (segments, rows): (i32, i64) = (info.get(0), info.get(1));
    ensure!((1..=2).contains(&segments) && rows >= 18_000, "{segments} segments, {rows} rows");
    let log = cluster.log();
    check(&mut client)?;
    require_quiet_log(&log)
}

#[test]
fn a_flush_that_is_asked_for_leaves_merges_to_the_janitor() -> Result<()> {
    const SEGMENTS: &str = "(SELECT segments FROM drift_index_info('t_e'))";
    let cluster = preloaded().start()?;
    let mut client = cluster.connect()?;
    table(&mut client, 8)?;
    client.batch_execute("SET drift.log_limit = '1GB'")?;
    let flush = |client: &mut Client, from: i32, to: i32| -> Result<i32> {
        insert(client, 8, from, to)?;
        client.batch_execute("SELECT drift_flush('t_e')")?;
        Ok(client.query_one(&format!("SELECT {SEGMENTS}"), &[])?.get(0))
    };
    flush(&mut client, 1, 4000)?;
    let mut most = 0;
    for round in 0..6 {
        most = most.max(flush(&mut client, 4001 + round * 100, 4100 + round * 100)?);
    }
    ensure!(most >= 4, "merged while a session waited: {most} segments at most");
    check(&mut client)?;
    wait_until(&mut client, &format!("{SEGMENTS} = 1 AND {WORKERS} = 0"))?;
    // Nobody else would.
    set(&mut client, "drift.janitor", "off")?;
    wait_until(&mut client, "current_setting('drift.janitor') = 'off'")?;
    for round in 0..6 {
        let segments = flush(&mut client, 4601 + round * 100, 4700 + round * 100)?;
        ensure!(segments <= 3, "{segments} segments and no janitor");
    }
    check(&mut client)?;
    require_quiet_log(&cluster.log())
}

#[test]
fn statements_that_want_the_database_for_themselves_get_it() -> Result<()> {
    let cluster = preloaded().start()?;
    let mut other = cluster.connect()?;
    other.batch_execute("CREATE DATABASE d")?;
    drop(slow_job(&cluster, "d")?);
    for statement in [
        "CREATE DATABASE e TEMPLATE d",
        "ALTER DATABASE d RENAME TO f",
        "ALTER DATABASE f SET TABLESPACE elsewhere",
        "CREATE DATABASE g TEMPLATE f STRATEGY file_copy",
        "DROP DATABASE f",
    ] {
        if statement.contains("TABLESPACE") {
            let place = cluster.server_dir("space")?;
            other.batch_execute(&format!(
                "CREATE TABLESPACE elsewhere LOCATION '{}'",
                place.display()
            ))?;
        }
        wait_for_worker(&mut other).context(statement)?;
        let begun = Instant::now();
        other.batch_execute(statement).context(statement)?;
        let took = begun.elapsed();
        ensure!(took < Duration::from_secs(5), "{statement}: {took:?}");
    }
    wait_until(&mut other, &format!("{WORKERS} = 0"))?;
    // The copies go on where the original was.
    for database in ["e", "g"] {
        let mut client = cluster.connect_to(database)?;
        insert(&mut client, 64, 40_001, 40_010)?;
        let query = format!("[{}1]", "0.5,".repeat(63));
        compare(&mut client, "t", DISTANCES[0], &query, Some(100))?;
    }
    // A statement that fails lets workers in again.
    let refused = other.batch_execute("DROP DATABASE postgres");
    ensure!(refused.is_err());
    require_quiet_log(&cluster.log())
}

#[test]
fn ddl_does_not_wait_for_a_job() -> Result<()> {
    let cluster = preloaded().start()?;
    let mut client = slow_job(&cluster, "postgres")?;
    for statement in ["REINDEX INDEX t_e", "DROP TABLE t"] {
        wait_for_worker(&mut client)?;
        let begun = Instant::now();
        client.batch_execute(statement)?;
        ensure!(begun.elapsed() < Duration::from_secs(5), "{statement}: {:?}", begun.elapsed());
        if statement.starts_with("REINDEX") {
            client.batch_execute("SET drift.log_limit = '5MB'")?;
            insert(&mut client, 64, 50_001, 70_000)?;
        }
    }
    wait_until(&mut client, &format!("{WORKERS} = 0"))?;
    require_quiet_log(&cluster.log())
}

#[test]
fn a_job_that_somebody_waits_for_hurries() -> Result<()> {
    let cluster = preloaded().start()?;
    let mut client = slow_job(&cluster, "postgres")?;
    wait_for_worker(&mut client)?;
    let begun = Instant::now();
    client.batch_execute("VACUUM t")?;
    // At one percent of a core it takes minutes.
    ensure!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    ensure!(client.query_one(&format!("SELECT {LOG_ROWS}"), &[])?.get::<_, i64>(0) == 0);
    // It says so once it has let go of the lock that VACUUM waited for.
    let begun = Instant::now();
    while !cluster.log().contains("automatic flush") {
        ensure!(begun.elapsed() < PATIENCE, "the janitor's job was cancelled");
        sleep(PAUSE);
    }
    require_quiet_log(&cluster.log())
}

#[test]
fn workers_and_launcher_are_terminated_and_come_again() -> Result<()> {
    let cluster = preloaded().start()?;
    let mut client = slow_job(&cluster, "postgres")?;
    const LAUNCHER: &str =
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'drift janitor launcher'";
    let worker = wait_for_worker(&mut client)?;
    let launcher: i32 = client.query_one(LAUNCHER, &[])?.get(0);
    let begun = Instant::now();
    for pid in [worker, launcher] {
        let gone = client.query_one("SELECT pg_terminate_backend($1, 1000)", &[&pid])?;
        ensure!(gone.get::<_, bool>(0), "gone within a second");
    }
    ensure!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    wait_until(
        &mut client,
        "EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'drift janitor launcher')",
    )?;
    // Cancelled, a job is tried again later.
    let worker = wait_for_worker(&mut client)?;
    client.execute("SELECT pg_cancel_backend($1)", &[&worker])?;
    set(&mut client, "drift.janitor_cost", "100")?;
    wait_until(&mut client, &format!("{LOG_ROWS} = 0"))?;
    require_quiet_log(&cluster.log())
}

#[test]
fn a_fast_shutdown_does_not_wait_for_a_job() -> Result<()> {
    let mut cluster = preloaded().start()?;
    let mut client = slow_job(&cluster, "postgres")?;
    client.batch_execute("CHECKPOINT")?;
    wait_for_worker(&mut client)?;
    let begun = Instant::now();
    cluster.stop(Stop::Fast)?;
    ensure!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    cluster.start()?;
    let mut client = cluster.connect()?;
    let query = format!("[{}1]", "0.5,".repeat(63));
    compare(&mut client, "t", DISTANCES[0], &query, Some(100))?;
    require_quiet_log(&cluster.log())
}

#[test]
fn a_killed_worker_takes_nothing_with_it() -> Result<()> {
    let cluster = preloaded().start()?;
    let mut client = slow_job(&cluster, "postgres")?;
    let worker = wait_for_worker(&mut client)?;
    cluster.kill_process(worker)?;
    let begun = Instant::now();
    let mut client = loop {
        // Until the server has restarted, connections fail or break.
        if let Ok(mut client) = cluster.connect() {
            let old = "SELECT FROM pg_stat_activity WHERE pid = $1";
            if client.query_opt(old, &[&worker]).is_ok_and(|row| row.is_none()) {
                break client;
            }
        }
        ensure!(begun.elapsed() < PATIENCE, "the server has not come back");
        sleep(PAUSE);
    };
    let query = format!("[{}1]", "0.5,".repeat(63));
    compare(&mut client, "t", DISTANCES[0], &query, Some(100))?;
    // The next insert tells the new launcher.
    set(&mut client, "drift.janitor_cost", "100")?;
    insert(&mut client, 64, 80_001, 80_100)?;
    wait_until(&mut client, &format!("{LOG_ROWS} < 100"))?;
    compare(&mut client, "t", DISTANCES[0], &query, Some(100))
}

#[test]
fn it_can_be_switched_off_and_on() -> Result<()> {
    let cluster = preloaded().start()?;
    let mut client = cluster.connect()?;
    table(&mut client, 8)?;
    let mut first = 1;
    for on in ["off", "on", "off", "on"] {
        set(&mut client, "drift.janitor", on)?;
        wait_until(&mut client, &format!("current_setting('drift.janitor') = '{on}'"))?;
        wait_until(&mut client, &format!("{WORKERS} = 0"))?;
        let said = cluster.log().matches("automatic flush").count();
        insert(&mut client, 8, first, first + 9_999)?;
        first += 10_000;
        wait_until(&mut client, &format!("{LOG_ROWS} < 3000"))?;
        let says = cluster.log().matches("automatic flush").count();
        ensure!((says > said) == (on == "on"), "{on}: {said}, {says}");
        check(&mut client)?;
    }
    require_quiet_log(&cluster.log())
}

#[test]
fn a_standby_gets_its_arenas_and_is_promoted() -> Result<()> {
    let mut primary = preloaded().start()?;
    let mut client = primary.connect()?;
    table(&mut client, 8)?;
    insert(&mut client, 8, 1, 20_000)?;
    wait_until(&mut client, &format!("{LOG_ROWS} < 3000"))?;
    let standby = primary.standby()?;
    primary.wait_for_catchup(&standby)?;
    let mut on_standby = standby.connect()?;
    check(&mut on_standby)?;
    let arenas = "(SELECT arenas = segments AND segments > 0 FROM drift_index_info('t_e'))";
    wait_until(&mut on_standby, arenas)?;
    ensure!(!standby.arena_files("postgres", "t_e")?.is_empty());
    ensure!(standby.log().contains("automatic rebuild of arenas of index"), "by the janitor");
    ensure!(!standby.log().contains("automatic flush"), "which writes nothing else");
    check(&mut on_standby)?;
    // Of segments that have been merged away, it keeps none.
    insert(&mut client, 8, 100_001, 110_000)?;
    client.batch_execute("VACUUM t")?;
    primary.wait_for_catchup(&standby)?;
    check(&mut on_standby)?;
    wait_until(&mut on_standby, arenas)?;
    let segments = on_standby.query_one("SELECT segments FROM drift_index_info('t_e')", &[])?;
    let begun = Instant::now();
    // One a segment, and the router's.
    let files = segments.get::<_, i32>(0) as usize + 1;
    while standby.arena_files("postgres", "t_e")?.len() != files {
        ensure!(begun.elapsed() < PATIENCE, "{:?}", standby.arena_files("postgres", "t_e")?);
        sleep(PAUSE);
    }
    primary.stop(Stop::Immediate)?;
    on_standby.batch_execute("SELECT pg_promote()")?;
    insert(&mut on_standby, 8, 20_001, 30_000)?;
    wait_until(&mut on_standby, &format!("{LOG_ROWS} < 3000"))?;
    ensure!(standby.log().contains("automatic flush"), "after its promotion it does");
    check(&mut on_standby)?;
    require_quiet_log(&standby.log())
}

#[test]
fn a_checkpoint_seals_what_is_older() -> Result<()> {
    let mut cluster = preloaded().start()?;
    let mut client = cluster.connect()?;
    table(&mut client, 8)?;
    insert(&mut client, 8, 1, 50)?;
    client.batch_execute("CHECKPOINT")?;
    wait_until(&mut client, &format!("{LOG_ROWS} = 0"))?;
    // The same session's next rows are noticed, too.
    insert(&mut client, 8, 51, 100)?;
    sleep(Duration::from_secs(3));
    ensure!(client.query_one(&format!("SELECT {LOG_ROWS}"), &[])?.get::<_, i64>(0) == 50);
    client.batch_execute("CHECKPOINT")?;
    wait_until(&mut client, &format!("{LOG_ROWS} = 0"))?;
    // After a crash they are found by who looks at the index.
    insert(&mut client, 8, 101, 150)?;
    cluster.kill9()?;
    cluster.start()?;
    let mut client = cluster.connect()?;
    check(&mut client)?;
    client.batch_execute("SELECT txid_current(); CHECKPOINT")?;
    wait_until(&mut client, &format!("{LOG_ROWS} = 0"))?;
    check(&mut client)?;
    require_quiet_log(&cluster.log())
}

#[test]
fn writers_that_outrun_the_janitor_are_slowed_and_lose_nothing() -> Result<()> {
    outrun(true)
}

#[test]
fn writers_of_an_index_that_nobody_searches_are_slowed_later() -> Result<()> {
    outrun(false)
}

/// Writes faster than the janitor takes it, while the index is being searched or not.
fn outrun(searched: bool) -> Result<()> {
    const LIMIT_PAGES: i32 = 8;
    let cluster = preloaded().conf("drift.janitor_cost", "1").start()?;
    let mut client = cluster.connect()?;
    table(&mut client, 8)?;
    // Rows are made beforehand, for making them is what takes longest.
    client.batch_execute(
        "CREATE TABLE source AS SELECT i AS id, wave(i, 8) AS e FROM generate_series(1, 3000) i",
    )?;
    client.batch_execute("SET enable_seqscan = off")?;
    let mut writers = Vec::new();
    for _ in 0..2 {
        let mut writer = cluster.connect()?;
        writers.push(spawn(move || -> Result<()> {
            for _ in 0..20 {
                writer.batch_execute("INSERT INTO t SELECT * FROM source")?;
            }
            Ok(())
        }));
    }
    let mut most = 0;
    while writers.iter().any(|writer| !writer.is_finished()) {
        let pages = client.query_one("SELECT log_pages FROM drift_index_info('t_e')", &[])?;
        most = most.max(pages.get::<_, i32>(0));
        if searched {
            client.batch_execute(&format!("SELECT id FROM t ORDER BY e <-> '{QUERY}' LIMIT 1"))?;
        }
        sleep(PAUSE);
    }
    for writer in writers {
        writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??;
    }
    println!("the log had {most} pages at most, of {LIMIT_PAGES}");
    // Eight times as many pages where nobody searches.
    let (least, bound) = if searched { (2, 24) } else { (32, 160) };
    ensure!(most > LIMIT_PAGES * least, "the janitor was outrun: {most}");
    ensure!(most <= LIMIT_PAGES * bound, "the log stays bounded: {most}");
    check(&mut client)?;
    let rows = client.query_one("SELECT count(*) FROM t", &[])?.get::<_, i64>(0);
    ensure!(rows == 2 * 20 * 3000, "{rows}");
    set(&mut client, "drift.janitor_cost", "100")?;
    insert(&mut client, 8, 1, 1000)?;
    wait_until(&mut client, &format!("{LOG_ROWS} < 3000"))?;
    check(&mut client)?;
    require_quiet_log(&cluster.log())
}

#[test]
fn the_memory_of_workers_does_not_grow() -> Result<()> {
    let cluster = preloaded().conf("drift.janitor_cost", "100").start()?;
    let mut client = cluster.connect()?;
    table(&mut client, 8)?;
    let indexes: Vec<String> =
        (0..6).map(|nth| format!("CREATE INDEX t_{nth} ON t USING drift (e)")).collect();
    client.batch_execute(&indexes.join("; "))?;
    client.batch_execute("SET synchronous_commit = off")?;
    let done = AtomicBool::new(false);
    // Seven indexes keep the workers busy, so that each does many jobs.
    let peaks = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| -> Result<Vec<(i32, Vec<u64>)>> {
            let mut seen: Vec<(i32, Vec<u64>)> = Vec::new();
            let mut client = cluster.connect()?;
            while !done.load(Ordering::Relaxed) {
                let pids = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'drift janitor'";
                for row in client.query(pids, &[])? {
                    let pid: i32 = row.get(0);
                    let Some(bytes) = cluster.private_memory(pid) else { continue };
                    match seen.iter_mut().find(|(known, _)| *known == pid) {
                        Some((_, sizes)) => sizes.push(bytes),
                        None => seen.push((pid, vec![bytes])),
                    }
                }
                sleep(PAUSE);
            }
            Ok(seen)
        });
        let inserted = (0..60).try_for_each(|round| -> Result<()> {
            insert(&mut client, 8, round * 3000 + 1, round * 3000 + 3000)?;
            client.batch_execute(&format!("DELETE FROM t WHERE id <= {}", (round - 3) * 3000))?;
            Ok(client.batch_execute("VACUUM t")?)
        });
        done.store(true, Ordering::Relaxed);
        let seen = watcher.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))?;
        inserted.and(seen)
    })?;
    let flushes = cluster.log().matches("automatic flush").count();
    ensure!(flushes >= 100, "{flushes} flushes");
    let most = peaks.iter().flat_map(|(_, sizes)| sizes).copied().max().unwrap_or_default();
    println!("{flushes} flushes by {} workers, {} kB private at most", peaks.len(), most / 1024);
    ensure!(most < 64 << 20, "{most} bytes of private memory");
    Ok(())
}

#[test]
fn without_room_for_workers_inserts_flush_themselves() -> Result<()> {
    // The server's own launcher of logical replication takes one place, ours the other if there
    // is one.
    for places in ["1", "2"] {
        let cluster = preloaded().conf("max_worker_processes", places).start()?;
        let mut client = cluster.connect()?;
        table(&mut client, 8)?;
        for round in 0..10 {
            insert(&mut client, 8, round * 3000 + 1, round * 3000 + 3000)?;
        }
        wait_until(&mut client, &format!("{LOG_ROWS} < 10000"))?;
        let info = client.query_one("SELECT segments FROM drift_index_info('t_e')", &[])?;
        ensure!(info.get::<_, i32>(0) > 0);
        check(&mut client)?;
        let log = cluster.log();
        let said = log.contains("no background worker is free for the drift janitor");
        ensure!(said == (places == "2") && !log.contains("automatic flush"), "{log}");
        require_quiet_log(&log)?;
    }
    Ok(())
}

#[test]
fn create_extension_advises_to_preload() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    let warned = |cluster: &Cluster| -> Result<bool> {
        let mut command = cluster.client("psql");
        command.args(["--no-psqlrc", "--dbname", "postgres", "--command"]);
        let output = command.arg("CREATE EXTENSION drift_pg").output()?;
        ensure!(output.status.success());
        let text = String::from_utf8_lossy(&output.stderr);
        let warning = text.contains("WARNING:  drift_pg is not in shared_preload_libraries");
        ensure!(!warning || text.contains("HINT:  Add drift_pg to shared_preload_libraries"));
        Ok(warning)
    };
    ensure!(warned(&cluster)?, "not preloaded");
    let mut client = cluster.connect()?;
    client.batch_execute(
        "CREATE TABLE t (id integer, e vector(3)); CREATE INDEX t_e ON t USING drift (e);
         SET drift.log_limit = '64kB';
         INSERT INTO t SELECT i, ARRAY[i, i % 7, i % 3]::real[]::vector
         FROM generate_series(1, 10000) i",
    )?;
    let rows = client.query_one(&format!("SELECT {LOG_ROWS}"), &[])?.get::<_, i64>(0);
    ensure!(rows < 3000, "flushed in the foreground: {rows} rows are left");
    ensure!(!warned(&preloaded().start()?)?, "preloaded");
    Ok(())
}

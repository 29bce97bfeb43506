//! Truth travels with PostgreSQL's pages and WAL: to replicas, backups, copies of databases and
//! other tablespaces.

use anyhow::{ensure, Context, Result};
use harness::cluster::{Cluster, Stop};
use harness::command::output;
use harness::oracle::{compare, compare_all, require_quiet_log, DISTANCES};
use std::fs;

const QUERY: &str = "[1,-1,0.5,0,2,0.1,1,1]";

fn fill(cluster: &Cluster) -> Result<()> {
    let mut client = cluster.connect()?;
    client.batch_execute(
        "CREATE EXTENSION drift_pg;
         CREATE FUNCTION wave(i integer) RETURNS vector LANGUAGE sql IMMUTABLE AS
         $$ SELECT array_agg(sin(i * 0.37 + d * d * 1.7) * (1 + i % 5) ORDER BY d)::vector
            FROM generate_series(1, 8) d $$;
         CREATE TABLE t (id integer PRIMARY KEY, e vector(8));
         INSERT INTO t SELECT i, wave(i) FROM generate_series(1, 5000) i",
    )?;
    for (nth, distance) in DISTANCES.iter().enumerate() {
        client.batch_execute(&format!(
            "CREATE INDEX t_{nth} ON t USING drift (e {})",
            distance.class
        ))?;
    }
    Ok(())
}

#[test]
fn a_standby_answers_as_its_primary_does() -> Result<()> {
    let mut primary = Cluster::builder().start()?;
    fill(&primary)?;
    let standby = primary.standby()?;
    let steps = [
        "INSERT INTO t SELECT i, wave(i) FROM generate_series(5001, 5800) i",
        "SELECT drift_flush('t_0'), drift_flush('t_1'), drift_flush('t_2'), drift_flush('t_3')",
        "UPDATE t SET e = wave(id + 3) WHERE id % 5 = 0",
        "DELETE FROM t WHERE id % 2 = 0",
        "VACUUM t",
        "INSERT INTO t SELECT i, wave(i) FROM generate_series(7001, 9000) i",
        "REINDEX TABLE t",
        "INSERT INTO t SELECT i, wave(i) FROM generate_series(9001, 9100) i",
    ];
    for step in steps {
        primary.connect()?.batch_execute(step)?;
        primary.wait_for_catchup(&standby)?;
        for cluster in [&primary, &standby] {
            compare_all(&mut cluster.connect()?, "t", QUERY).context(step)?;
        }
    }
    let refused = standby.connect()?.batch_execute("SELECT drift_flush('t_0')");
    let message = refused.err().and_then(|error| Some(error.as_db_error()?.message().to_owned()));
    ensure!(message.as_deref() == Some("recovery is in progress"), "{message:?}");
    ensure!(standby.arena_files("postgres", "t_0")?.len() == 2, "the standby has its own arenas");

    primary.stop(Stop::Immediate)?;
    standby.connect()?.batch_execute("SELECT pg_promote()")?;
    standby.connect()?.batch_execute(
        "INSERT INTO t SELECT i, wave(i) FROM generate_series(10001, 10500) i;
         SELECT drift_flush('t_0')",
    )?;
    standby.connect()?.batch_execute("VACUUM t")?;
    compare_all(&mut standby.connect()?, "t", QUERY)?;
    require_quiet_log(&primary.log())?;
    require_quiet_log(&standby.log())
}

#[test]
fn replay_makes_the_pages_the_primary_has() -> Result<()> {
    let primary = Cluster::builder().conf("wal_consistency_checking", "all").start()?;
    fill(&primary)?;
    let standby = primary.standby()?;
    for step in [
        "INSERT INTO t SELECT i, wave(i) FROM generate_series(6001, 6100) i",
        "CHECKPOINT",
        "INSERT INTO t VALUES (6101, wave(6101))",
        "SET drift.log_limit = '64kB';
         INSERT INTO t SELECT i, wave(i) FROM generate_series(7001, 12000) i",
        "DELETE FROM t WHERE id % 3 = 0",
        "VACUUM t",
        "INSERT INTO t SELECT i, wave(i) FROM generate_series(12001, 12300) i",
    ] {
        primary.connect()?.batch_execute(step)?;
        // A page that differs stops the standby.
        primary.wait_for_catchup(&standby).context(step)?;
        compare_all(&mut standby.connect()?, "t", QUERY).context(step)?;
    }
    require_quiet_log(&standby.log())
}

#[test]
fn a_backup_is_whole_and_checksummed() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    fill(&cluster)?;
    cluster
        .connect()?
        .batch_execute("INSERT INTO t SELECT i, wave(i) FROM generate_series(6001, 6100) i")?;
    let mut copy = cluster.base_backup()?;
    copy.start()?;
    compare_all(&mut copy.connect()?, "t", QUERY)?;
    copy.stop(Stop::Fast)?;
    let mut check = copy.as_server("pg_checksums");
    output(check.arg("--check").arg("--pgdata").arg(copy.data_dir()))?;
    require_quiet_log(&copy.log())
}

#[test]
fn copies_of_databases_and_other_tablespaces() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    fill(&cluster)?;
    let mut client = cluster.connect_to("template1")?;
    for strategy in ["wal_log", "file_copy"] {
        client.batch_execute(&format!(
            "CREATE DATABASE {strategy} TEMPLATE postgres STRATEGY {strategy}"
        ))?;
        let mut copy = cluster.connect_to(strategy)?;
        compare_all(&mut copy, "t", QUERY).context(strategy)?;
        copy.batch_execute(
            "DELETE FROM t WHERE id % 3 = 0;
             INSERT INTO t SELECT i, wave(i) FROM generate_series(6001, 6100) i",
        )?;
        copy.batch_execute("VACUUM t")?;
        compare_all(&mut copy, "t", QUERY).context(strategy)?;
    }
    compare_all(&mut cluster.connect()?, "t", QUERY)?;
    drop(client);

    let place = cluster.server_dir("space")?;
    let mut client = cluster.connect()?;
    client.batch_execute(&format!("CREATE TABLESPACE elsewhere LOCATION '{}'", place.display()))?;
    client.batch_execute("ALTER INDEX t_0 SET TABLESPACE elsewhere")?;
    compare_all(&mut client, "t", QUERY)?;
    client.batch_execute("INSERT INTO t SELECT i, wave(i) FROM generate_series(6001, 6100) i")?;
    client.batch_execute("SELECT drift_flush('t_0')")?;
    compare_all(&mut client, "t", QUERY)?;
    client.batch_execute("DROP INDEX t_0")?;
    client.batch_execute("CHECKPOINT")?;
    client.batch_execute("DROP TABLESPACE elsewhere")?;
    ensure!(fs::read_dir(&place)?.next().is_none(), "the tablespace is empty");
    require_quiet_log(&cluster.log())
}

/// Runs a statement and cancels it once the index has grown by so many pages, if it does.
fn cancel_when_grown(cluster: &Cluster, statement: &str, pages: i64) -> Result<()> {
    const SIZE: &str = "SELECT pg_relation_size('t_e') / 8192";
    let mut worker = cluster.connect()?;
    let mut watcher = cluster.connect()?;
    let before: i64 = watcher.query_one(SIZE, &[])?.get(0);
    let token = worker.cancel_token();
    let statement = statement.to_owned();
    let working = std::thread::spawn(move || worker.batch_execute(&statement));
    while !working.is_finished() {
        if watcher.query_one(SIZE, &[])?.get::<_, i64>(0) > before + pages {
            token.cancel_query(postgres::NoTls)?;
            break;
        }
    }
    match working.join().map_err(|_| anyhow::anyhow!("worker panicked"))? {
        Err(error) if error.code() == Some(&postgres::error::SqlState::QUERY_CANCELED) => Ok(()),
        result => Ok(result?),
    }
}

#[test]
fn pages_that_only_the_primary_has_are_not_missed_after_a_promotion() -> Result<()> {
    let primary = Cluster::builder().start()?;
    let fill = "SELECT i, (SELECT array_agg(sin(i * 0.37 + d * d * 1.7) ORDER BY d)
                FROM generate_series(1, 64) d)::vector FROM generate_series";
    primary.connect()?.batch_execute(&format!(
        "CREATE EXTENSION drift_pg;
         CREATE TABLE t (id integer, e vector(64));
         INSERT INTO t {fill}(1, 20000) i;
         CREATE INDEX t_e ON t USING drift (e);
         SET drift.log_limit = '2GB';
         INSERT INTO t {fill}(20001, 32000) i"
    ))?;
    let standby = primary.standby()?;
    // Cancelled jobs leave pages that were added to the file and never written, hence never
    // logged; the next job may set them aside for the log.
    cancel_when_grown(&primary, "SELECT drift_flush('t_e')", 500)?;
    primary.connect()?.batch_execute("DELETE FROM t WHERE id % 100 = 5")?;
    cancel_when_grown(&primary, "VACUUM t", 20)?;
    primary.wait_for_catchup(&standby)?;
    standby.connect()?.batch_execute("SELECT pg_promote()")?;
    let query = format!("[{}0.5]", "0.25,".repeat(63));
    let distance = DISTANCES[0];
    for step in [
        format!("INSERT INTO t {fill}(40001, 44000) i"),
        "VACUUM t".to_owned(),
        format!("SET drift.log_limit = '2GB'; INSERT INTO t {fill}(50001, 54000) i"),
        "VACUUM t".to_owned(),
    ] {
        let mut client = standby.connect()?;
        client.batch_execute(&step)?;
        compare(&mut client, "t", distance, &query, None).context(step)?;
    }
    require_quiet_log(&standby.log())
}

#[test]
fn a_tablespace_can_be_dropped_when_its_indexes_have_moved_on() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    fill(&cluster)?;
    let mut client = cluster.connect()?;
    let place = cluster.server_dir("space")?;
    client.batch_execute(&format!("CREATE TABLESPACE a LOCATION '{}'", place.display()))?;
    for statement in
        ["ALTER INDEX t_0 SET TABLESPACE pg_default", "REINDEX (TABLESPACE pg_default) INDEX t_0"]
    {
        client.batch_execute("ALTER INDEX t_0 SET TABLESPACE a")?;
        compare_all(&mut client, "t", QUERY)?;
        client.batch_execute(statement)?;
        client.batch_execute("CHECKPOINT")?;
    }
    client.batch_execute("DROP TABLESPACE a")?;
    compare_all(&mut client, "t", QUERY)
}

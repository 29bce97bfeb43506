//! A server killed with SIGKILL comes back with every committed row findable.

use anyhow::{Context, Result};
use harness::cluster::{Cluster, Stop};
use harness::oracle::{compare, compare_all, require_quiet_log, DISTANCES};
use std::time::Duration;

const SETUP: &str = "
    DROP TABLE IF EXISTS t, long;
    CREATE OR REPLACE FUNCTION wave(i integer, dims integer) RETURNS vector LANGUAGE sql IMMUTABLE
    AS $$ SELECT array_agg(sin(i * 0.37 + d * d * 1.7) * (1 + i % 5) ORDER BY d)::vector
          FROM generate_series(1, dims) d $$;";

/// A small life of a table and its indexes; the server is killed after each of its statements.
const LIFE: [&str; 27] = [
    "CREATE TABLE t (id integer PRIMARY KEY, e vector(6))",
    "INSERT INTO t SELECT i, wave(i, 6) FROM generate_series(1, 400) i",
    "CREATE INDEX t_l2 ON t USING drift (e)",
    "CREATE INDEX t_ip ON t USING drift (e vector_ip_ops)",
    "CREATE INDEX t_cos ON t USING drift (e vector_cosine_ops)",
    "CREATE INDEX t_l1 ON t USING drift (e vector_l1_ops)",
    "INSERT INTO t VALUES (1001, wave(1001, 6))",
    "INSERT INTO t SELECT i, wave(i, 6) FROM generate_series(1002, 1300) i",
    "UPDATE t SET e = wave(id + 5, 6) WHERE id % 7 = 0",
    "DELETE FROM t WHERE id % 3 = 0",
    "SELECT drift_flush('t_l2'), drift_flush('t_ip')",
    "INSERT INTO t SELECT i, wave(i, 6) FROM generate_series(2001, 2100) i",
    "VACUUM t",
    "INSERT INTO t SELECT i, wave(i, 6) FROM generate_series(3001, 3400) i",
    "BEGIN; SAVEPOINT a; INSERT INTO t VALUES (9001, wave(9001, 6)); ROLLBACK TO a;
        INSERT INTO t VALUES (9002, wave(9002, 6)); COMMIT",
    "BEGIN; INSERT INTO t VALUES (9003, wave(9003, 6)); ROLLBACK",
    "DELETE FROM t WHERE id BETWEEN 1100 AND 1200",
    "VACUUM t",
    "CHECKPOINT",
    "INSERT INTO t VALUES (9004, wave(9004, 6))",
    "REINDEX INDEX t_l2",
    "CREATE TABLE long (id integer, e vector(2100))",
    "CREATE INDEX ON long USING drift (e)",
    "INSERT INTO long SELECT i, wave(i, 2100) FROM generate_series(1, 12) i",
    "INSERT INTO long VALUES (13, wave(13, 2100))",
    "VACUUM long",
    "INSERT INTO long VALUES (14, wave(14, 2100))",
];

#[test]
fn every_committed_row_is_found_after_a_kill_between_any_two_statements() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    cluster.connect()?.batch_execute("CREATE EXTENSION drift_pg")?;
    // Before the fifth index there is nothing to compare; each run then goes one statement on.
    for killed_after in 5..LIFE.len() {
        let mut client = cluster.connect()?;
        client.batch_execute(SETUP)?;
        for statement in &LIFE[..=killed_after] {
            client.batch_execute(statement)?;
        }
        cluster.kill9()?;
        cluster.start()?;

        let mut client = cluster.connect()?;
        let after = || format!("killed after: {}", LIFE[killed_after]);
        let query = "[1,-1,0.5,0,2,0.1]";
        compare_all(&mut client, "t", query).with_context(after)?;
        if client.query_one("SELECT to_regclass('long_e_idx') IS NOT NULL", &[])?.get(0) {
            let query: String = client.query_one("SELECT wave(5, 2100)::text", &[])?.get(0);
            compare(&mut client, "long", DISTANCES[0], &query, None).with_context(after)?;
        }
        // And life goes on.
        client.batch_execute(
            "INSERT INTO t SELECT i, wave(i, 6) FROM generate_series(20001, 20100) i;
             DELETE FROM t WHERE id % 11 = 0",
        )?;
        client.batch_execute("VACUUM t")?;
        compare_all(&mut client, "t", query).with_context(after)?;
    }
    require_quiet_log(&cluster.log())
}

#[test]
fn a_kill_in_the_middle_of_a_job_loses_nothing() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut client = cluster.connect()?;
    client.batch_execute("CREATE EXTENSION drift_pg")?;
    client.batch_execute(SETUP)?;
    client.batch_execute(
        "CREATE TABLE t (id integer PRIMARY KEY, e vector(6));
         INSERT INTO t SELECT i, wave(i, 6) FROM generate_series(1, 30000) i;
         CREATE INDEX ON t USING drift (e);
         CREATE INDEX ON t USING drift (e vector_ip_ops);
         CREATE INDEX ON t USING drift (e vector_cosine_ops);
         CREATE INDEX ON t USING drift (e vector_l1_ops)",
    )?;
    let jobs = [
        "INSERT INTO t SELECT i, wave(i, 6) FROM generate_series(100001, 140000) i",
        "DELETE FROM t WHERE id % 4 = 1",
        "VACUUM t",
        "REINDEX TABLE t",
        "SELECT drift_flush('t_e_idx'), drift_flush('t_e_idx1')",
    ];
    for (nth, delay) in [3, 10, 25, 60, 120, 200].into_iter().enumerate() {
        for job in jobs {
            let mut worker = cluster.connect()?;
            worker.batch_execute("SET drift.log_limit = '64kB'")?;
            let running = std::thread::spawn(move || worker.batch_execute(job));
            std::thread::sleep(Duration::from_millis(delay));
            if nth % 2 == 0 {
                cluster.kill9()?;
            } else {
                cluster.stop(Stop::Immediate)?;
            }
            // The statement fails with the server, or was done before.
            let _ = running.join();
            cluster.start()?;
            let mut client = cluster.connect()?;
            for distance in DISTANCES {
                compare(&mut client, "t", distance, "[1,-1,0.5,0,2,0.1]", Some(500))
                    .with_context(|| format!("{job}, after {delay} ms"))?;
            }
            client.batch_execute("DELETE FROM t WHERE id > 100000")?;
        }
    }
    require_quiet_log(&cluster.log())
}

#[test]
fn an_unlogged_index_is_empty_and_of_use_after_a_crash() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut client = cluster.connect()?;
    client.batch_execute("CREATE EXTENSION drift_pg")?;
    client.batch_execute(SETUP)?;
    client.batch_execute(
        "CREATE UNLOGGED TABLE t (id integer, e vector(6));
         CREATE INDEX t_e ON t USING drift (e);
         INSERT INTO t SELECT i, wave(i, 6) FROM generate_series(1, 3000) i;
         SELECT drift_flush('t_e')",
    )?;
    for _ in 0..2 {
        cluster.kill9()?;
        cluster.start()?;
        let mut client = cluster.connect()?;
        compare(&mut client, "t", DISTANCES[0], "[1,-1,0.5,0,2,0.1]", None)?;
        assert_eq!(client.query_one("SELECT count(*) FROM t", &[])?.get::<_, i64>(0), 0);
        client
            .batch_execute("INSERT INTO t SELECT i, wave(i, 6) FROM generate_series(1, 3000) i")?;
        client.batch_execute("SELECT drift_flush('t_e')")?;
        compare(&mut client, "t", DISTANCES[0], "[1,-1,0.5,0,2,0.1]", None)?;
    }
    require_quiet_log(&cluster.log())
}

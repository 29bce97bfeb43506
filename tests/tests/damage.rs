//! Damaged pages give an error that says what to do, never a wrong answer and never a crash.

use anyhow::{ensure, Context, Result};
use harness::cluster::{Cluster, Stop};
use harness::oracle::{compare, require_quiet_log, DISTANCES};
use postgres::error::SqlState;
use postgres::Client;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

const PAGE: usize = 8192;
/// Where a page's tail begins, and what kind of page it says this is (two bytes, from here).
const TAIL: usize = PAGE - 32;
const KIND: usize = TAIL + 24;
/// Kinds of pages, as the extension numbers them.
const META: u16 = 1;
const LOG: u16 = 2;
const MANIFEST: u16 = 3;
const TIDS: u16 = 4;
const VECTORS: u16 = 5;
const BUCKETS: u16 = 6;
const ROUTER: u16 = 7;
/// Where a page's payload begins.
const PAYLOAD: usize = 24;

const QUERY: &str = "[1,-1,0.5,0,2,0.1,1,1]";

struct Harm {
    what: &'static str,
    kind: u16,
    offset: usize,
    bytes: &'static [u8],
    code: &'static str,
}

const fn harm(what: &'static str, kind: u16, offset: usize, bytes: &'static [u8]) -> Harm {
    Harm { what, kind, offset, bytes, code: "XX002" }
}

const HARMS: [Harm; 21] = [
    harm("metapage: magic", META, PAYLOAD, b"NOTDRIFT"),
    harm("metapage: dimensions", META, PAYLOAD + 16, &[7]),
    harm("metapage: log head", META, PAYLOAD + 80, &[0xff; 8]),
    Harm {
        what: "metapage: a newer format",
        kind: META,
        offset: PAYLOAD + 8,
        bytes: &[99, 0, 0, 0],
        code: "55000",
    },
    harm("log page: header", LOG, PAYLOAD + 8, &[0xff; 8]),
    harm("log record: vector", LOG, PAYLOAD + 60, &[0x11; 4]),
    harm("log record: dimensions", LOG, PAYLOAD + 20, &[0xff; 4]),
    harm("manifest: first bytes", MANIFEST, PAYLOAD, &[0; 16]),
    harm("manifest: an extent", MANIFEST, PAYLOAD + 260, &[0xff; 8]),
    harm("bucket table", BUCKETS, PAYLOAD + 4, &[0xff; 4]),
    harm("router: a centroid", ROUTER, PAYLOAD + 40, &[0xff; 4]),
    harm("TID page: tail", TIDS, KIND + 2, &[0; 2]),
    harm("vector page: tail", VECTORS, KIND, &[0x77; 4]),
    harm("log page: first number", LOG, PAYLOAD, &[0xff; 8]),
    harm("log page: a link to nowhere", LOG, TAIL + 20, &[0xf0, 0xff, 0xff, 0x7f]),
    // What a write that was lost, or a repair by zeroing, leaves.
    harm("log page: zeroes", LOG, 0, &[0; PAGE]),
    harm("manifest: zeroes", MANIFEST, 0, &[0; PAGE]),
    harm("bucket table: zeroes", BUCKETS, 0, &[0; PAGE]),
    harm("router: zeroes", ROUTER, 0, &[0; PAGE]),
    harm("TID page: zeroes", TIDS, 0, &[0; PAGE]),
    harm("vector page: zeroes", VECTORS, 0, &[0; PAGE]),
];

#[test]
fn a_damaged_page_is_noticed() -> Result<()> {
    // Without data checksums, which would notice first.
    let mut cluster = Cluster::builder().start()?;
    cluster.stop(Stop::Fast)?;
    let mut command = cluster.as_server("pg_checksums");
    harness::command::output(command.arg("--disable").arg("--pgdata").arg(cluster.data_dir()))?;
    cluster.start()?;
    cluster.connect()?.batch_execute(
        "CREATE EXTENSION drift_pg;
         CREATE TABLE t (id integer PRIMARY KEY, e vector(8));
         CREATE FUNCTION wave(i integer) RETURNS vector LANGUAGE sql IMMUTABLE AS
         $$ SELECT array_agg(sin(i * 0.37 + d * d * 1.7) * (1 + i % 5) ORDER BY d)::vector
            FROM generate_series(1, 8) d $$;
         INSERT INTO t SELECT i, wave(i) FROM generate_series(1, 4000) i;
         CREATE INDEX t_e ON t USING drift (e);
         INSERT INTO t SELECT i, wave(i) FROM generate_series(4001, 4100) i",
    )?;
    for harm in &HARMS {
        suffer(&mut cluster, harm).context(harm.what)?;
    }
    require_quiet_log(&cluster.log())
}

/// Expects the statement to fail, with a hint at what to do.
fn refused(client: &mut Client, statement: &str, code: &str) -> Result<()> {
    let Err(error) = client.simple_query(statement) else {
        anyhow::bail!("{statement} succeeded");
    };
    let error = error.as_db_error().with_context(|| format!("{statement}: {error}"))?;
    ensure!(error.code().code() == code, "{statement}: {error:?}");
    ensure!(error.hint().is_some_and(|hint| hint.contains("REINDEX")), "{statement}: {error:?}");
    Ok(())
}

/// Stops the server, does the harm to every page of the kind, and looks at what comes of it.
fn suffer(cluster: &mut Cluster, harm: &Harm) -> Result<()> {
    let path: String =
        cluster.connect()?.query_one("SELECT pg_relation_filepath('t_e')", &[])?.get(0);
    let path: PathBuf = cluster.data_dir().join(path);
    for arena in cluster.arena_files("postgres", "t_e")? {
        // The bucket table is read from pages only when there is no arena.
        fs::remove_file(arena)?;
    }
    cluster.stop(Stop::Fast)?;
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    let pages = file.metadata()?.len() as usize / PAGE;
    let mut harmed = 0;
    for page in 0..pages {
        let mut kind = [0; 2];
        file.read_exact_at(&mut kind, (page * PAGE + KIND) as u64)?;
        if u16::from_le_bytes(kind) == harm.kind {
            file.write_all_at(harm.bytes, (page * PAGE + harm.offset) as u64)?;
            harmed += 1;
        }
    }
    ensure!(harmed > 0, "a page of kind {}", harm.kind);
    cluster.start()?;

    let mut client = cluster.connect()?;
    client.batch_execute("SET enable_seqscan = off; SET drift.target_recall = 1")?;
    let nearest = format!("SELECT id FROM t ORDER BY e <-> '{QUERY}' LIMIT 4200");
    refused(&mut client, &nearest, harm.code)?;
    // So many dead rows that VACUUM rewrites the segment, and reads what a search of all reads.
    client.batch_execute("DELETE FROM t WHERE id % 2 = 0 AND id <= 4000")?;
    refused(&mut client, "VACUUM t", harm.code)?;
    // An insert looks at few pages; if it fails, then with the same error.
    client
        .batch_execute("INSERT INTO t SELECT i, wave(i) FROM generate_series(2, 4000, 2) i")
        .or_else(|error| match error.as_db_error() {
            Some(refusal) if refusal.code().code() == harm.code => Ok(()),
            _ => Err(error),
        })?;

    client.batch_execute("REINDEX INDEX t_e")?;
    compare(&mut client, "t", DISTANCES[0], QUERY, None)?;
    client.batch_execute(
        "DELETE FROM t WHERE id > 4000;
         INSERT INTO t SELECT i, wave(i) FROM generate_series(1, 4000) i ON CONFLICT DO NOTHING;
         INSERT INTO t SELECT i, wave(i) FROM generate_series(4001, 4100) i",
    )?;
    compare(&mut client, "t", DISTANCES[0], QUERY, None)
}

#[test]
fn a_file_cut_short_is_an_error_too() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    cluster.connect()?.batch_execute(
        "CREATE EXTENSION drift_pg;
         CREATE TABLE t (id integer, e vector(3));
         INSERT INTO t SELECT i, ARRAY[i, i % 7, i % 11]::vector FROM generate_series(1, 5000) i;
         CREATE INDEX t_e ON t USING drift (e)",
    )?;
    let mut client = cluster.connect()?;
    let path: String = client.query_one("SELECT pg_relation_filepath('t_e')", &[])?.get(0);
    let path = cluster.data_dir().join(path);
    cluster.stop(Stop::Fast)?;
    let file = OpenOptions::new().write(true).open(&path)?;
    let pages = file.metadata()?.len() / PAGE as u64;
    for keep in [pages - 1, pages / 2, 2, 1, 0] {
        file.set_len(keep * PAGE as u64)?;
        cluster.start()?;
        let mut client = cluster.connect()?;
        client.batch_execute("SET enable_seqscan = off; SET drift.target_recall = 1")?;
        let nearest = "SELECT id FROM t ORDER BY e <-> '[1,2,3]' LIMIT 5000";
        if keep > 0 {
            refused(&mut client, nearest, "XX002").with_context(|| format!("{keep} pages"))?;
        } else {
            // The server itself misses the very first page.
            let Err(error) = client.query(nearest, &[]) else { anyhow::bail!("an empty file") };
            ensure!(error.code() == Some(&SqlState::DATA_CORRUPTED), "{error:?}");
        }
        cluster.stop(Stop::Fast)?;
    }
    cluster.start()?;
    let mut client = cluster.connect()?;
    client.batch_execute("REINDEX INDEX t_e")?;
    compare(&mut client, "t", DISTANCES[0], "[1,2,3]", None)?;
    require_quiet_log(&cluster.log())
}

#[test]
fn a_long_record_cut_off_is_noticed_and_reading_it_adds_no_page() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    cluster.stop(Stop::Fast)?;
    let mut command = cluster.as_server("pg_checksums");
    harness::command::output(command.arg("--disable").arg("--pgdata").arg(cluster.data_dir()))?;
    cluster.start()?;
    let mut client = cluster.connect()?;
    client.batch_execute(
        "CREATE EXTENSION drift_pg;
         CREATE TABLE t (id integer, e vector(5000));
         CREATE INDEX t_e ON t USING drift (e);
         INSERT INTO t SELECT i, array_fill(i, ARRAY[5000])::vector FROM generate_series(1, 3) i",
    )?;
    let path: String = client.query_one("SELECT pg_relation_filepath('t_e')", &[])?.get(0);
    let path = cluster.data_dir().join(path);
    cluster.stop(Stop::Fast)?;
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    let length = file.metadata()?.len();
    // Each vector takes three pages, from the third of the file on. Now none has a next one.
    for page in 2..length / PAGE as u64 {
        file.write_all_at(&[0xff; 4], page * PAGE as u64 + TAIL as u64 + 20)?;
    }
    cluster.start()?;
    let mut client = cluster.connect()?;
    client.batch_execute("SET enable_seqscan = off")?;
    let nearest = "SELECT id FROM t ORDER BY e <-> array_fill(1, ARRAY[5000])::vector LIMIT 3";
    for statement in [nearest, "SELECT drift_flush('t_e')", "VACUUM t", nearest] {
        refused(&mut client, statement, "XX002")?;
    }
    ensure!(file.metadata()?.len() == length, "the file has grown");
    client.batch_execute("REINDEX INDEX t_e")?;
    let query = format!("[{}]", ["1"; 5000].join(","));
    compare(&mut client, "t", DISTANCES[0], &query, None)?;
    require_quiet_log(&cluster.log())
}

#[test]
fn an_insert_does_not_fail_because_its_log_cannot_be_flushed() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    cluster.stop(Stop::Fast)?;
    let mut command = cluster.as_server("pg_checksums");
    harness::command::output(command.arg("--disable").arg("--pgdata").arg(cluster.data_dir()))?;
    cluster.start()?;
    let mut client = cluster.connect()?;
    client.batch_execute(
        "CREATE EXTENSION drift_pg;
         CREATE TABLE t (id integer, e vector(3));
         INSERT INTO t SELECT i, ARRAY[i, i % 7, i % 11]::vector FROM generate_series(1, 3000) i;
         CREATE INDEX t_e ON t USING drift (e)",
    )?;
    let path: String = client.query_one("SELECT pg_relation_filepath('t_e')", &[])?.get(0);
    let path = cluster.data_dir().join(path);
    cluster.stop(Stop::Fast)?;
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    for page in 0..file.metadata()?.len() as usize / PAGE {
        let mut kind = [0; 2];
        file.read_exact_at(&mut kind, (page * PAGE + KIND) as u64)?;
        if u16::from_le_bytes(kind) == MANIFEST {
            file.write_all_at(&[0; 16], (page * PAGE + PAYLOAD) as u64)?;
        }
    }
    cluster.start()?;
    let mut client = cluster.connect()?;
    client.batch_execute("SET drift.log_limit = '64kB'")?;
    for first in (10_000..20_000).step_by(500) {
        client.batch_execute(&format!(
            "INSERT INTO t SELECT i, ARRAY[i, i % 7, i % 11]::vector
             FROM generate_series({first}, {first} + 499) i"
        ))?;
    }
    ensure!(cluster.log().contains("could not flush the log of index \"t_e\""));
    client.batch_execute("REINDEX INDEX t_e")?;
    compare(&mut client, "t", DISTANCES[0], "[1,2,3]", None)
}

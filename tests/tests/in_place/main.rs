//! A flush in haste leaves vectors on the log's pages: every row is found there as elsewhere.

use anyhow::{ensure, Context, Result};
use harness::cluster::{Cluster, Stop};
use harness::oracle::{compare, compare_all, require_quiet_log, DISTANCES};
use postgres::Client;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

mod merged;

const PAGE: usize = 8192;
/// Where a page's payload begins, and its tail's kind.
const PAYLOAD: u64 = 24;
const KIND: u64 = 8160 + 24;
/// Where a page's tail names the next one.
const NEXT: usize = 8160 + 20;
/// Kinds of pages, as the extension numbers them.
const LOG: u16 = 2;
const VECTORS: u16 = 5;
const BUCKETS: u16 = 6;
const PLACES: u16 = 8;
const LOG_COPY: u16 = 9;

const WAVE: &str = "
    CREATE EXTENSION drift_pg;
    CREATE FUNCTION wave(i integer, dims integer) RETURNS vector LANGUAGE sql IMMUTABLE AS
    $$ SELECT array_agg(sin(i * 0.37 + d * d * 1.7) * (1 + i % 5) ORDER BY d)::vector
       FROM generate_series(1, dims) d $$;";

/// A cluster whose janitor is there for those who ask, but has nothing to do.
fn start() -> Result<Cluster> {
    let cluster = Cluster::builder()
        .conf("shared_preload_libraries", "drift_pg")
        .conf("drift.log_limit", "1GB")
        .conf("drift.log_janitor_min_duration", "0")
        .start()?;
    cluster.connect()?.batch_execute(WAVE)?;
    Ok(cluster)
}

/// A table `t` of rows numbered from 1 on, with an index `t_e` trained on 2000 of them.
fn table(client: &mut Client, dims: u32, class: &str) -> Result<()> {
    client.batch_execute(&format!(
        "DROP TABLE IF EXISTS t;
         CREATE TABLE t (id integer PRIMARY KEY, e vector({dims}));
         INSERT INTO t SELECT i, wave(i, {dims}) FROM generate_series(1, 2000) i;
         CREATE INDEX t_e ON t USING drift (e {class})"
    ))?;
    Ok(())
}

fn insert(client: &mut Client, dims: u32, from: i32, to: i32) -> Result<()> {
    Ok(client.batch_execute(&format!(
        "INSERT INTO t SELECT i, wave(i, {dims}) FROM generate_series({from}, {to}) i"
    ))?)
}

/// Flushes in haste, as is done where the janitor puts in order later what was left, and keeps it
/// from doing so.
fn flush(client: &mut Client) -> Result<()> {
    set_janitor(client, "on")?;
    client.batch_execute("SELECT drift_flush('t_e')")?;
    set_janitor(client, "off")
}

fn set_janitor(client: &mut Client, value: &str) -> Result<()> {
    client.batch_execute(&format!("ALTER SYSTEM SET drift.janitor = {value}"))?;
    client.batch_execute("SELECT pg_reload_conf()")?;
    let begun = Instant::now();
    while client.query_one("SHOW drift.janitor", &[])?.get::<_, String>(0) != value {
        ensure!(begun.elapsed() < Duration::from_secs(60), "the server does not read its settings");
        sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn query(client: &mut Client, dims: u32) -> Result<String> {
    Ok(client.query_one(&format!("SELECT wave(77, {dims})::text"), &[])?.get(0))
}

/// Blocks of `t_e` of a kind, as they are on disk.
fn pages(cluster: &Cluster, kind: u16) -> Result<Vec<u64>> {
    pages_where(cluster, |page| page[KIND as usize..][..2] == kind.to_le_bytes())
}

/// Those of the log that another follows: all are a segment's once it is flushed, and no reader of
/// the log meets them.
fn full_log_pages(cluster: &Cluster) -> Result<Vec<u64>> {
    pages_where(cluster, |page| {
        page[KIND as usize..][..2] == LOG.to_le_bytes() && page[NEXT..][..4] != [0xff; 4]
    })
}

fn pages_where(cluster: &Cluster, is_wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<u64>> {
    let mut client = cluster.connect()?;
    client.batch_execute("CHECKPOINT")?;
    let path: String = client.query_one("SELECT pg_relation_filepath('t_e')", &[])?.get(0);
    let bytes = fs::read(cluster.data_dir().join(path))?;
    let wanted = (0..).zip(bytes.chunks_exact(PAGE)).filter(|(_, page)| is_wanted(page));
    Ok(wanted.map(|(block, _)| block).collect())
}

#[test]
fn rows_stay_on_the_pages_they_were_appended_to() -> Result<()> {
    let cluster = start()?;
    let mut client = cluster.connect()?;
    // Some, one and none of which fit a page, and lengths that leave much or little of it.
    for (dims, class, is_in_place) in [
        (8, "vector_l2_ops", true),
        (70, "vector_cosine_ops", true),
        (70, "vector_ip_ops", true),
        (600, "vector_l2_ops", true),
        (1800, "vector_l1_ops", true),
        (2024, "vector_l2_ops", true),
        (2025, "vector_l2_ops", false),
    ] {
        let case = || format!("{dims} dimensions, {class}");
        let distance = *DISTANCES.iter().find(|of| of.class == class).context("class")?;
        table(&mut client, dims, class)?;
        let near = query(&mut client, dims)?;
        let vectors = pages(&cluster, VECTORS)?.len();
        insert(&mut client, dims, 2001, 2100)?;
        flush(&mut client)?;
        let in_place = !pages(&cluster, PLACES)?.is_empty();
        ensure!(in_place == is_in_place, "{}: in place {in_place}", case());
        ensure!(!is_in_place || pages(&cluster, VECTORS)?.len() == vectors, "{}: written", case());
        for first in [2101, 2400, 2700] {
            // The log's last page is appended to after a flush that has read it.
            insert(&mut client, dims, first, first + 120)?;
            flush(&mut client)?;
            compare(&mut client, "t", distance, &near, Some(20)).with_context(case)?;
            compare(&mut client, "t", distance, &near, None).with_context(case)?;
            client.batch_execute("DELETE FROM t WHERE id % 7 = 0")?;
            compare(&mut client, "t", distance, &near, None).with_context(case)?;
        }
        let row = client.query_one("SELECT log_rows, rows FROM drift_index_info('t_e')", &[])?;
        let live: i64 = client.query_one("SELECT count(*) FROM t", &[])?.get(0);
        ensure!(row.get::<_, i64>(0) == 0 && row.get::<_, i64>(1) >= live, "{}: {row:?}", case());

        // What is dead now, without its arenas, after a crash that has seen no checkpoint.
        client.batch_execute("DELETE FROM t WHERE id % 5 = 0")?;
        client.batch_execute("VACUUM (INDEX_CLEANUP ON) t")?;
        insert(&mut client, dims, 5001, 5020)?;
        for arena in cluster.arena_files("postgres", "t_e")? {
            fs::remove_file(arena)?;
        }
        let mut fresh = cluster.connect()?;
        compare(&mut fresh, "t", distance, &near, None).with_context(case)?;

        // Put in order.
        client.batch_execute("DELETE FROM t WHERE id % 2 = 0")?;
        client.batch_execute("VACUUM t")?;
        client.batch_execute("SELECT drift_flush('t_e')")?;
        compare(&mut client, "t", distance, &near, None).with_context(case)?;
    }
    require_quiet_log(&cluster.log())
}

#[test]
fn the_janitor_writes_them_in_order_when_nobody_writes() -> Result<()> {
    let mut cluster = start()?;
    let mut client = cluster.connect()?;
    table(&mut client, 8, "vector_l2_ops")?;
    let near = query(&mut client, 8)?;
    for (first, merged) in [(2001, "1 with 100"), (3001, "2 with 200")] {
        insert(&mut client, 8, first, first + 99)?;
        client.batch_execute("SELECT drift_flush('t_e')")?;
        ensure!(!pages(&cluster, PLACES)?.is_empty(), "not in place");
        if first > 2001 {
            // Nobody knows of it afterwards, but for who searches.
            cluster.stop(Stop::Immediate)?;
            cluster.start()?;
            client = cluster.connect()?;
            compare(&mut client, "t", DISTANCES[0], &near, None)?;
        }
        // So small a segment beside a large one is left alone if it is in order.
        let wanted = format!("merged segments: {merged} rows, segments now: 2");
        let begun = Instant::now();
        while !cluster.log().contains(&wanted) {
            ensure!(begun.elapsed() < Duration::from_secs(60), "left in place: {}", cluster.log());
            sleep(Duration::from_millis(50));
        }
        let log = cluster.log();
        ensure!(log.contains("automatic merge of index \"postgres.public.t_e\""), "{log}");
        compare(&mut client, "t", DISTANCES[0], &near, None)?;
    }
    require_quiet_log(&cluster.log())
}

#[test]
fn a_session_that_goes_on_appending_loses_nothing() -> Result<()> {
    let cluster = start()?;
    let (mut writer, mut other) = (cluster.connect()?, cluster.connect()?);
    table(&mut other, 8, "vector_l2_ops")?;
    let near = query(&mut other, 8)?;
    // The writer knows pages that have been taken over, merged away, and given to something else.
    for round in 0..30 {
        insert(&mut writer, 8, 3001 + round * 50, 3050 + round * 50)?;
        flush(&mut other)?;
        if round % 3 == 2 {
            other.batch_execute("DELETE FROM t WHERE id % 3 = 1")?;
            other.batch_execute("VACUUM t")?;
            other.batch_execute("SELECT drift_flush('t_e')")?;
        }
        compare(&mut other, "t", DISTANCES[0], &near, None).with_context(|| round.to_string())?;
    }
    require_quiet_log(&cluster.log())
}

fn rows(client: &mut Client) -> Result<i64> {
    Ok(client.query_one("SELECT count(*) FROM t", &[])?.get(0))
}

/// Fails unless a cursor over all of so many rows, of which it has delivered some before `meanwhile`,
/// delivers each once.
fn cursor_survives(
    reader: &mut Client,
    near: &str,
    rows: i64,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<()> {
    reader.batch_execute(&format!(
        "BEGIN; DECLARE c CURSOR FOR SELECT id FROM t ORDER BY e <-> '{near}'"
    ))?;
    let mut got = reader.query("FETCH 5 FROM c", &[])?;
    meanwhile()?;
    got.extend(reader.query("FETCH ALL FROM c", &[])?);
    reader.batch_execute("COMMIT")?;
    let mut ids: Vec<i32> = got.iter().map(|row| row.get(0)).collect();
    ids.sort_unstable();
    ids.dedup();
    ensure!(ids.len() as i64 == rows && got.len() as i64 == rows, "{} of {rows}", ids.len());
    Ok(())
}

#[test]
fn a_cursor_gets_every_row_once_whatever_its_pages_become() -> Result<()> {
    let cluster = start()?;
    let (mut reader, mut other) = (cluster.connect()?, cluster.connect()?);
    let dims = 600;
    table(&mut other, dims, "vector_l2_ops")?;
    let near = query(&mut other, dims)?;
    reader.batch_execute("SET enable_seqscan = off; SET enable_sort = off")?;
    for round in 0..6 {
        let first = 3001 + round * 200;
        insert(&mut other, dims, first, first + 149)?;
        cursor_survives(&mut reader, &near, rows(&mut other)?, || {
            // The pages of its log become a segment's, and free, and one of them a copy of the log's
            // last page, to which a row was added.
            flush(&mut other)?;
            if round % 3 > 0 {
                other.batch_execute("VACUUM t")?;
            }
            for row in 0..=round % 2 {
                insert(&mut other, dims, first + 150 + row, first + 150 + row)?;
                flush(&mut other)?;
            }
            Ok(())
        })
        .with_context(|| round.to_string())?;
    }
    require_quiet_log(&cluster.log())
}

#[test]
fn it_is_truth_after_a_crash_and_on_a_standby() -> Result<()> {
    let mut cluster = start()?;
    let mut client = cluster.connect()?;
    client.batch_execute(
        "CREATE TABLE t (id integer PRIMARY KEY, e vector(8));
         INSERT INTO t SELECT i, wave(i, 8) FROM generate_series(1, 2000) i;",
    )?;
    for (nth, distance) in DISTANCES.iter().enumerate() {
        let name = if nth == 0 { "t_e".to_owned() } else { format!("t_{nth}") };
        client.batch_execute(&format!(
            "CREATE INDEX {name} ON t USING drift (e {})",
            distance.class
        ))?;
    }
    let standby = cluster.standby()?;
    let near = query(&mut client, 8)?;
    for round in 0..3 {
        insert(&mut client, 8, 3001 + round * 700, 3640 + round * 700)?;
        set_janitor(&mut client, "on")?;
        client.batch_execute(
            "SELECT drift_flush('t_e'), drift_flush('t_1'), drift_flush('t_2'), drift_flush('t_3')",
        )?;
        set_janitor(&mut client, "off")?;
        client.batch_execute("DELETE FROM t WHERE id % 6 = 0")?;
        client.batch_execute("VACUUM (INDEX_CLEANUP ON) t")?;
        insert(&mut client, 8, 3641 + round * 700, 3700 + round * 700)?;
        cluster.wait_for_catchup(&standby)?;
        compare_all(&mut standby.connect()?, "t", &near).context("standby")?;
        cluster.stop(Stop::Immediate)?;
        cluster.start()?;
        client = cluster.connect()?;
        compare_all(&mut client, "t", &near).context("after a crash")?;
    }
    ensure!(!pages(&cluster, PLACES)?.is_empty(), "not in place");
    standby.connect()?.batch_execute("SELECT pg_promote()")?;
    let mut promoted = standby.connect()?;
    insert(&mut promoted, 8, 9001, 9100)?;
    compare_all(&mut promoted, "t", &near).context("promoted")?;
    for cluster in [&cluster, &standby] {
        require_quiet_log(&cluster.log())?;
    }
    Ok(())
}

/// A cluster whose server lets damaged pages pass.
fn start_without_checksums(cluster: &mut Cluster) -> Result<()> {
    cluster.stop(Stop::Fast)?;
    let mut command = cluster.as_server("pg_checksums");
    harness::command::output(command.arg("--disable").arg("--pgdata").arg(cluster.data_dir()))?;
    cluster.start()
}

/// A page that reads as if it had been given to something else is damaged if it has not.
#[test]
fn the_janitor_does_not_try_without_end_to_make_arenas_of_damaged_pages() -> Result<()> {
    let mut cluster = Cluster::builder()
        .conf("shared_preload_libraries", "drift_pg")
        .conf("log_line_prefix", "%b: ")
        .start()?;
    start_without_checksums(&mut cluster)?;
    let mut client = cluster.connect()?;
    client.batch_execute(WAVE)?;
    table(&mut client, 8, "vector_l2_ops")?;
    insert(&mut client, 8, 2001, 2707)?;
    client.batch_execute("SELECT drift_flush('t_e')")?;
    let near = query(&mut client, 8)?;
    let path: String = client.query_one("SELECT pg_relation_filepath('t_e')", &[])?.get(0);
    let arenas = cluster.arena_files("postgres", "t_e")?;
    let harmed = full_log_pages(&cluster)?;
    ensure!(!harmed.is_empty(), "not in place");
    cluster.stop(Stop::Fast)?;
    let file = OpenOptions::new().write(true).open(cluster.data_dir().join(path))?;
    for block in harmed {
        file.write_all_at(&[0xff; 8], block * PAGE as u64 + PAYLOAD)?;
    }
    arenas.iter().try_for_each(fs::remove_file)?;
    cluster.start()?;
    let mut client = cluster.connect()?;
    client.batch_execute("SET enable_seqscan = off")?;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(2500) {
        // Each asks for the arenas again, whether it finds what it wants or not.
        let _ = client.simple_query(&format!("SELECT id FROM t ORDER BY e <-> '{near}' LIMIT 3"));
        sleep(Duration::from_millis(20));
    }
    let log = cluster.log();
    let tried = log.matches("drift janitor: ERROR:  index \"t_e\" contains a damaged page").count();
    ensure!((1..=3).contains(&tried), "{tried} times: {log}");
    Ok(())
}

#[test]
fn damage_is_noticed() -> Result<()> {
    let mut cluster = start()?;
    start_without_checksums(&mut cluster)?;
    let vector = PAYLOAD + 16 + 24;
    for (what, kind, offset, bytes, code) in [
        ("places: beyond the end", PLACES, PAYLOAD, &[0xff; 4][..], "XX002"),
        ("places: zeroes", PLACES, 0, &[0; PAGE][..], "XX002"),
        ("places: owner", PLACES, KIND, &[0x77; 4][..], "XX002"),
        ("records: first number", LOG, PAYLOAD, &[0xff; 8][..], "XX002"),
        ("records: none", LOG, PAYLOAD + 8, &[0; 4][..], "XX002"),
        ("records: zeroes", LOG, 0, &[0; PAGE][..], "XX002"),
        ("records: sequence number", LOG, PAYLOAD + 16 + 8, &[0xff; 8][..], "XX002"),
        ("copied records: zeroes", LOG_COPY, 0, &[0; PAGE][..], "XX002"),
        // Only what is read to be written again is held against its checksum.
        ("records: vector", LOG, vector, &[0, 0, 0x80, 0x3f][..], "VACUUM"),
    ] {
        let mut client = cluster.connect()?;
        table(&mut client, 8, "vector_l2_ops")?;
        insert(&mut client, 8, 2001, 2707)?;
        flush(&mut client)?;
        let path: String = client.query_one("SELECT pg_relation_filepath('t_e')", &[])?.get(0);
        let path: PathBuf = cluster.data_dir().join(path);
        let harmed = match kind {
            LOG => full_log_pages(&cluster)?,
            _ => pages(&cluster, kind)?,
        };
        ensure!(!harmed.is_empty(), "{what}: no page of kind {kind}");
        drop(client);
        cluster.stop(Stop::Fast)?;
        let file = OpenOptions::new().write(true).open(&path)?;
        for block in harmed {
            file.write_all_at(bytes, block * PAGE as u64 + offset)?;
        }
        cluster.start()?;
        let mut client = cluster.connect()?;
        client.batch_execute("SET enable_seqscan = off; SET drift.target_recall = 1")?;
        let near = query(&mut client, 8)?;
        client.batch_execute("DELETE FROM t WHERE id % 2 = 0 AND id > 2000")?;
        let failing = match code {
            "VACUUM" => "VACUUM t".to_owned(),
            _ => format!("SELECT id FROM t ORDER BY e <-> '{near}' LIMIT 2700"),
        };
        let Err(error) = client.simple_query(&failing) else {
            anyhow::bail!("{what}: {failing} succeeded");
        };
        let error = error.as_db_error().with_context(|| format!("{what}: {error}"))?;
        ensure!(error.code().code() == "XX002", "{what}: {error:?}");
        ensure!(error.hint().is_some_and(|hint| hint.contains("REINDEX")), "{what}: {error:?}");
        client.batch_execute("REINDEX INDEX t_e")?;
        compare(&mut client, "t", DISTANCES[0], &near, None).context(what)?;
    }
    require_quiet_log(&cluster.log())
}

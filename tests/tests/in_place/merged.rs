//! Such segments become one without being read: rows stay where they are, and keep their codes.

use super::*;
use std::os::unix::fs::{chown, MetadataExt};

/// More segments than there are after any flush of these tests.
const MANY: i32 = 12;

fn segments(client: &mut Client) -> Result<(i32, i32)> {
    let row = client.query_one("SELECT segments, arenas FROM drift_index_info('t_e')", &[])?;
    Ok((row.get(0), row.get(1)))
}

/// Flushes rows from number `from` on until one flush has merged segments, and calls `before` before
/// each flush; returns the number after the last row. Each flush takes some pages, so that these are
/// mostly full.
fn until_merged_with(
    client: &mut Client,
    dims: u32,
    mut from: i32,
    mut before: impl FnMut(i32) -> Result<()>,
) -> Result<i32> {
    let rows = if dims < 70 { 300 } else { 60 };
    loop {
        let (known, _) = segments(client)?;
        insert(client, dims, from, from + rows - 1)?;
        // The log has dead rows in it, too.
        client.batch_execute(&format!("DELETE FROM t WHERE id >= {from} AND id % 8 = 3"))?;
        from += rows;
        before(known)?;
        flush(client)?;
        let (now, arenas) = segments(client)?;
        ensure!(now == arenas && now <= MANY, "{now} segments, {arenas} arenas");
        if now < known {
            return Ok(from);
        }
    }
}

fn until_merged(client: &mut Client, dims: u32, from: i32) -> Result<i32> {
    until_merged_with(client, dims, from, |_| Ok(()))
}

/// The bytes of arenas, by their names.
fn contents(cluster: &Cluster) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let files = cluster.arena_files("postgres", "t_e")?;
    files.into_iter().map(|file| Ok((file.clone(), fs::read(file)?))).collect()
}

#[test]
fn rows_stay_where_they_are_and_codes_are_those_of_the_rows() -> Result<()> {
    let cluster = start()?;
    let mut client = cluster.connect()?;
    // Merges, and merges of what they made, with no more rows than the router bears.
    for (dims, class, merges) in [
        (8, "vector_l2_ops", 1),
        (70, "vector_ip_ops", 5),
        (70, "vector_cosine_ops", 3),
        (300, "vector_l2_ops", 3),
        (600, "vector_l1_ops", 2),
    ] {
        let case = || format!("{dims} dimensions, {class}");
        let distance = *DISTANCES.iter().find(|of| of.class == class).context("class")?;
        table(&mut client, dims, class)?;
        let near = query(&mut client, dims)?;
        let vectors = pages(&cluster, VECTORS)?.len();
        let mut next = 2001;
        for _ in 0..merges {
            next = until_merged(&mut client, dims, next).with_context(case)?;
            compare(&mut client, "t", distance, &near, Some(20)).with_context(case)?;
            compare(&mut client, "t", distance, &near, None).with_context(case)?;
        }
        let now = pages(&cluster, VECTORS)?.len();
        ensure!(now == vectors, "{}: {vectors} pages before, {now} now", case());

        // Made of the rows, arenas are the same.
        let merged = contents(&cluster)?;
        for (file, _) in &merged {
            fs::remove_file(file)?;
        }
        let mut fresh = cluster.connect()?;
        compare(&mut fresh, "t", distance, &near, None).with_context(case)?;
        let made = contents(&cluster)?;
        let names =
            |of: &[(PathBuf, Vec<u8>)]| of.iter().map(|of| of.0.clone()).collect::<Vec<_>>();
        ensure!(names(&made) == names(&merged), "{}: arenas are missing", case());
        // Under cosine what was found out when rows were assigned is rounded another way.
        let is_same = made == merged;
        ensure!(is_same || class == "vector_cosine_ops", "{}: other codes", case());

        // In order.
        client.batch_execute("DELETE FROM t WHERE id % 3 = 0")?;
        client.batch_execute("VACUUM t")?;
        compare(&mut client, "t", distance, &near, None).with_context(case)?;
    }
    require_quiet_log(&cluster.log())
}

#[test]
fn an_arena_that_is_missing_or_damaged_is_made_of_the_rows() -> Result<()> {
    let cluster = start()?;
    let mut client = cluster.connect()?;
    let dims = 70;
    table(&mut client, dims, "vector_l2_ops")?;
    let near = query(&mut client, dims)?;
    let mut next = 2001;
    for is_damaged in [false, true, false, true] {
        let mut harmed = 0;
        next = until_merged_with(&mut client, dims, next, |_| {
            for (nth, (file, mut bytes)) in contents(&cluster)?.into_iter().enumerate() {
                if is_damaged {
                    // In the last bucket's block; the file is replaced, for it may be mapped.
                    let at = bytes.len() - 100;
                    bytes[at] ^= 0x55;
                    let other = file.with_extension("other");
                    fs::write(&other, bytes)?;
                    let owner = fs::metadata(&file)?;
                    chown(&other, Some(owner.uid()), Some(owner.gid()))?;
                    fs::rename(&other, &file)?;
                    harmed += 1;
                } else if nth % 2 == 0 {
                    fs::remove_file(&file)?;
                    harmed += 1;
                }
            }
            Ok(())
        })?;
        ensure!(harmed > 4, "{harmed} arenas harmed");
        compare(&mut client, "t", DISTANCES[0], &near, None)?;
        compare(&mut cluster.connect()?, "t", DISTANCES[0], &near, Some(30))?;
    }
    require_quiet_log(&cluster.log())
}

#[test]
fn a_cursor_gets_every_row_once_whatever_becomes_of_its_segments() -> Result<()> {
    let cluster = start()?;
    let (mut reader, mut other) = (cluster.connect()?, cluster.connect()?);
    table(&mut other, 70, "vector_l2_ops")?;
    let near = query(&mut other, 70)?;
    reader.batch_execute("SET enable_seqscan = off; SET enable_sort = off")?;
    let mut next = 2001;
    for round in 0..4 {
        cursor_survives(&mut reader, &near, rows(&mut other)?, || {
            next = until_merged(&mut other, 70, next)?;
            Ok(())
        })
        .with_context(|| round.to_string())?;
    }
    require_quiet_log(&cluster.log())
}

#[test]
fn they_are_truth_after_a_crash_and_on_a_standby() -> Result<()> {
    let mut cluster = start()?;
    let mut client = cluster.connect()?;
    table(&mut client, 70, "vector_l2_ops")?;
    let standby = cluster.standby()?;
    let near = query(&mut client, 70)?;
    let mut next = 2001;
    for _ in 0..3 {
        next = until_merged(&mut client, 70, next)?;
        insert(&mut client, 70, next, next + 10)?;
        next += 11;
        cluster.wait_for_catchup(&standby)?;
        compare(&mut standby.connect()?, "t", DISTANCES[0], &near, None).context("standby")?;
        cluster.stop(Stop::Immediate)?;
        cluster.start()?;
        client = cluster.connect()?;
        compare(&mut client, "t", DISTANCES[0], &near, None).context("after a crash")?;
    }
    standby.connect()?.batch_execute("SELECT pg_promote()")?;
    let mut promoted = standby.connect()?;
    until_merged(&mut promoted, 70, next)?;
    compare(&mut promoted, "t", DISTANCES[0], &near, None).context("promoted")?;
    for cluster in [&cluster, &standby] {
        require_quiet_log(&cluster.log())?;
    }
    Ok(())
}

/// A VACUUM that fails between the clearing of an index's rows and its flush leaves dead rows on
/// the log's pages.
#[test]
fn dead_rows_are_left_behind() -> Result<()> {
    let mut cluster = start()?;
    let mut client = cluster.connect()?;
    table(&mut client, 70, "vector_l2_ops")?;
    // Vacuum comes to it first.
    client.batch_execute("ALTER INDEX t_e RENAME TO t_harmed")?;
    client.batch_execute("CREATE INDEX t_e ON t USING drift (e vector_l2_ops)")?;
    let near = query(&mut client, 70)?;
    let mut next = 2001;
    for _ in 0..10 {
        insert(&mut client, 70, next, next + 59)?;
        next += 60;
        set_janitor(&mut client, "on")?;
        client.batch_execute("SELECT drift_flush('t_harmed'), drift_flush('t_e')")?;
        set_janitor(&mut client, "off")?;
    }
    client.batch_execute("DELETE FROM t WHERE id % 7 = 1 AND id > 2000; CHECKPOINT")?;
    let path: String = client.query_one("SELECT pg_relation_filepath('t_harmed')", &[])?.get(0);
    let path = cluster.data_dir().join(path);
    cluster.stop(Stop::Fast)?;
    // A manifest that cannot be read is met by the first step already; a bucket table by the last.
    let bytes = fs::read(&path)?;
    let file = OpenOptions::new().write(true).open(&path)?;
    for (block, page) in (0..).zip(bytes.chunks_exact(PAGE)) {
        if page[KIND as usize..][..2] == BUCKETS.to_le_bytes() {
            file.write_all_at(&[0; PAGE], block * PAGE as u64)?;
        }
    }
    cluster.start()?;
    client = cluster.connect()?;
    let Err(error) = client.simple_query("VACUUM (INDEX_CLEANUP ON) t") else {
        anyhow::bail!("the harm was not met");
    };
    ensure!(error.as_db_error().is_some_and(|e| e.code().code() == "XX002"), "{error}");
    client.batch_execute("DROP INDEX t_harmed")?;
    ensure!(!pages(&cluster, PLACES)?.is_empty(), "in order");
    let vectors = pages(&cluster, VECTORS)?.len();
    for _ in 0..2 {
        next = until_merged(&mut client, 70, next)?;
        ensure!(pages(&cluster, VECTORS)?.len() == vectors, "written");
        compare(&mut client, "t", DISTANCES[0], &near, None)?;
    }
    let log = cluster.log();
    ensure!(!log.contains("still in the index"), "{log}");
    require_quiet_log(&log)
}

/// Training may be cut short by what is written meanwhile.
#[test]
fn they_are_one_before_buckets_are_trained_anew() -> Result<()> {
    let cluster = start()?;
    let mut client = cluster.connect()?;
    table(&mut client, 70, "vector_l2_ops")?;
    let near = query(&mut client, 70)?;
    for first in [2001, 2401, 2801] {
        insert(&mut client, 70, first, first + 399)?;
        client.batch_execute("SELECT drift_flush('t_e')")?;
    }
    ensure!(segments(&mut client)? == (4, 4), "{:?}", segments(&mut client)?);
    let begun = Instant::now();
    while !cluster.log().contains("(trained anew)") {
        ensure!(begun.elapsed() < Duration::from_secs(60), "not trained: {}", cluster.log());
        compare(&mut client, "t", DISTANCES[0], &near, Some(50))?;
        sleep(Duration::from_millis(50));
    }
    let log = cluster.log();
    let joined = log.find("merged segments: 3 with 1200 rows, all in place, segments now: 2");
    let trained = log.find("merged segments: 2 with 3200 rows, segments now: 1");
    ensure!(joined.is_some() && joined < trained, "{log}");
    compare(&mut client, "t", DISTANCES[0], &near, None)?;
    require_quiet_log(&log)
}

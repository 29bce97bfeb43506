//! Arenas are derived: whatever happens to one, answers stay right, and it is made again.

use anyhow::{ensure, Result};
use harness::cluster::Cluster;
use harness::oracle::{compare, require_quiet_log, DISTANCES};
use postgres::Client;
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

const QUERY: &str = "[1,-1,0.5,0,2,0.1,1,1]";

/// A table with an index of two segments, and another index.
fn start() -> Result<Cluster> {
    fill(Cluster::builder().start()?)
}

fn fill(cluster: Cluster) -> Result<Cluster> {
    cluster.connect()?.batch_execute(
        "CREATE EXTENSION drift_pg;
         CREATE FUNCTION wave(i integer) RETURNS vector LANGUAGE sql IMMUTABLE AS
         $$ SELECT array_agg(sin(i * 0.37 + d * d * 1.7) * (1 + i % 5) ORDER BY d)::vector
            FROM generate_series(1, 8) d $$;
         CREATE TABLE t (id integer PRIMARY KEY, e vector(8));
         INSERT INTO t SELECT i, wave(i) FROM generate_series(1, 9000) i;
         CREATE INDEX t_e ON t USING drift (e);
         CREATE INDEX other ON t USING drift (e vector_ip_ops);
         INSERT INTO t SELECT i, wave(i) FROM generate_series(9001, 10000) i;
         SELECT drift_flush('t_e')",
    )?;
    Ok(cluster)
}

/// Both a backend that had the arenas mapped and a new one answer right.
fn require_right_answers(cluster: &Cluster, old: &mut Client) -> Result<()> {
    let mut new = cluster.connect()?;
    for client in [old, &mut new] {
        compare(client, "t", DISTANCES[0], QUERY, Some(50))?;
        compare(client, "t", DISTANCES[0], QUERY, None)?;
        let nearest = format!("SELECT id FROM t ORDER BY e <-> '{QUERY}' LIMIT 10");
        ensure!(client.query(&nearest, &[])?.len() == 10);
    }
    Ok(())
}

fn arenas(cluster: &Cluster) -> Result<(i32, i32)> {
    let row = cluster
        .connect()?
        .query_one("SELECT segments, arenas FROM drift_index_info('t_e')", &[])?;
    Ok((row.get(0), row.get(1)))
}

/// Does `harm` to each arena of `t_e` and expects right answers, a line in the log if there is
/// something to see, and the arenas made again.
fn survives(
    what: &str,
    logged: bool,
    harm: impl Fn(&Path, &[PathBuf]) -> Result<()>,
) -> Result<()> {
    let cluster = start()?;
    let mut old = cluster.connect()?;
    require_right_answers(&cluster, &mut old)?;
    let files = cluster.arena_files("postgres", "t_e")?;
    // One a segment, and the router's.
    ensure!(files.len() == 3 && arenas(&cluster)? == (2, 2));
    for file in &files {
        harm(file, &files)?;
    }
    // Twice: what a first search found wrong the next one has mended.
    require_right_answers(&cluster, &mut old)?;
    require_right_answers(&cluster, &mut old)?;
    ensure!(arenas(&cluster)? == (2, 2), "{what}: {:?}", arenas(&cluster)?);
    ensure!(cluster.arena_files("postgres", "t_e")? == files, "{what}: arenas are back");
    let log = cluster.log();
    ensure!(log.contains("an arena of index \"t_e\"") == logged, "{what}: {log}");
    require_quiet_log(&log)
}

/// Replaces `file` as a writer would, so that those who have it mapped keep it.
fn replace(file: &Path, bytes: &[u8]) -> Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, bytes)?;
    fs::set_permissions(&new, Permissions::from_mode(0o666))?;
    Ok(fs::rename(&new, file)?)
}

#[test]
fn missing() -> Result<()> {
    survives("missing", false, |file, _| Ok(fs::remove_file(file)?))
}

#[test]
fn truncated() -> Result<()> {
    for keep in [0, 1, 127, 128, 4096] {
        survives("truncated", true, |file, _| {
            let bytes = fs::read(file)?;
            replace(file, &bytes[..keep.min(bytes.len() - 1)])
        })?;
    }
    Ok(())
}

#[test]
fn of_another_segment() -> Result<()> {
    survives("of another segment", true, |file, files| {
        let other = files.iter().find(|other| *other != file);
        let other = other.ok_or(anyhow::anyhow!("two segments"))?;
        replace(file, &fs::read(other)?)
    })
}

#[test]
fn with_a_bad_checksum() -> Result<()> {
    // Header, bucket table, codes of some bucket, and the end.
    for place in [0.0, 0.002, 0.5, 0.97, 1.0] {
        survives("with a bad checksum", true, |file, _| {
            let mut bytes = fs::read(file)?;
            let at = ((bytes.len() - 1) as f64 * place) as usize;
            let end = (at + 700).min(bytes.len());
            bytes[at..end].iter_mut().for_each(|byte| *byte ^= 0x5a);
            replace(file, &bytes)
        })?;
    }
    Ok(())
}

#[test]
fn scribbled_upon_while_it_is_mapped() -> Result<()> {
    let cluster = start()?;
    let mut fresh = cluster.connect()?;
    for file in cluster.arena_files("postgres", "t_e")? {
        let file = OpenOptions::new().write(true).open(file)?;
        let len = file.metadata()?.len();
        for at in (len / 4..len - 100).step_by(3000) {
            file.write_all_at(&[0xa5; 64], at)?;
        }
    }
    require_right_answers(&cluster, &mut fresh)?;
    require_right_answers(&cluster, &mut fresh)?;
    ensure!(arenas(&cluster)? == (2, 2));
    ensure!(cluster.log().contains("bad checksum"));
    require_quiet_log(&cluster.log())
}

#[test]
fn where_no_file_can_be_written() -> Result<()> {
    let cluster = start()?;
    let mut old = cluster.connect()?;
    require_right_answers(&cluster, &mut old)?;
    let files = cluster.arena_files("postgres", "t_e")?;
    let directory = files[0].parent().ok_or(anyhow::anyhow!("a directory"))?.to_path_buf();
    for file in &files {
        fs::remove_file(file)?;
    }
    fs::set_permissions(&directory, Permissions::from_mode(0o500))?;
    let answers = require_right_answers(&cluster, &mut old);
    let inserted = old.batch_execute(
        "INSERT INTO t SELECT i, wave(i) FROM generate_series(20001, 20500) i;
         SELECT drift_flush('t_e')",
    );
    let more_answers = require_right_answers(&cluster, &mut old);
    fs::set_permissions(&directory, Permissions::from_mode(0o700))?;
    answers?;
    inserted?;
    more_answers?;
    ensure!(cluster.log().contains("could not write an arena of index \"t_e\""));
    // With the directory writable again, a new backend writes files.
    require_right_answers(&cluster, &mut cluster.connect()?)?;
    ensure!(!cluster.arena_files("postgres", "t_e")?.is_empty());
    require_quiet_log(&cluster.log())
}

#[test]
fn on_a_full_disk() -> Result<()> {
    if !is_root() {
        println!("not root: a small file system cannot be mounted, so nothing was tested");
        return Ok(());
    }
    let cluster = start()?;
    let place = cluster.socket_dir().join("full");
    fs::create_dir(&place)?;
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=6m,mode=0777", "tmpfs"])
        .arg(&place)
        .status()?;
    if !mounted.success() {
        println!("a small file system cannot be mounted here, so nothing was tested");
        return Ok(());
    }
    let result = fill_up(&cluster, &place);
    drop(cluster);
    std::process::Command::new("umount").arg("-l").arg(&place).status()?;
    result
}

fn fill_up(cluster: &Cluster, place: &Path) -> Result<()> {
    let mut client = cluster.connect()?;
    let space = place.join("space");
    fs::create_dir(&space)?;
    chown_like(&space, &cluster.data_dir())?;
    client.batch_execute(&format!("CREATE TABLESPACE small LOCATION '{}'", space.display()))?;
    client.batch_execute("ALTER INDEX t_e SET TABLESPACE small; CHECKPOINT")?;
    let filler = File::create(place.join("filler"))?;
    let mut written = 0;
    while filler.write_at(&[1; 4096], written).is_ok() {
        written += 4096;
    }
    let mut new = cluster.connect()?;
    compare(&mut new, "t", DISTANCES[0], QUERY, Some(50))?;
    compare(&mut new, "t", DISTANCES[0], QUERY, None)?;
    ensure!(
        cluster.log().contains("could not write an arena of index \"t_e\""),
        "{}",
        cluster.log()
    );
    filler.set_len(0)?;
    compare(&mut cluster.connect()?, "t", DISTANCES[0], QUERY, Some(50))?;
    ensure!(cluster.arena_files("postgres", "t_e")?.len() == 3);
    client.batch_execute("DROP INDEX t_e")?;
    client.batch_execute("CHECKPOINT")?;
    client.batch_execute("DROP TABLESPACE small")?;
    require_quiet_log(&cluster.log())
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

fn chown_like(path: &Path, model: &Path) -> Result<()> {
    use std::os::unix::fs::{chown, MetadataExt};
    let model = fs::metadata(model)?;
    Ok(chown(path, Some(model.uid()), Some(model.gid()))?)
}

#[test]
fn gone_with_what_they_belong_to() -> Result<()> {
    // Preloaded, so that a session that only drops knows of arenas.
    let cluster = fill(Cluster::builder().conf("shared_preload_libraries", "drift_pg").start()?)?;
    let mut client = cluster.connect()?;
    let count = || -> Result<usize> {
        let directory = cluster.data_dir().join("base");
        let mut count = 0;
        for database in fs::read_dir(directory)? {
            for file in fs::read_dir(database?.path())? {
                count +=
                    usize::from(file?.file_name().to_string_lossy().starts_with("pgsql_tmp_drift"));
            }
        }
        Ok(count)
    };
    ensure!(count()? == 5, "two segments and one, and two routers");
    client.batch_execute("DROP INDEX other")?;
    ensure!(count()? == 3, "dropped");
    client.batch_execute("BEGIN; DROP INDEX t_e; ROLLBACK")?;
    ensure!(count()? == 3, "not dropped after all");
    client.batch_execute("BEGIN; CREATE INDEX other ON t USING drift (e); ROLLBACK")?;
    ensure!(count()? == 3, "not created after all");
    client.batch_execute("REINDEX INDEX t_e")?;
    client.batch_execute("VACUUM t")?;
    ensure!(count()? == 2, "rebuilt");
    client.batch_execute(
        "TRUNCATE t; INSERT INTO t SELECT i, wave(i) FROM generate_series(1, 3000) i",
    )?;
    client.batch_execute("VACUUM t")?;
    ensure!(count()? == 2, "truncated and filled");
    client.batch_execute("DROP TABLE t")?;
    ensure!(count()? == 0, "dropped with the table");
    client.batch_execute("CREATE DATABASE d TEMPLATE template1")?;
    client.batch_execute("DROP DATABASE d")?;
    require_quiet_log(&cluster.log())
}

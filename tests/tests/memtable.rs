//! The memtable: whatever happens to shared memory, the answers stay those of a sequential scan.

use anyhow::{ensure, Context, Result};
use harness::cluster::{Cluster, Stop};
use harness::oracle::{compare, compare_all, require_quiet_log, DISTANCES};
use postgres::Client;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

const QUERY: &str = "[1,-1,0.5,0,2,0.1,1,1]";

/// Longer than a slot must be idle to be taken away.
const IDLE: Duration = Duration::from_millis(1200);

const SETUP: &str = "CREATE EXTENSION drift_pg;
    CREATE FUNCTION wave(i integer) RETURNS vector LANGUAGE sql IMMUTABLE AS
    $$ SELECT array_agg(sin(i * 0.37 + d * d * 1.7) * (1 + i % 5) ORDER BY d)::vector
       FROM generate_series(1, 8) d $$;";

/// A cluster whose logs last until the test flushes them.
fn preloaded(size: &str) -> Result<Cluster> {
    start(size, "off")
}

fn start(size: &str, janitor: &str) -> Result<Cluster> {
    let cluster = Cluster::builder()
        .conf("shared_preload_libraries", "drift_pg")
        .conf("drift.memtable_size", size)
        .conf("drift.janitor", janitor)
        .start()?;
    cluster.connect()?.batch_execute(SETUP)?;
    Ok(cluster)
}

/// A table `t` of 3,000 rows with an index of each distance, named `t_0` and so on.
fn table(client: &mut Client) -> Result<()> {
    client.batch_execute(
        "CREATE TABLE t (id integer PRIMARY KEY, e vector(8));
         INSERT INTO t SELECT i, wave(i) FROM generate_series(1, 3000) i",
    )?;
    for (nth, distance) in DISTANCES.iter().enumerate() {
        let class = distance.class;
        client.batch_execute(&format!("CREATE INDEX t_{nth} ON t USING drift (e {class})"))?;
    }
    Ok(())
}

/// Live rows of the index's log, and rows and linked ones of the memtable.
fn rows(client: &mut Client, index: &str) -> Result<(i64, i64, i64)> {
    let sql = "SELECT log_rows, memtable_rows, memtable_linked
               FROM drift_index_info($1::text::regclass)";
    let row = client.query_one(sql, &[&index])?;
    Ok((row.get(0), row.get(1), row.get(2)))
}

/// Fails unless the memtable has the log's rows.
fn require_held(client: &mut Client, index: &str) -> Result<()> {
    let (log, held, _) = rows(client, index)?;
    ensure!(held >= log && log > 0, "{index}: {log} rows in the log, {held} in memory");
    Ok(())
}

#[test]
fn a_life_of_statements() -> Result<()> {
    let cluster = preloaded("16MB")?;
    let mut client = cluster.connect()?;
    table(&mut client)?;
    let steps = [
        ("INSERT INTO t SELECT i, wave(i) FROM generate_series(3001, 3500) i", true),
        ("UPDATE t SET e = wave(id + 3) WHERE id % 5 = 0", true),
        ("DELETE FROM t WHERE id % 2 = 0", true),
        ("VACUUM t", false),
        // Into the places of the dead.
        ("INSERT INTO t SELECT i, wave(i) FROM generate_series(7001, 9000) i", true),
        ("SELECT drift_flush('t_0'), drift_flush('t_1'), drift_flush('t_2')", false),
        ("INSERT INTO t SELECT i, wave(i) FROM generate_series(9001, 9100) i", true),
        (
            "BEGIN; INSERT INTO t SELECT i, wave(i) FROM generate_series(9501, 9600) i; ROLLBACK",
            true,
        ),
        (
            "BEGIN; SAVEPOINT a; INSERT INTO t VALUES (9701, wave(9701)); ROLLBACK TO a;
          INSERT INTO t VALUES (9702, wave(9702)); COMMIT",
            true,
        ),
        ("VACUUM t", false),
        ("INSERT INTO t SELECT i, wave(i) FROM generate_series(9501, 9600) i", true),
        ("REINDEX TABLE t", false),
        ("INSERT INTO t SELECT i, wave(i) FROM generate_series(9801, 9900) i", true),
        ("TRUNCATE t", false),
        ("INSERT INTO t SELECT i, wave(i) FROM generate_series(1, 200) i", true),
        ("BEGIN; TRUNCATE t; INSERT INTO t VALUES (1, wave(77)); ROLLBACK", true),
        (
            "BEGIN; TRUNCATE t; INSERT INTO t SELECT i, wave(i + 9) FROM generate_series(1, 99) i;
          COMMIT",
            true,
        ),
        ("DROP INDEX t_0; CREATE INDEX t_0 ON t USING drift (e)", false),
        ("INSERT INTO t SELECT i, wave(i) FROM generate_series(201, 400) i", true),
        (
            "SET drift.log_limit = '64kB';
          INSERT INTO t SELECT i, wave(i) FROM generate_series(10001, 14000) i",
            true,
        ),
    ];
    for (step, in_log) in steps {
        client.batch_execute(step).context(step)?;
        compare_all(&mut client, "t", QUERY).context(step)?;
        if in_log {
            for index in ["t_0", "t_1", "t_2", "t_3"] {
                require_held(&mut client, index).context(step)?;
            }
        }
    }
    require_quiet_log(&cluster.log())
}

#[test]
fn every_mishap_is_recovered_from_the_log() -> Result<()> {
    let mut cluster = preloaded("16MB")?;
    table(&mut cluster.connect()?)?;
    for round in 0..4 {
        let mut client = cluster.connect()?;
        client.batch_execute(&format!(
            "INSERT INTO t SELECT i, wave(i) FROM generate_series({0}1001, {0}1400) i;
             DELETE FROM t WHERE id % 13 = {0}",
            round + 1
        ))?;
        require_held(&mut client, "t_0")?;
        match round {
            0 => cluster.restart()?,
            1 => {
                cluster.kill9()?;
                cluster.start()?;
            }
            2 => {
                cluster.stop(Stop::Immediate)?;
                cluster.start()?;
            }
            // A backend that is killed takes shared memory with it.
            _ => {
                let mut victim = cluster.connect()?;
                let pid: i32 = victim.query_one("SELECT pg_backend_pid()", &[])?.get(0);
                // SAFETY: a signal to a backend of this test's own server.
                ensure!(unsafe { libc::kill(pid, libc::SIGKILL) } == 0);
                let deadline = Instant::now() + Duration::from_secs(60);
                while !cluster.log().contains("all server processes terminated; reinitializing")
                    || cluster.connect().is_err()
                {
                    ensure!(Instant::now() < deadline, "the server has not come back");
                    sleep(Duration::from_millis(50));
                }
            }
        }
        let mut client = cluster.connect()?;
        ensure!(rows(&mut client, "t_0")?.1 == 0, "shared memory is new");
        compare_all(&mut client, "t", QUERY)?;
        // The scan has read them all.
        require_held(&mut client, "t_0")?;
        compare_all(&mut client, "t", QUERY)?;
    }
    require_quiet_log(&cluster.log())
}

#[test]
fn a_standby_keeps_up_by_reading_the_log() -> Result<()> {
    let primary = preloaded("16MB")?;
    table(&mut primary.connect()?)?;
    let standby = primary.standby()?;
    let steps = [
        "INSERT INTO t SELECT i, wave(i) FROM generate_series(3001, 3800) i",
        "INSERT INTO t SELECT i, wave(i) FROM generate_series(3801, 3810) i",
        "SELECT drift_flush('t_0'), drift_flush('t_1')",
        "INSERT INTO t SELECT i, wave(i) FROM generate_series(4001, 4500) i",
        "DELETE FROM t WHERE id % 2 = 0",
        "VACUUM t",
        "INSERT INTO t SELECT i, wave(i) FROM generate_series(7001, 9000) i",
        "TRUNCATE t; INSERT INTO t SELECT i, wave(i + 5) FROM generate_series(1, 500) i",
        "SET drift.log_limit = '64kB';
         INSERT INTO t SELECT i, wave(i) FROM generate_series(10001, 14000) i",
    ];
    for step in steps {
        primary.connect()?.batch_execute(step)?;
        primary.wait_for_catchup(&standby)?;
        for cluster in [&primary, &standby] {
            compare_all(&mut cluster.connect()?, "t", QUERY).context(step)?;
        }
        if step.contains("generate_series(7001") {
            require_held(&mut standby.connect()?, "t_0")?;
        }
    }
    standby.connect()?.batch_execute("SELECT pg_promote()")?;
    let mut client = standby.connect()?;
    client.batch_execute("INSERT INTO t SELECT i, wave(i) FROM generate_series(20001, 20500) i")?;
    compare_all(&mut client, "t", QUERY)?;
    require_held(&mut client, "t_0")?;
    require_quiet_log(&primary.log())?;
    require_quiet_log(&standby.log())
}

#[test]
fn what_does_not_fit_is_read_from_pages() -> Result<()> {
    let cluster = preloaded("256kB")?;
    let mut client = cluster.connect()?;
    client.batch_execute(
        "CREATE TABLE t (id serial, e vector(8)); CREATE INDEX t_e ON t USING drift (e);
         SET drift.log_limit = '1GB'",
    )?;
    for part in 0..4 {
        client.batch_execute("INSERT INTO t (e) SELECT wave(i) FROM generate_series(1, 1500) i")?;
        compare(&mut client, "t", DISTANCES[0], QUERY, Some(10)).context(part)?;
        compare(&mut client, "t", DISTANCES[0], QUERY, None).context(part)?;
    }
    let (log, held, _) = rows(&mut client, "t_e")?;
    ensure!(log == 6000 && held > 0 && held < log, "{held} rows of {log} are in memory");
    client.batch_execute("SELECT drift_flush('t_e')")?;
    client.batch_execute("INSERT INTO t (e) SELECT wave(i) FROM generate_series(1, 100) i")?;
    compare(&mut client, "t", DISTANCES[0], QUERY, None)?;
    require_held(&mut client, "t_e")?;

    // Longer than any page: one row in memory takes half a chunk.
    client.batch_execute(
        "CREATE TABLE long (id integer, e vector(16000));
         CREATE INDEX long_e ON long USING drift (e);
         INSERT INTO long SELECT i, (SELECT array_agg(sin(i * d)) FROM generate_series(1, 16000) d)
         FROM generate_series(1, 7) i",
    )?;
    let query: String = client.query_one("SELECT e::text FROM long WHERE id = 3", &[])?.get(0);
    compare(&mut client, "long", DISTANCES[0], &query, None)?;
    client.batch_execute("SELECT drift_flush('long_e')")?;
    compare(&mut client, "long", DISTANCES[0], &query, None)?;
    require_quiet_log(&cluster.log())
}

#[test]
fn indexes_take_turns_when_memory_is_short() -> Result<()> {
    const INDEXES: usize = 70;
    let cluster = preloaded("1MB")?;
    let mut client = cluster.connect()?;
    for nth in 0..INDEXES {
        client.batch_execute(&format!(
            "CREATE TABLE t{nth} (id serial, e vector(8));
             CREATE INDEX ON t{nth} USING drift (e);
             INSERT INTO t{nth} (e) SELECT wave(i + {nth}) FROM generate_series(1, 100) i"
        ))?;
    }
    for round in 0..2 {
        sleep(IDLE);
        for nth in (0..INDEXES).step_by(7) {
            let table = format!("t{nth}");
            for _ in 0..2 {
                compare(&mut client, &table, DISTANCES[0], QUERY, None).context(round)?;
            }
            client.batch_execute(&format!(
                "INSERT INTO t{nth} (e) SELECT wave(i) FROM generate_series(1, 80) i"
            ))?;
            compare(&mut client, &table, DISTANCES[0], QUERY, None).context(round)?;
        }
    }
    let mut held = 0;
    for nth in 0..INDEXES {
        held += usize::from(rows(&mut client, &format!("t{nth}_e_idx"))?.1 > 0);
    }
    ensure!((1..=8).contains(&held), "{held} indexes share 8 chunks");
    // One that others have pushed out comes back.
    sleep(IDLE);
    compare(&mut client, "t1", DISTANCES[0], QUERY, None)?;
    require_held(&mut client, "t1_e_idx")?;
    require_quiet_log(&cluster.log())
}

/// An index of 128 dimensions whose log grows without limit.
const CLOUDS: &str = "CREATE FUNCTION cloud(i integer) RETURNS vector LANGUAGE sql IMMUTABLE AS
    $$ SELECT array_agg(sin(i % 40 * 0.7 + d * d) + sin(i * 0.37 * d + i * i::float8 * 0.011) * 0.4
                        ORDER BY d)::vector FROM generate_series(1, 128) d $$;
    CREATE TABLE t (id integer, e vector(128));
    CREATE INDEX t_e ON t USING drift (e);
    SET drift.log_limit = '1GB'";

#[test]
fn the_janitor_links_what_is_searched() -> Result<()> {
    let cluster = start("64MB", "on")?;
    let mut client = cluster.connect()?;
    client.batch_execute(CLOUDS)?;
    client.batch_execute(
        "SET enable_seqscan = off; SET enable_sort = off;
         INSERT INTO t SELECT i, cloud(i) FROM generate_series(1, 36000) i",
    )?;
    let begun = Instant::now();
    while rows(&mut client, "t_e")?.2 < 1000 {
        let state = rows(&mut client, "t_e")?;
        ensure!(begun.elapsed() < Duration::from_secs(30), "{state:?}");
        client.query("SELECT id FROM t ORDER BY e <-> cloud(7) LIMIT 10", &[])?;
        sleep(Duration::from_millis(20));
    }
    require_held(&mut client, "t_e")?;
    require_quiet_log(&cluster.log())
}

#[test]
fn inserts_link_nothing_of_an_index_that_nobody_searches() -> Result<()> {
    const ROWS: i64 = 9000;
    let cluster = preloaded("128MB")?;
    let mut client = cluster.connect()?;
    // More than 64 MB, from which on inserts link two rows each of an index that is searched.
    client.batch_execute(
        "SET drift.log_limit = '512MB';
         CREATE TABLE long (id integer, e vector(2000));
         CREATE INDEX long_e ON long USING drift (e);
         INSERT INTO long SELECT i, array_fill(i::real, ARRAY[2000])::vector
         FROM generate_series(1, 9000) i",
    )?;
    let (log, held, linked) = rows(&mut client, "long_e")?;
    ensure!((log, held, linked) == (ROWS, ROWS, 0), "{log} {held} {linked}");
    // Looked for in the rows as they are.
    client.batch_execute("SET enable_seqscan = off; SET drift.target_recall = 1")?;
    let nearest = "SELECT id FROM long
                   ORDER BY e <-> array_fill(77::real, ARRAY[2000])::vector LIMIT 1";
    ensure!(client.query_one(nearest, &[])?.get::<_, i32>(0) == 77);
    client.batch_execute(
        "INSERT INTO long SELECT i, array_fill(i::real, ARRAY[2000])::vector
         FROM generate_series(9001, 9100) i",
    )?;
    let (_, _, linked) = rows(&mut client, "long_e")?;
    ensure!(linked > 0, "once it is searched, inserts link");
    ensure!(client.query_one(nearest, &[])?.get::<_, i32>(0) == 77);
    require_quiet_log(&cluster.log())
}

#[test]
fn the_graph_finds_the_nearest_and_a_scan_delivers_every_row() -> Result<()> {
    const ROWS: usize = 20_000;
    let cluster = preloaded("64MB")?;
    let mut client = cluster.connect()?;
    client.batch_execute(CLOUDS)?;
    client.batch_execute("INSERT INTO t SELECT i, cloud(i) FROM generate_series(1, 20000) i")?;
    let linked: i64 = client.query_one("SELECT drift_link()", &[])?.get(0);
    let (log, held, known) = rows(&mut client, "t_e")?;
    ensure!((log, held, known) == (ROWS as i64, ROWS as i64, linked), "{log} {held} {known}");
    ensure!(linked > ROWS as i64 / 2, "{linked} rows are linked");
    client.batch_execute("SET enable_seqscan = off; SET enable_sort = off")?;
    let nearest = |client: &mut Client, seed: i32, recall: &str, limit: i64| -> Result<Vec<i32>> {
        client.batch_execute(&format!("SET drift.target_recall = {recall}"))?;
        let sql = "SELECT id FROM t ORDER BY e <-> cloud($1) LIMIT $2";
        Ok(client.query(sql, &[&seed, &limit])?.iter().map(|row| row.get(0)).collect())
    };
    let mut hits = 0;
    for seed in 0..50 {
        let truth: HashSet<i32> =
            nearest(&mut client, 1_000_000 + seed, "1", 10)?.into_iter().collect();
        let found = nearest(&mut client, 1_000_000 + seed, "0.95", 10)?;
        ensure!(truth.len() == 10 && found.len() == 10);
        hits += found.iter().filter(|id| truth.contains(id)).count();
    }
    ensure!(hits >= 475, "{hits} of 500");
    for (limit, most) in [(1000, 1000), (i64::MAX, ROWS)] {
        let ids = nearest(&mut client, 5, "0.95", limit)?;
        let distinct: HashSet<i32> = ids.iter().copied().collect();
        ensure!(ids.len() == most && distinct.len() == most, "{} rows", ids.len());
    }
    compare(&mut client, "t", DISTANCES[0], &format!("[{}1]", "0.5,".repeat(127)), Some(500))?;
    // And after a flush that rows follow, in memory and on the graph that was begun.
    client.batch_execute("SELECT drift_flush('t_e')")?;
    let (log, held, known) = rows(&mut client, "t_e")?;
    ensure!((log, held, known) == (0, 0, 0), "{log} {held} {known}");
    client
        .batch_execute("INSERT INTO t SELECT i, cloud(i) FROM generate_series(20001, 20300) i")?;
    require_held(&mut client, "t_e")?;
    compare(&mut client, "t", DISTANCES[0], &format!("[{}1]", "0.5,".repeat(127)), Some(500))?;
    require_quiet_log(&cluster.log())
}

#[test]
fn a_cursor_gets_every_row_once_whatever_becomes_of_the_memtable() -> Result<()> {
    let mut cluster = preloaded("16MB")?;
    let between = [
        "SELECT drift_flush('t_e')",
        "INSERT INTO t SELECT i, wave(i) FROM generate_series(10001, 10500) i",
        "SELECT drift_flush('t_e'); INSERT INTO t SELECT i, wave(i)
         FROM generate_series(20001, 25000) i",
        "SET drift.log_limit = '64kB';
         INSERT INTO t SELECT i, wave(i) FROM generate_series(30001, 34000) i",
    ];
    for (nth, statement) in between.iter().enumerate() {
        let mut client = cluster.connect()?;
        client.batch_execute(
            "DROP TABLE IF EXISTS t; CREATE TABLE t (id integer, e vector(8));
             INSERT INTO t SELECT i, wave(i) FROM generate_series(1, 1000) i;
             CREATE INDEX t_e ON t USING drift (e);
             INSERT INTO t SELECT i, wave(i) FROM generate_series(1001, 6000) i;
             SELECT drift_link();
             SET enable_seqscan = off; SET enable_sort = off",
        )?;
        for recall in ["0.9", "1"] {
            let expected: i64 = client.query_one("SELECT count(*) FROM t", &[])?.get(0);
            let mut transaction = client.transaction()?;
            transaction.batch_execute(&format!(
                "SET LOCAL drift.target_recall = {recall};
                 DECLARE c CURSOR FOR SELECT id, e <-> '{QUERY}' FROM t ORDER BY e <-> '{QUERY}'"
            ))?;
            let mut got = transaction.query("FETCH 20 FROM c", &[])?;
            cluster.connect()?.batch_execute(statement)?;
            got.extend(transaction.query("FETCH 30 FROM c", &[])?);
            got.extend(transaction.query("FETCH ALL FROM c", &[])?);
            transaction.commit()?;
            let ids: HashSet<i32> = got.iter().map(|row| row.get(0)).collect();
            ensure!(
                ids.len() == got.len() && ids.len() as i64 == expected,
                "{nth}, {recall}: {} rows, {} of them different, of {expected}",
                got.len(),
                ids.len()
            );
            if recall == "1" {
                let ranks: Vec<f64> = got.iter().map(|row| row.get(1)).collect();
                ensure!(ranks.is_sorted(), "in order");
            }
        }
    }
    cluster.restart()?;
    compare(&mut cluster.connect()?, "t", DISTANCES[0], QUERY, None)?;
    require_quiet_log(&cluster.log())
}

#[test]
fn readers_writers_linkers_and_flushes_at_once() -> Result<()> {
    let cluster = preloaded("4MB")?;
    let mut client = cluster.connect()?;
    table(&mut client)?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let mut running = Vec::new();
        for writer in 0..2 {
            let (cluster, done) = (&cluster, &done);
            running.push(scope.spawn(move || -> Result<()> {
                let mut client = cluster.connect()?;
                client.batch_execute("SET drift.log_limit = '256kB'")?;
                for round in 0..150 {
                    let first = 100_000 * (writer + 1) + round * 50;
                    client.batch_execute(&format!(
                        "INSERT INTO t SELECT i, wave(i) FROM generate_series({first}, {first} + 49) i;
                         DELETE FROM t WHERE id BETWEEN {first} AND {first} + 20"
                    ))?;
                    if round % 25 == 24 && writer == 0 {
                        client.batch_execute("VACUUM t")?;
                    }
                }
                done.store(true, Ordering::Release);
                Ok(())
            }));
        }
        for reader in 0..2 {
            let (cluster, done) = (&cluster, &done);
            running.push(scope.spawn(move || -> Result<()> {
                let mut client = cluster.connect()?;
                let mut rounds = 0;
                while !done.load(Ordering::Acquire) {
                    let distance = DISTANCES[(rounds + reader) % 4];
                    compare(&mut client, "t", distance, QUERY, Some(100))?;
                    compare(&mut client, "t", distance, QUERY, None)?;
                    client.batch_execute("SELECT drift_link()")?;
                    if rounds % 10 == 9 {
                        client.batch_execute("SELECT drift_flush('t_2')")?;
                    }
                    rounds += 1;
                }
                ensure!(rounds > 3, "{rounds} rounds only");
                Ok(())
            }));
        }
        running.into_iter().try_for_each(|handle| match handle.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    compare_all(&mut client, "t", QUERY)?;
    require_quiet_log(&cluster.log())
}

#[test]
fn temporary_tables_and_other_databases_keep_to_themselves() -> Result<()> {
    let cluster = preloaded("16MB")?;
    let mut client = cluster.connect()?;
    table(&mut client)?;
    client.batch_execute(
        "INSERT INTO t SELECT i, wave(i) FROM generate_series(5001, 5300) i;
         CREATE TEMPORARY TABLE own (id integer, e vector(8));
         CREATE INDEX own_e ON own USING drift (e);
         INSERT INTO own SELECT i, wave(i) FROM generate_series(1, 300) i",
    )?;
    compare(&mut client, "own", DISTANCES[0], QUERY, None)?;
    ensure!(rows(&mut client, "own_e")? == (300, 0, 0), "a temporary table's rows are not shared");
    drop(client);
    let mut other = cluster.connect_to("template1")?;
    other.batch_execute("CREATE DATABASE copy TEMPLATE postgres")?;
    let mut copy = cluster.connect_to("copy")?;
    compare_all(&mut copy, "t", QUERY)?;
    copy.batch_execute("DELETE FROM t WHERE id % 3 = 0")?;
    copy.batch_execute("VACUUM t")?;
    copy.batch_execute("INSERT INTO t SELECT i, wave(i) FROM generate_series(6001, 6100) i")?;
    compare_all(&mut copy, "t", QUERY)?;
    compare_all(&mut cluster.connect()?, "t", QUERY)?;
    require_quiet_log(&cluster.log())
}

#[test]
fn without_a_memtable_all_is_read_from_pages() -> Result<()> {
    let cluster = preloaded("0")?;
    let mut client = cluster.connect()?;
    table(&mut client)?;
    client.batch_execute("INSERT INTO t SELECT i, wave(i) FROM generate_series(5001, 5300) i")?;
    compare_all(&mut client, "t", QUERY)?;
    ensure!(rows(&mut client, "t_0")? == (300, 0, 0));
    require_quiet_log(&cluster.log())
}

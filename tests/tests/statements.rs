//! Statements that insert many rows: they reach the index a few pages at a time, and nobody can
//! tell.

use anyhow::{ensure, Context, Result};
use harness::cluster::Cluster;
use harness::oracle::{compare, require_index_scan, require_quiet_log, DISTANCES};
use postgres::Client;
use std::io::Write;
use std::thread;
use std::time::Duration;

const QUERY: &str = "[1,-1,0.5,0,2,0.1,1,1]";

/// A table of vectors, and what its tests need: `made` makes a vector of a number, `agree` fails
/// where an exact search of the index does not give the rows of a sequential scan, and returns how
/// many they are.
const SETUP: &str = "CREATE EXTENSION drift_pg;
    CREATE TABLE t (id integer, e vector(8), extra integer DEFAULT 0);
    CREATE INDEX ON t USING drift (e);
    CREATE FUNCTION made(i integer) RETURNS vector IMMUTABLE LANGUAGE sql AS $$
        SELECT (SELECT array_agg(sin(i * 0.37 + d * d * 1.7) * (1 + i % 5) ORDER BY d)
                FROM generate_series(1, 8) d)::vector(8) $$;
    CREATE FUNCTION ids(by_index boolean) RETURNS integer[] LANGUAGE plpgsql AS $$
        DECLARE found integer[];
        BEGIN
            PERFORM set_config('drift.target_recall', '1', true),
                set_config('enable_indexscan', by_index::text, true),
                set_config('enable_sort', (NOT by_index)::text, true),
                set_config('enable_seqscan', (NOT by_index)::text, true);
            EXECUTE 'SELECT array_agg(id ORDER BY id)
                     FROM (SELECT id FROM t ORDER BY e <-> made(7) LIMIT 100000) q' INTO found;
            RETURN found;
        END $$;
    CREATE FUNCTION agree() RETURNS integer LANGUAGE plpgsql AS $$
        DECLARE by_index integer[] := ids(true); one_by_one integer[] := ids(false);
        BEGIN
            IF by_index IS DISTINCT FROM one_by_one THEN
                RAISE 'index: %, table: %', by_index, one_by_one;
            END IF;
            RETURN coalesce(cardinality(by_index), 0);
        END $$;";

fn start() -> Result<(Cluster, Client)> {
    let cluster = Cluster::builder()
        .conf("shared_preload_libraries", "drift_pg")
        .conf("autovacuum", "off")
        .conf("max_prepared_transactions", "4")
        .start()?;
    let mut client = cluster.connect()?;
    client.batch_execute(SETUP)?;
    client.batch_execute("SET enable_seqscan = off; SET enable_sort = off")?;
    require_index_scan(&mut client, "SELECT id FROM t ORDER BY e <-> made(7) LIMIT 100000")?;
    client.batch_execute("RESET enable_seqscan; RESET enable_sort")?;
    Ok((cluster, client))
}

fn agree(client: &mut Client) -> Result<i32> {
    Ok(client.query_one("SELECT agree()", &[])?.get(0))
}

fn judge(client: &mut Client, table: &str) -> Result<()> {
    compare(client, table, DISTANCES[0], QUERY, Some(10))?;
    compare(client, table, DISTANCES[0], QUERY, None)
}

/// How many WAL `records` or `bytes` a statement says that it has written.
fn written(client: &mut Client, what: &str, statement: &str) -> Result<u64> {
    let plan = client.query(&format!("EXPLAIN (ANALYZE, WAL) {statement}"), &[])?;
    let lines: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
    let what = format!("{what}=");
    let number = |line: &String| line.split(&what).nth(1)?.split(' ').next()?.parse().ok();
    lines.iter().find_map(number).with_context(|| format!("no {what} in {lines:#?}"))
}

/// Copies the rows with these numbers into the table.
fn copy(client: &mut Client, table: &str, ids: impl Iterator<Item = i32>) -> Result<u64> {
    let vector = client.prepare("SELECT made($1)::text")?;
    let mut text = String::new();
    for id in ids {
        let vector: String = client.query_one(&vector, &[&id])?.get(0);
        text.push_str(&format!("{id}\t{vector}\n"));
    }
    let mut writer = client.copy_in(&format!("COPY {table} (id, e) FROM STDIN"))?;
    writer.write_all(text.as_bytes())?;
    Ok(writer.finish()?)
}

#[test]
fn many_rows_take_few_records() -> Result<()> {
    let (cluster, mut client) = start()?;
    client.batch_execute("CREATE TABLE plain (LIKE t)")?;
    for change in [
        "INSERT INTO t SELECT i, made(i) FROM generate_series(1, 2000) i",
        "UPDATE t SET e = made(id + 1)",
    ] {
        let indexed = written(&mut client, "records", change)?;
        let alone = written(&mut client, "records", &change.replace(" t ", " plain "))?;
        ensure!((alone..alone + 500).contains(&indexed), "{indexed} records, {alone} of the table");
    }
    ensure!(agree(&mut client)? == 2000);
    require_quiet_log(&cluster.log())
}

#[test]
fn the_last_rows_are_on_the_account_of_their_statement() -> Result<()> {
    let (cluster, mut client) = start()?;
    let position = "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint";
    for change in [
        "INSERT INTO t SELECT i, made(i) FROM generate_series(1, 200) i",
        "UPDATE t SET e = made(id + 1)",
    ] {
        client.batch_execute("BEGIN")?;
        let begun: i64 = client.query_one(position, &[])?.get(0);
        let told = written(&mut client, "bytes", change)?;
        let ended: i64 = client.query_one(position, &[])?.get(0);
        client.batch_execute("COMMIT")?;
        // WAL's pages have headers, and records are aligned.
        let all = u64::try_from(ended - begun)?;
        ensure!((all * 9 / 10..=all).contains(&told), "{told} of {all} bytes: {change}");
    }
    ensure!(agree(&mut client)? == 200);
    require_quiet_log(&cluster.log())
}

#[test]
fn rows_are_found_by_whatever_runs_within_their_statement() -> Result<()> {
    let (cluster, mut client) = start()?;
    client.batch_execute(
        "CREATE TABLE seen (kind text, rows integer);
         CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF NEW.id % 50 = 0 THEN INSERT INTO seen VALUES (TG_WHEN || TG_OP, agree()); END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER before BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION look();
         CREATE TRIGGER after AFTER INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION look();
         INSERT INTO t SELECT i, made(i) FROM generate_series(1, 320) i;
         UPDATE t SET e = made(id + 3) WHERE id <= 100",
    )?;
    copy(&mut client, "t", 1001..1200)?;
    client.batch_execute(
        "DROP TRIGGER before ON t; DROP TRIGGER after ON t;
         INSERT INTO t SELECT i, made(i), CASE WHEN i % 40 = 0 THEN agree() END
         FROM generate_series(2001, 2100) i",
    )?;
    for (kind, least, most) in [
        ("BEFOREINSERT", 49, 518),
        ("AFTERINSERT", 320, 519),
        ("BEFOREUPDATE", 320, 320),
        ("AFTERUPDATE", 320, 320),
    ] {
        let sql = "SELECT min(rows), max(rows) FROM seen WHERE kind = $1";
        let row = client.query_one(sql, &[&kind])?;
        let (fewest, greatest): (Option<i32>, Option<i32>) = (row.get(0), row.get(1));
        ensure!(
            (fewest, greatest.map(|rows| rows > most - 50)) == (Some(least), Some(true)),
            "{kind}: {fewest:?} to {greatest:?}"
        );
    }
    ensure!(agree(&mut client)? == 619);
    judge(&mut client, "t")?;
    require_quiet_log(&cluster.log())
}

#[test]
fn rows_of_a_transaction_are_found_by_its_later_statements() -> Result<()> {
    let (cluster, mut client) = start()?;
    client.batch_execute("BEGIN")?;
    copy(&mut client, "t", 1..301)?;
    ensure!(agree(&mut client)? == 300);
    client.batch_execute(
        "SAVEPOINT s; INSERT INTO t SELECT i, made(i) FROM generate_series(301, 700) i",
    )?;
    ensure!(agree(&mut client)? == 700);
    client.batch_execute("ROLLBACK TO s")?;
    ensure!(agree(&mut client)? == 300);
    client.batch_execute("SAVEPOINT s; UPDATE t SET e = made(id + 9); RELEASE s")?;
    ensure!(agree(&mut client)? == 300);
    client.batch_execute("ROLLBACK; BEGIN")?;
    copy(&mut client, "t", 1..301)?;
    client.batch_execute("PREPARE TRANSACTION 'p'")?;
    ensure!(agree(&mut client)? == 0);
    client.batch_execute("COMMIT PREPARED 'p'")?;
    ensure!(agree(&mut client)? == 300);
    client.batch_execute(
        "WITH new AS (INSERT INTO t SELECT i, made(i) FROM generate_series(401, 500) i RETURNING id)
         SELECT count(*) FROM new;
         WITH new AS (INSERT INTO t SELECT i, made(i) FROM generate_series(501, 600) i)
         INSERT INTO t SELECT i, made(i) FROM generate_series(601, 700) i;
         CREATE PROCEDURE several() LANGUAGE plpgsql AS $$
         BEGIN
             INSERT INTO t SELECT i, made(i) FROM generate_series(801, 900) i;
             COMMIT;
             INSERT INTO t SELECT i, made(i) FROM generate_series(901, 1000) i;
             ROLLBACK;
             INSERT INTO t SELECT i, made(i) FROM generate_series(1001, 1100) i;
         END $$",
    )?;
    client.batch_execute("CALL several()")?;
    ensure!(agree(&mut client)? == 800);
    judge(&mut client, "t")?;
    require_quiet_log(&cluster.log())
}

#[test]
fn rows_of_a_failed_subtransaction_never_come() -> Result<()> {
    let (cluster, mut client) = start()?;
    client.batch_execute("INSERT INTO t SELECT i, made(i) FROM generate_series(1, 100) i")?;
    let mut other = cluster.connect()?;
    other.batch_execute("SELECT pg_advisory_lock(1)")?;
    let failing = thread::spawn(move || -> Result<Client> {
        // The statement fails with rows gathered, and its transaction goes on.
        client.batch_execute(
            "DO $$ BEGIN
                 BEGIN
                     INSERT INTO t SELECT i, made(i), 1 / (600 - i) FROM generate_series(501, 700) i;
                 EXCEPTION WHEN division_by_zero THEN NULL;
                 END;
                 PERFORM pg_advisory_lock(1);
                 INSERT INTO t SELECT i, made(i) FROM generate_series(801, 850) i;
             END $$",
        )?;
        Ok(client)
    });
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    while other.query_one(waits, &[])?.get::<_, i64>(0) == 0 {
        ensure!(!failing.is_finished(), "it does not wait");
        thread::sleep(Duration::from_millis(5));
    }
    // Others get their places.
    other.batch_execute("VACUUM t")?;
    other.batch_execute("INSERT INTO t SELECT i, made(i) FROM generate_series(901, 1100) i")?;
    other.batch_execute("SELECT pg_advisory_unlock(1)")?;
    let mut client = failing.join().expect("the thread does not panic")?;
    let reused = client.query_one(
        "SELECT count(*) FROM t WHERE id > 900 AND ctid IN (SELECT ctid FROM t WHERE id > 900
         ORDER BY ctid LIMIT 10) AND ctid < (SELECT min(ctid) FROM t WHERE id BETWEEN 801 AND 850)",
        &[],
    )?;
    ensure!(reused.get::<_, i64>(0) == 10, "nobody has got the places");
    ensure!(agree(&mut client)? == 350);
    judge(&mut client, "t")?;
    require_quiet_log(&cluster.log())
}

#[test]
fn rows_of_subtransactions_within_a_statement_keep_apart() -> Result<()> {
    let (cluster, mut client) = start()?;
    client.batch_execute(
        "CREATE FUNCTION more(i integer) RETURNS integer LANGUAGE plpgsql AS $$
         BEGIN
             INSERT INTO t SELECT i * 1000 + j, made(i + j), 1 / (20 - j * (i % 2))
             FROM generate_series(1, 30) j;
             RETURN 1;
         EXCEPTION WHEN division_by_zero THEN
             INSERT INTO t SELECT i * 1000 + j, made(i + j) FROM generate_series(31, 33) j;
             RETURN 0;
         END $$;
         INSERT INTO t SELECT i, made(i), more(i) FROM generate_series(1, 40) i",
    )?;
    ensure!(agree(&mut client)? == 40 + 20 * 30 + 20 * 3);
    client.batch_execute("VACUUM t")?;
    copy(&mut client, "t", 100..900)?;
    ensure!(agree(&mut client)? == 700 + 800);
    judge(&mut client, "t")?;
    require_quiet_log(&cluster.log())
}

#[test]
fn a_copy_that_fails_leaves_nothing() -> Result<()> {
    let (cluster, mut client) = start()?;
    client.batch_execute("ALTER TABLE t ADD CHECK (id <> 1777)")?;
    copy(&mut client, "t", 1..500)?;
    copy(&mut client, "t", 1000..2000).expect_err("a row is refused");
    ensure!(agree(&mut client)? == 499);
    client.batch_execute("VACUUM t")?;
    copy(&mut client, "t", 3000..4000)?;
    ensure!(agree(&mut client)? == 1499);
    judge(&mut client, "t")?;
    require_quiet_log(&cluster.log())
}

#[test]
fn partitions_and_several_indexes_get_their_rows() -> Result<()> {
    let (cluster, mut client) = start()?;
    client.batch_execute(
        "CREATE INDEX ON t USING drift (e vector_l1_ops);
         CREATE INDEX ON t USING drift (e vector_cosine_ops) WHERE id % 2 = 0;
         CREATE TABLE p (id integer, e vector(8)) PARTITION BY HASH (id)",
    )?;
    for part in 0..24 {
        client.batch_execute(&format!(
            "CREATE TABLE p{part} PARTITION OF p FOR VALUES WITH (MODULUS 24, REMAINDER {part})"
        ))?;
    }
    client.batch_execute("CREATE INDEX ON p USING drift (e)")?;
    copy(&mut client, "t", 1..900)?;
    copy(&mut client, "p", 1..900)?;
    client.batch_execute(
        "INSERT INTO p SELECT i, made(i) FROM generate_series(1000, 1900) i;
         UPDATE p SET id = id + 1, e = made(id + 5) WHERE id % 3 = 0",
    )?;
    judge(&mut client, "t")?;
    for part in 0..24 {
        judge(&mut client, &format!("p{part}"))?;
    }
    let rows: i64 = client.query_one("SELECT count(*) FROM p", &[])?.get(0);
    ensure!(rows == 899 + 901);
    require_quiet_log(&cluster.log())
}

#[test]
fn errors_of_others_reach_their_client_whole() -> Result<()> {
    let (cluster, mut client) = start()?;
    client.batch_execute(
        "CREATE TABLE other (id integer CONSTRAINT only_one UNIQUE);
         CREATE FUNCTION fails(i integer) RETURNS integer IMMUTABLE LANGUAGE plpgsql AS $$
         BEGIN RAISE 'no' USING COLUMN = 'c', DETAIL = 'none', HINT = 'any', ERRCODE = 'AB123'; END $$",
    )?;
    client.batch_execute("INSERT INTO other VALUES (1)")?;
    let mut error = |sql: &str| match client.batch_execute(sql) {
        Ok(()) => anyhow::bail!("{sql} is no error"),
        Err(error) => error.as_db_error().cloned().ok_or(anyhow::anyhow!("{error}")),
    };
    // Of the executor, of a function that the planner calls, of utility statements.
    let unique = error("INSERT INTO other SELECT 1 FROM generate_series(1, 2)")?;
    ensure!(unique.constraint() == Some("only_one"), "{unique:?}");
    ensure!(unique.table() == Some("other") && unique.schema() == Some("public"), "{unique:?}");
    for sql in ["SELECT fails(1)", "SELECT fails(id) FROM generate_series(1, 3) id"] {
        let raised = error(sql)?;
        let context = raised.where_().unwrap_or_default();
        ensure!(context.contains("fails(integer) line"), "{raised:?}");
        ensure!((raised.code().code(), raised.column()) == ("AB123", Some("c")), "{raised:?}");
        ensure!((raised.detail(), raised.hint()) == (Some("none"), Some("any")), "{raised:?}");
    }
    let context = |error: &postgres::error::DbError| error.where_().map(str::to_owned);
    let inner = error("DO $$ BEGIN PERFORM 1 / (SELECT 0); END $$")?;
    ensure!(context(&inner).is_some_and(|text| text.contains("inline_code_block")), "{inner:?}");
    let refused = error("ALTER TABLE other ADD CONSTRAINT named CHECK (id > 9)")?;
    ensure!(refused.constraint() == Some("named"), "{refused:?}");
    require_quiet_log(&cluster.log())
}

#[test]
fn a_statement_goes_on_as_it_began_after_one_within_it_has_failed() -> Result<()> {
    let (cluster, mut client) = start()?;
    // Rows of ON CONFLICT are speculative, and are appended at once, whatever runs in between.
    client.batch_execute(
        "CREATE UNIQUE INDEX ON t (id);
         CREATE TABLE other (id integer UNIQUE);
         CREATE FUNCTION fails(i integer) RETURNS integer LANGUAGE plpgsql AS $$
         BEGIN
             INSERT INTO other SELECT 1 FROM generate_series(1, 3);
             RETURN 1;
         EXCEPTION WHEN unique_violation THEN
             RETURN 0;
         END $$",
    )?;
    let numbers = "FROM generate_series(1, 1000) i";
    let at_once = format!("INSERT INTO t SELECT i, made(i) {numbers} ON CONFLICT DO NOTHING");
    let first = written(&mut client, "records", &at_once)?;
    client.batch_execute("TRUNCATE t")?;
    let failing = format!(
        "INSERT INTO t SELECT i, made(i), CASE WHEN i = 500 THEN fails(i) END {numbers}
         ON CONFLICT DO NOTHING"
    );
    let second = written(&mut client, "records", &failing)?;
    client.batch_execute("TRUNCATE t")?;
    let gathered =
        written(&mut client, "records", &format!("INSERT INTO t SELECT i, made(i) {numbers}"))?;
    ensure!(first.abs_diff(second) < 100, "{first} records, and {second} with a failure");
    ensure!(gathered + 800 < first, "{gathered} records together, {first} at once");
    ensure!(agree(&mut client)? == 1000);
    require_quiet_log(&cluster.log())
}

#[test]
fn rows_outlive_a_cancelled_scan_within_their_statement() -> Result<()> {
    let (cluster, mut client) = start()?;
    client.batch_execute(
        "CREATE FUNCTION cancels(v vector) RETURNS vector STABLE LANGUAGE plpgsql AS $$
             BEGIN RETURN CASE WHEN pg_cancel_backend(pg_backend_pid()) THEN v END; END $$;
         CREATE FUNCTION looks(i integer) RETURNS integer LANGUAGE plpgsql AS $$
         BEGIN
             PERFORM id FROM t ORDER BY e <-> cancels(made(i)) LIMIT 1;
             RETURN 0;
         EXCEPTION WHEN query_canceled THEN
             RETURN 1;
         END $$;
         SET enable_seqscan = off; SET enable_sort = off;
         -- The planner is not to call it.
         SET plan_cache_mode = force_generic_plan",
    )?;
    client.batch_execute(
        "INSERT INTO t SELECT i, made(i), looks(i) FROM generate_series(1, 200) i",
    )?;
    let cancelled = client.query_one("SELECT count(*) FROM t WHERE extra = 1", &[])?;
    ensure!(cancelled.get::<_, i64>(0) == 200, "not all were cancelled");
    ensure!(agree(&mut client)? == 200);
    judge(&mut client, "t")?;
    require_quiet_log(&cluster.log())
}

#[test]
fn serializable_readers_conflict_with_rows_that_wait_to_be_appended() -> Result<()> {
    let (cluster, mut writer) = start()?;
    writer.batch_execute(
        "CREATE TABLE other (id integer);
         INSERT INTO t SELECT i, made(i) FROM generate_series(1, 100) i;
         ALTER DATABASE postgres SET default_transaction_isolation = serializable;
         ALTER DATABASE postgres SET enable_seqscan = off",
    )?;
    let (mut writer, mut reader) = (cluster.connect()?, cluster.connect()?);
    let mut holder = cluster.connect()?;
    holder.batch_execute("SELECT pg_advisory_lock(2)")?;
    writer.batch_execute("BEGIN; SELECT count(*) FROM other")?;
    let writing = thread::spawn(move || -> Result<(), postgres::Error> {
        // The first row is appended at once, far from where the reader looks.
        writer.batch_execute(
            "INSERT INTO t SELECT 200 + i, (array_fill(1000 / i ^ 9, '{8}'))::vector
             FROM generate_series(1, 4) i
             WHERE CASE WHEN i = 4 THEN pg_advisory_lock(2)::text IS NULL ELSE true END",
        )?;
        writer.batch_execute("COMMIT")
    });
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    while holder.query_one(waits, &[])?.get::<_, i64>(0) == 0 {
        ensure!(!writing.is_finished(), "it does not wait");
        thread::sleep(Duration::from_millis(5));
    }
    let nearest = "SELECT id FROM t ORDER BY e <-> '[0,0,0,0,0,0,0,0]' LIMIT 1";
    require_index_scan(&mut reader, nearest)?;
    reader.batch_execute(&format!("BEGIN; {nearest}; INSERT INTO other VALUES (1); COMMIT"))?;
    holder.batch_execute("SELECT pg_advisory_unlock(2)")?;
    let written = writing.join().expect("the thread does not panic");
    let code = written.err().and_then(|error| error.code().map(|code| code.code().to_owned()));
    ensure!(code.as_deref() == Some("40001"), "each has read what the other wrote: {code:?}");
    require_quiet_log(&cluster.log())
}

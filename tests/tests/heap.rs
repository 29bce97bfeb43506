//! Rows come from the table's pages wherever these are, and pages are treated as by any index.

use anyhow::{ensure, Result};
use harness::cluster::Cluster;
use harness::oracle::{compare, require_quiet_log, DISTANCES};
use postgres::Client;

const QUERIES: [&str; 3] =
    ["[1,-1,0.5,0,2,0.1,1,1]", "[0,0,0,0,0,0,0,0]", "[-2,1,-0.5,3,-2,0.7,-1,1]"];

/// A table of wide rows, a few a page.
fn fill(client: &mut Client, kind: &str, table: &str, rows: i32) -> Result<()> {
    Ok(client.batch_execute(&format!(
        "CREATE {kind} TABLE {table} (id integer, e vector(8), filler text) WITH (fillfactor = 70);
         INSERT INTO {table}
         SELECT i, (SELECT array_agg(sin(i * 0.37 + d * d * 1.7) * (1 + i % 5) ORDER BY d)
                    FROM generate_series(1, 8) d)::vector, repeat('x', 400)
         FROM generate_series(1, {rows}) i;
         CREATE INDEX ON {table} USING drift (e)"
    ))?)
}

#[test]
fn rows_are_found_wherever_their_pages_have_moved() -> Result<()> {
    // The fewest buffers there can be: a page is hardly ever where it was met before.
    let cluster =
        Cluster::builder().conf("shared_buffers", "128kB").conf("autovacuum", "off").start()?;
    let mut client = cluster.connect()?;
    client.batch_execute("CREATE EXTENSION drift_pg")?;
    let tables = [("", "t"), ("", "other"), ("TEMPORARY", "own"), ("UNLOGGED", "unlogged")];
    for (kind, table) in tables {
        fill(&mut client, kind, table, 2000)?;
    }
    for round in 0..4 {
        for (_, table) in tables {
            // Versions of rows that stay on their page, and some that do not.
            client.batch_execute(&format!(
                "UPDATE {table} SET filler = repeat('y', 350 + {round} * 60) WHERE id % 7 = {round};
                 DELETE FROM {table} WHERE id % 11 = {round}"
            ))?;
            for limit in [Some(1), Some(10), None] {
                compare(&mut client, table, DISTANCES[0], QUERIES[round % 3], limit)?;
            }
            client.batch_execute(&format!("VACUUM {table}"))?;
        }
    }
    require_quiet_log(&cluster.log())
}

#[test]
fn scans_side_by_side_keep_their_pages() -> Result<()> {
    let cluster = Cluster::builder().conf("shared_buffers", "256kB").start()?;
    let mut client = cluster.connect()?;
    client.batch_execute("CREATE EXTENSION drift_pg; SET enable_sort = off")?;
    fill(&mut client, "", "t", 2000)?;
    let nearest = |query: &str| format!("SELECT id FROM t ORDER BY e <-> '{query}' LIMIT 200");
    let ids = |rows: Vec<postgres::Row>| rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>();
    let alone = ids(client.query(&nearest(QUERIES[0]), &[])?);
    let mut transaction = client.transaction()?;
    for (nth, query) in QUERIES.iter().enumerate() {
        transaction.batch_execute(&format!("DECLARE c{nth} CURSOR FOR {}", nearest(query)))?;
    }
    let mut found = Vec::new();
    for round in 0..40 {
        // What a subtransaction fetches, and gives up with it, is of no concern to the others.
        let mut inner = transaction.transaction()?;
        inner.query("FETCH 3 FROM c1", &[])?;
        inner.query(&nearest(QUERIES[round % 3]), &[])?;
        match round % 2 {
            0 => inner.rollback()?,
            _ => inner.commit()?,
        }
        found.extend(ids(transaction.query("FETCH 5 FROM c0", &[])?));
        transaction.query("FETCH 2 FROM c2", &[])?;
    }
    transaction.commit()?;
    ensure!(found == alone, "{found:?} and alone {alone:?}");
    require_quiet_log(&cluster.log())
}

/// Pages of `t` that were looked at so far.
fn looked_at(client: &mut Client) -> Result<i64> {
    client.query("SELECT pg_stat_force_next_flush()", &[])?;
    let row = client.query_one(
        "SELECT heap_blks_hit + heap_blks_read FROM pg_statio_user_tables WHERE relname = 't'",
        &[],
    )?;
    Ok(row.get(0))
}

#[test]
fn pages_met_before_are_counted_like_others() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    let mut client = cluster.connect()?;
    client.batch_execute("CREATE EXTENSION drift_pg; SET enable_seqscan = off")?;
    fill(&mut client, "", "t", 2000)?;
    let select = format!("SELECT id FROM t ORDER BY e <-> '{}' LIMIT 10", QUERIES[0]);
    let mut counts = Vec::new();
    for _ in 0..3 {
        let before = looked_at(&mut client)?;
        client.query(&select, &[])?;
        counts.push(looked_at(&mut client)? - before);
    }
    ensure!(counts[0] > 1 && counts[0] <= 10, "{counts:?}");
    ensure!(counts.iter().all(|count| *count == counts[0]), "{counts:?}");
    Ok(())
}

#[test]
fn a_page_that_a_scan_comes_to_is_pruned() -> Result<()> {
    let cluster = Cluster::builder().conf("autovacuum", "off").start()?;
    let mut client = cluster.connect()?;
    client.batch_execute(
        "CREATE EXTENSION drift_pg; SET enable_seqscan = off;
         CREATE TABLE t (id integer, e vector(2), filler text);
         INSERT INTO t SELECT i, format('[%s,0]', i)::vector, repeat('x', 200)
         FROM generate_series(1, 10) i;
         CREATE INDEX ON t USING drift (e)",
    )?;
    for round in 0..200 {
        // A row that is updated by its place is not looked up by a scan that would prune.
        client.batch_execute(&format!(
            "DO $$ DECLARE place tid;
             BEGIN
                 SELECT ctid INTO place FROM t ORDER BY e <-> '[3,0]' LIMIT 1;
                 UPDATE t SET filler = repeat('{}', 200) WHERE ctid = place;
             END $$",
            round % 10,
        ))?;
    }
    let pages: i64 = client.query_one("SELECT pg_relation_size('t') / 8192", &[])?.get(0);
    ensure!(pages == 1, "{pages} pages");
    Ok(())
}

#[test]
fn pages_that_scans_come_to_count_as_used() -> Result<()> {
    let mut cluster = Cluster::builder().conf("autovacuum", "off").start()?;
    let mut client = cluster.connect()?;
    client.batch_execute("CREATE EXTENSION drift_pg; CREATE EXTENSION pg_buffercache")?;
    fill(&mut client, "", "t", 2000)?;
    client.batch_execute("VACUUM t")?;
    drop(client);
    // Nobody has used a page that was just read in.
    cluster.restart()?;
    let mut client = cluster.connect()?;
    client.batch_execute("SET enable_seqscan = off")?;
    let select = format!("SELECT id FROM t ORDER BY e <-> '{}' LIMIT 10", QUERIES[0]);
    for _ in 0..500 {
        client.query(&select, &[])?;
    }
    let counts = client.query(
        "SELECT usagecount::int FROM pg_buffercache
         WHERE relfilenode = pg_relation_filenode('t') AND relforknumber = 0",
        &[],
    )?;
    let counts: Vec<i32> = counts.iter().map(|row| row.get(0)).collect();
    ensure!(counts.len() >= 5 && counts.iter().all(|count| *count > 2), "{counts:?}");
    Ok(())
}

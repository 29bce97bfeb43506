//! Pages that are free are used again: an index that is worked on keeps its size.

use anyhow::{ensure, Result};
use harness::cluster::{Builder, Cluster};
use harness::oracle::{compare, require_quiet_log, DISTANCES};
use postgres::Client;

const QUERY: &str = "[1,-1,0.5,0,2,0.1,1,1]";

/// A table `t` with an index `t_e`, both empty.
fn start(cluster: Builder) -> Result<(Cluster, Client)> {
    let cluster = cluster.start()?;
    let mut client = cluster.connect()?;
    client.batch_execute(
        "CREATE EXTENSION drift_pg;
         CREATE TABLE t (id integer, e vector(8));
         CREATE INDEX t_e ON t USING drift (e)",
    )?;
    Ok((cluster, client))
}

fn insert(client: &mut Client, from: i32, to: i32) -> Result<()> {
    Ok(client.batch_execute(&format!(
        "INSERT INTO t
         SELECT i, (SELECT array_agg(sin(i * 0.37 + d * d * 1.7) * (1 + i % 5) ORDER BY d)
                    FROM generate_series(1, 8) d)::vector
         FROM generate_series({from}, {to}) i"
    ))?)
}

fn delete_up_to(client: &mut Client, id: i32) -> Result<()> {
    client.batch_execute(&format!("DELETE FROM t WHERE id <= {id}"))?;
    Ok(client.batch_execute("VACUUM t")?)
}

/// Pages the index has.
fn pages(client: &mut Client) -> Result<i64> {
    Ok(client.query_one("SELECT pg_relation_size('t_e') / 8192", &[])?.get(0))
}

fn check(client: &mut Client) -> Result<()> {
    for limit in [Some(10), None] {
        compare(client, "t", DISTANCES[0], QUERY, limit)?;
    }
    Ok(())
}

#[test]
fn an_index_under_steady_insert_delete_and_vacuum_keeps_its_size() -> Result<()> {
    let (cluster, mut client) = start(
        Cluster::builder()
            .conf("shared_preload_libraries", "drift_pg")
            .conf("drift.log_janitor_min_duration", "0")
            .conf("drift.log_limit", "64kB"),
    )?;
    let mut sizes = Vec::new();
    for round in 0..40 {
        insert(&mut client, round * 2000 + 1, round * 2000 + 2000)?;
        delete_up_to(&mut client, (round - 4) * 2000)?;
        sizes.push(pages(&mut client)?);
    }
    check(&mut client)?;
    client.batch_execute("REINDEX INDEX t_e")?;
    let fresh = pages(&mut client)?;
    println!("pages after each round: {sizes:?}, and of an index of these rows: {fresh}");
    // A log of several rounds, segments with dead rows, and the ones they are merged into: what all
    // these rounds write is many times as much.
    ensure!(sizes.last() <= Some(&(6 * fresh)), "{sizes:?}, of {fresh}");
    require_quiet_log(&cluster.log())
}

#[test]
fn a_log_that_is_long_every_other_time_grows_into_the_pages_it_had() -> Result<()> {
    let (cluster, mut client) = start(
        Cluster::builder()
            .conf("drift.janitor", "off")
            .conf("drift.log_limit", "2MB")
            .conf("autovacuum", "off"),
    )?;
    let mut sizes = Vec::new();
    for round in 0..24 {
        let first = round * 4000;
        for (from, to) in [(first + 1, first + 3000), (first + 3001, first + 3010)] {
            insert(&mut client, from, to)?;
            client.batch_execute("SELECT drift_flush('t_e')")?;
        }
        delete_up_to(&mut client, first - 4000)?;
        sizes.push(pages(&mut client)?);
    }
    println!("pages after each round: {sizes:?}");
    let settled = sizes.iter().take(8).max().copied().unwrap_or_default();
    ensure!(sizes.last() <= Some(&(settled + settled / 8)), "{sizes:?}");
    check(&mut client)?;
    require_quiet_log(&cluster.log())
}

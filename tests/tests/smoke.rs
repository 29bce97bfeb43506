//! The extension, an index and an ordered query in a cluster of their own; and the harness's own
//! promises about clusters.

use anyhow::Result;
use harness::cluster::{Cluster, Stop};

const TABLE: &str = "
    CREATE EXTENSION drift_pg;
    CREATE TABLE points (id int PRIMARY KEY, place vector(3));
    INSERT INTO points SELECT i, format('[%s,%s,%s]', i, i % 7, i % 11)::vector
    FROM generate_series(1, 1000) i;
    CREATE INDEX points_place_idx ON points USING drift (place);
    SET enable_seqscan = off;";

const NEAREST: &str = "SELECT id FROM points ORDER BY place <-> '[500.2,3.1,5.3]' LIMIT 5";

fn ids(cluster: &Cluster, planner: &str) -> Result<Vec<i32>> {
    let mut client = cluster.connect()?;
    client.batch_execute(planner)?;
    Ok(client.query(NEAREST, &[])?.iter().map(|row| row.get(0)).collect())
}

#[test]
fn an_ordered_query_reads_the_index() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    let mut client = cluster.connect()?;
    client.batch_execute(TABLE)?;
    let plan = client.query(&format!("EXPLAIN {NEAREST}"), &[])?;
    let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
    assert!(
        plan.iter().any(|line| line.contains("Index Scan using points_place_idx")),
        "{plan:#?}"
    );
    let found: Vec<i32> = client.query(NEAREST, &[])?.iter().map(|row| row.get(0)).collect();
    assert_eq!(found, ids(&cluster, "SET enable_indexscan = off")?);
    // The segment's and the router's.
    assert_eq!(cluster.arena_files("postgres", "points_place_idx")?.len(), 2);
    Ok(())
}

#[test]
fn rows_survive_every_way_to_stop() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    cluster.connect()?.batch_execute(TABLE)?;
    let expected = ids(&cluster, "SET enable_indexscan = off")?;
    let indexed = "SET enable_seqscan = off; SET drift.target_recall = 1";
    cluster.restart()?;
    assert_eq!(ids(&cluster, indexed)?, expected);
    cluster.stop(Stop::Immediate)?;
    assert!(!cluster.is_running());
    cluster.start()?;
    assert_eq!(ids(&cluster, indexed)?, expected);
    cluster.kill9()?;
    assert!(cluster.connect().is_err());
    cluster.start()?;
    assert_eq!(ids(&cluster, indexed)?, expected);
    assert!(cluster.log().contains("automatic recovery in progress"));
    Ok(())
}

#[test]
fn backups_and_standbys_answer_like_the_primary() -> Result<()> {
    let primary = Cluster::builder().start()?;
    primary.connect()?.batch_execute(TABLE)?;
    let standby = primary.standby()?;
    let mut backup = primary.base_backup()?;
    backup.start()?;
    primary.psql("INSERT INTO points VALUES (5000, '[500.2,3.1,5.2]')")?;
    primary.wait_for_catchup(&standby)?;
    let indexed = "SET enable_seqscan = off; SET drift.target_recall = 1";
    let (now, then) = (ids(&primary, indexed)?, ids(&backup, indexed)?);
    assert_eq!(ids(&standby, indexed)?, now);
    assert!(now.contains(&5000) && !then.contains(&5000));
    assert_eq!(standby.psql("SELECT pg_is_in_recovery()")?, "t\n");
    assert_eq!(backup.psql("SELECT pg_is_in_recovery()")?, "f\n");
    Ok(())
}

//! The judge of every change: exact mode must give the distances a sequential scan gives.

use anyhow::{ensure, Result};
use postgres::{Client, GenericClient, IsolationLevel};

/// A distance: its operator, and its operator class.
#[derive(Clone, Copy, Debug)]
pub struct Distance {
    /// As in `ORDER BY e <-> q`.
    pub operator: &'static str,
    /// As in `USING drift (e vector_l2_ops)`.
    pub class: &'static str,
}

/// The four distances.
pub const DISTANCES: [Distance; 4] = [
    Distance { operator: "<->", class: "vector_l2_ops" },
    Distance { operator: "<#>", class: "vector_ip_ops" },
    Distance { operator: "<=>", class: "vector_cosine_ops" },
    Distance { operator: "<+>", class: "vector_l1_ops" },
];

const BY_INDEX: &str = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off;
    SET LOCAL enable_sort = off; SET LOCAL enable_indexscan = on";
const SEQUENTIALLY: &str = "SET LOCAL enable_seqscan = on; SET LOCAL enable_sort = on;
    SET LOCAL enable_indexscan = off";

/// Holds the nearest `limit` rows of `table` (all if none), whose vectors are in column `e`,
/// against a sequential scan, bit by bit, in one snapshot.
///
/// # Errors
/// The plan is no index scan, the distances differ, or a statement fails.
pub fn compare(
    client: &mut Client,
    table: &str,
    distance: Distance,
    query: &str,
    limit: Option<u32>,
) -> Result<()> {
    let Distance { operator, .. } = distance;
    // What cosine does not index, a sequential scan must not count.
    let directed = if operator == "<=>" { "AND vector_norm(e) > 0" } else { "" };
    let limit = limit.map_or(String::new(), |limit| format!("LIMIT {limit}"));
    let select = format!(
        "SELECT e {operator} '{query}'::vector AS d FROM {table}
         WHERE e IS NOT NULL {directed} ORDER BY e {operator} '{query}'::vector {limit}"
    );
    let mut transaction =
        client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).start()?;
    transaction.batch_execute("SET LOCAL drift.target_recall = 1")?;
    transaction.batch_execute(BY_INDEX)?;
    require_index_scan(&mut transaction, &select)?;
    let indexed = distances(&mut transaction, &select)?;
    transaction.batch_execute(SEQUENTIALLY)?;
    let sequential = distances(&mut transaction, &select)?;
    transaction.commit()?;
    ensure!(
        indexed.len() == sequential.len(),
        "{operator} {limit}: {} rows by index, {} sequentially, near {query}",
        indexed.len(),
        sequential.len()
    );
    let differs = |(a, b): (&f64, &f64)| a != b && !(a.is_nan() && b.is_nan());
    let first = indexed.iter().zip(&sequential).position(differs);
    ensure!(
        first.is_none(),
        "{operator} {limit}: row {first:?} of {} differs, near {query}: {:?} by index, {:?} sequentially",
        indexed.len(),
        first.map(|at| indexed[at]),
        first.map(|at| sequential[at])
    );
    Ok(())
}

/// [`compare`]s the ten nearest, the hundred nearest and all rows, for all four distances.
///
/// # Errors
/// As [`compare`].
pub fn compare_all(client: &mut Client, table: &str, query: &str) -> Result<()> {
    for distance in DISTANCES {
        for limit in [Some(10), Some(100), None] {
            compare(client, table, distance, query, limit)?;
        }
    }
    Ok(())
}

/// Fails unless `select` is planned as an index scan.
///
/// # Errors
/// It is not.
pub fn require_index_scan(client: &mut impl GenericClient, select: &str) -> Result<()> {
    let plan = client.query(&format!("EXPLAIN {select}"), &[])?;
    let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
    ensure!(plan.iter().any(|line| line.contains("Index Scan using")), "{plan:#?}");
    Ok(())
}

fn distances(client: &mut impl GenericClient, select: &str) -> Result<Vec<f64>> {
    Ok(client.query(select, &[])?.iter().map(|row| row.get(0)).collect())
}

/// Fails if the server has logged what no server may.
///
/// # Errors
/// It has.
pub fn require_quiet_log(log: &str) -> Result<()> {
    const NEVER: [&str; 6] =
        ["PANIC:", "you don't own a lock", "refcount leak", "still referenced", "leak:", "SIGABRT"];
    for line in log.lines() {
        ensure!(!NEVER.iter().any(|never| line.contains(never)), "the server logged: {line}");
    }
    Ok(())
}

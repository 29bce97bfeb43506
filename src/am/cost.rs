//! What a scan costs, for the planner.

use super::options;
use crate::page::Index;
use pgrx::{pg_guard, pg_sys};

/// Rows in a bucket, about.
const ROWS_PER_BUCKET: f64 = 100.0;
/// What stage 1 does with a row, in operator calls.
const CODE_COST: f64 = 0.05;
/// Share of the rows that stage 1 looks at.
const PROBED: f64 = 0.05;
/// Vectors that stage 2 reads before the first row is delivered.
const FIRST_VECTORS: f64 = 50.0;

/// Estimates the cost of an ordered scan; any other use of the index is priced out.
#[pg_guard]
#[allow(clippy::too_many_arguments, reason = "PostgreSQL's signature")]
pub unsafe extern "C-unwind" fn amcostestimate(
    _root: *mut pg_sys::PlannerInfo,
    path: *mut pg_sys::IndexPath,
    _loop_count: f64,
    startup: *mut pg_sys::Cost,
    total: *mut pg_sys::Cost,
    selectivity: *mut pg_sys::Selectivity,
    correlation: *mut f64,
    pages: *mut f64,
) {
    // SAFETY: the planner passes a path of one of our indexes and places for the results.
    unsafe {
        let info = &*(*path).indexinfo;
        *selectivity = 1.0;
        *correlation = 0.0;
        *pages = f64::from(info.pages);
        if (*path).indexorderbys.is_null() {
            *startup = f64::INFINITY;
            *total = f64::INFINITY;
            return;
        }
        let (mut random_page, mut seq_page) = (0.0, 0.0);
        pg_sys::get_tablespace_page_costs(info.reltablespace, &mut random_page, &mut seq_page);

        let rows = info.tuples.max(0.0);
        let buckets = rows / ROWS_PER_BUCKET;
        let relation = pg_sys::index_open(info.indexoid, pg_sys::NoLock as pg_sys::LOCKMODE);
        let of_index = options::index_recall(Index::new(relation));
        pg_sys::index_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
        let exact = options::target_recall(of_index) >= 1.0;
        let probed = if exact { rows } else { rows * PROBED };
        let vectors = FIRST_VECTORS.min(rows);
        *startup = (buckets + probed) * CODE_COST * pg_sys::cpu_operator_cost
            + vectors * (pg_sys::cpu_operator_cost + pg_sys::cpu_index_tuple_cost)
            + vectors.min(f64::from(info.pages)) * seq_page;
        *total = *startup
            + rows * (pg_sys::cpu_operator_cost + pg_sys::cpu_index_tuple_cost)
            + f64::from(info.pages) * random_page;
    }
}

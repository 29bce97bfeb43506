//! The access method `drift`: one file a callback.
//!
//! | file | callbacks |
//! |---|---|
//! | `build` | `ambuild`, `ambuildempty`, `ambuildphasename` |
//! | `insert` | `aminsert` |
//! | `scan` | `ambeginscan`, `amrescan`, `amgettuple`, `amendscan` |
//! | `vacuum` | `ambulkdelete`, `amvacuumcleanup` |
//! | `cost` | `amcostestimate` |
//! | `options` | `amoptions`, and the settings `drift.*` |
//! | `validate` | `amvalidate` |
//! | `functions` | what SQL can ask of an index: `drift_flush`, `drift_index_info` |
//!
//! `pending` has rows of a statement that are appended together. `backpressure` keeps logs short
//! when they are written faster than they are flushed. `snapshot` keeps, for each backend, what its
//! scans need of the current manifest; `log_rows` is what a scan was given of the log. `junk` spares
//! the executor distances that nobody reads.

mod backpressure;
mod build;
mod cost;
mod functions;
mod heap_pages;
mod insert;
mod junk;
mod key;
mod log_rows;
mod options;
mod pending;
mod scan;
mod snapshot;
mod vacuum;
mod validate;

pub use junk::spare_junk;
pub use options::define_settings;
pub use pending::watch_statements;

use pgrx::pg_sys;

pgrx::extension_sql_file!(
    "../../sql/drift.sql",
    name = "drift",
    requires = [
        "vector",
        functions::drift_l2_metric,
        functions::drift_ip_metric,
        functions::drift_cosine_metric,
        functions::drift_l1_metric,
    ]
);

/// Tells PostgreSQL what the access method can do and where its callbacks are.
#[no_mangle]
#[pgrx::pg_guard]
pub extern "C-unwind" fn drift_handler(_fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: makeNode of a known node type, zeroed.
    let mut routine = unsafe {
        pgrx::PgBox::<pg_sys::IndexAmRoutine>::alloc_node(pg_sys::NodeTag::T_IndexAmRoutine)
    };
    routine.amsupport = 1;
    routine.amcanorderbyop = true;
    routine.amoptionalkey = true;
    routine.amparallelvacuumoptions = pg_sys::VACUUM_OPTION_NO_PARALLEL as u8;
    routine.amusemaintenanceworkmem = true;

    routine.ambuild = Some(build::ambuild);
    routine.ambuildempty = Some(build::ambuildempty);
    routine.ambuildphasename = Some(build::ambuildphasename);
    routine.aminsert = Some(insert::aminsert);
    routine.ambulkdelete = Some(vacuum::ambulkdelete);
    routine.amvacuumcleanup = Some(vacuum::amvacuumcleanup);
    routine.amcostestimate = Some(cost::amcostestimate);
    routine.amoptions = Some(options::amoptions);
    routine.amvalidate = Some(validate::amvalidate);
    routine.ambeginscan = Some(scan::ambeginscan);
    routine.amrescan = Some(scan::amrescan);
    routine.amgettuple = Some(scan::amgettuple);
    routine.amendscan = Some(scan::amendscan);
    pg_sys::Datum::from(routine.into_pg())
}

/// The calling convention of [`drift_handler`].
#[no_mangle]
pub extern "C" fn pg_finfo_drift_handler() -> &'static pg_sys::Pg_finfo_record {
    const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

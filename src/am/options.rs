//! Storage parameters and the settings `drift.*`.

use crate::page::Index;
use crate::search::Order;
use pgrx::{pg_guard, pg_sys, GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use std::mem::{offset_of, size_of};
use std::sync::OnceLock;

/// What `drift.target_recall` is unless it is set.
const DEFAULT_RECALL: f64 = 0.95;

/// How a scan goes on when its first rows were not enough.
#[derive(Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
#[allow(non_camel_case_types)]
pub enum IterativeScan {
    /// It does not.
    off,
    /// Without ever going back in distance.
    strict_order,
    /// Rows come as they are found.
    relaxed_order,
}

static TARGET_RECALL: GucSetting<f64> = GucSetting::<f64>::new(DEFAULT_RECALL);
static ITERATIVE_SCAN: GucSetting<IterativeScan> =
    GucSetting::<IterativeScan>::new(IterativeScan::strict_order);
static MAX_SCAN_TUPLES: GucSetting<i32> = GucSetting::<i32>::new(0);

/// Makes the settings known to the server.
pub fn define_settings() {
    GucRegistry::define_float_guc(
        c"drift.target_recall",
        c"Sets the share of the nearest rows that a drift index scan is to find.",
        c"At 1 the scan is exact. An index's own target_recall takes the place of the default.",
        &TARGET_RECALL,
        0.0,
        1.0,
        GucContext::Userset,
        GucFlags::EXPLAIN,
    );
    GucRegistry::define_enum_guc(
        c"drift.iterative_scan",
        c"Sets how a drift index scan goes on when more rows are wanted than it first looked at.",
        c"",
        &ITERATIVE_SCAN,
        GucContext::Userset,
        GucFlags::EXPLAIN,
    );
    GucRegistry::define_int_guc(
        c"drift.max_scan_tuples",
        c"Sets the number of rows after which a drift index scan no longer goes on.",
        c"0 means that it may go on to the end of the index.",
        &MAX_SCAN_TUPLES,
        0,
        i32::MAX,
        GucContext::Userset,
        GucFlags::EXPLAIN,
    );
    // So that a misspelt setting is an error.
    // SAFETY: called from _PG_init; the name is static.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"drift".as_ptr()) };
}

/// The recall a scan of an index with this storage parameter aims at: the session's setting, or,
/// while that is at its default, the index's own.
pub fn target_recall(of_index: Option<f64>) -> f64 {
    match (TARGET_RECALL.get(), of_index) {
        (DEFAULT_RECALL, Some(recall)) => recall,
        (recall, _) => recall,
    }
}

/// What happens to rows found late.
pub fn order() -> Order {
    match ITERATIVE_SCAN.get() {
        IterativeScan::off => Order::Off,
        IterativeScan::strict_order => Order::Strict,
        IterativeScan::relaxed_order => Order::Relaxed,
    }
}

/// Rows after which a scan no longer widens.
pub fn max_scan_tuples() -> u64 {
    match MAX_SCAN_TUPLES.get() {
        0 => u64::MAX,
        rows => u64::from(rows.unsigned_abs()),
    }
}

/// The storage parameters, as PostgreSQL keeps them in `rd_options`.
#[repr(C)]
struct IndexOptions {
    varlena_header: i32,
    padding: i32,
    target_recall: f64,
}

/// Stored when the parameter is not given.
const UNSET: f64 = -1.0;

/// The index's own target, if it has one.
pub fn index_recall(index: Index) -> Option<f64> {
    // SAFETY: rd_options of a drift index is null or what `amoptions` returned.
    let options = unsafe { (*index.relation()).rd_options.cast::<IndexOptions>().as_ref() }?;
    (options.target_recall != UNSET).then_some(options.target_recall)
}

/// The kind that PostgreSQL gave our parameters.
fn option_kind() -> pg_sys::relopt_kind::Type {
    static KIND: OnceLock<pg_sys::relopt_kind::Type> = OnceLock::new();
    *KIND.get_or_init(|| {
        // SAFETY: called once, on the backend's own thread; the strings are static.
        unsafe {
            let kind = pg_sys::add_reloption_kind();
            pg_sys::add_real_reloption(
                kind,
                c"target_recall".as_ptr(),
                c"Share of the nearest rows that scans of this index are to find".as_ptr(),
                UNSET,
                0.0,
                1.0,
                pg_sys::AccessExclusiveLock as pg_sys::LOCKMODE,
            );
            kind
        }
    })
}

/// Parses storage parameters.
#[pg_guard]
pub unsafe extern "C-unwind" fn amoptions(
    options: pg_sys::Datum,
    validate: bool,
) -> *mut pg_sys::bytea {
    let table = [pg_sys::relopt_parse_elt {
        optname: c"target_recall".as_ptr(),
        opttype: pg_sys::relopt_type::RELOPT_TYPE_REAL,
        offset: offset_of!(IndexOptions, target_recall) as i32,
    }];
    // SAFETY: the table describes IndexOptions.
    unsafe {
        pg_sys::build_reloptions(
            options,
            validate,
            option_kind(),
            size_of::<IndexOptions>(),
            table.as_ptr(),
            table.len() as i32,
        )
        .cast()
    }
}

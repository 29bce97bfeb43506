//! The settings of the janitor, and of when it is wanted.

use crate::memtable;
use crate::page::layout::PAGE;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};
use std::sync::OnceLock;
use std::time::Duration;

static JANITOR: GucSetting<bool> = GucSetting::<bool>::new(true);
static COST: GucSetting<i32> = GucSetting::<i32>::new(100);
/// In kB. A scan reads the whole log, from pages if there is no memtable.
static LOG_LIMIT: GucSetting<i32> = GucSetting::<i32>::new(2 * 1024);
/// The same setting where there is one.
static LOG_LIMIT_WITH_MEMTABLE: GucSetting<i32> = GucSetting::<i32>::new(8 * 1024);
static LOG_MIN_DURATION: GucSetting<i32> = GucSetting::<i32>::new(10 * 60 * 1000);

/// Makes the settings known to the server.
pub fn define() {
    GucRegistry::define_bool_guc(
        c"drift.janitor",
        c"Flushes the logs of drift indexes in the background.",
        c"Needs drift_pg in shared_preload_libraries. Otherwise inserts and VACUUM do it.",
        &JANITOR,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"drift.janitor_cost",
        c"Sets the percentage of one core that the janitor may use.",
        c"",
        &COST,
        1,
        100,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"drift.log_limit",
        c"Sets the size at which a drift index's log of inserted rows is flushed into a segment.",
        c"",
        log_limit(),
        64,
        i32::MAX,
        GucContext::Userset,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"drift.log_janitor_min_duration",
        c"Sets the minimum execution time above which the janitor's actions will be logged.",
        c"-1 disables logging of its actions; 0 logs them all.",
        &LOG_MIN_DURATION,
        -1,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
}

/// Whether the janitor is to work.
pub fn is_on() -> bool {
    JANITOR.get()
}

/// The share of a core for all workers together.
pub fn share() -> f64 {
    f64::from(COST.get()) / 100.0
}

/// The setting that is in force in this process.
fn log_limit() -> &'static GucSetting<i32> {
    static CHOSEN: OnceLock<&'static GucSetting<i32>> = OnceLock::new();
    CHOSEN.get_or_init(|| match memtable::is_wanted() {
        true => &LOG_LIMIT_WITH_MEMTABLE,
        false => &LOG_LIMIT,
    })
}

/// Pages the log may have before it is flushed.
pub fn log_limit_pages() -> u32 {
    log_limit().get().unsigned_abs() / (PAGE as u32 / 1024)
}

/// Whether a job that took so long is told to the log, and not only to those who debug.
pub fn is_logged(took: Duration) -> bool {
    u128::try_from(LOG_MIN_DURATION.get()).is_ok_and(|least| took.as_millis() >= least)
}

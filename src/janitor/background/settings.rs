//! The janitor's settings.

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};
use std::time::Duration;

static JANITOR: GucSetting<bool> = GucSetting::<bool>::new(true);
static COST: GucSetting<i32> = GucSetting::<i32>::new(100);
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

/// Whether a job that took so long is told to the log, and not only to those who debug.
pub fn is_logged(took: Duration) -> bool {
    u128::try_from(LOG_MIN_DURATION.get()).is_ok_and(|least| took.as_millis() >= least)
}

//! Jobs that rewrite segments: build, flush, merge, retrain, and vacuum's bulk delete.
//!
//! One job at a time holds the index's [`JobLock`]; each ends in one flip of the metapage. What
//! it computes runs on a [`Crew`] of threads that know nothing of PostgreSQL. Where the library is
//! preloaded, [`background`] workers do the jobs that are left behind by inserts.

mod arena_builder;
pub mod background;
mod crew;
mod due;
mod flush;
mod leads;
mod lock;
mod merge;
mod progress;
mod rebuild;
mod router;
mod routing;
mod rows;
mod segment_builder;
mod segment_writer;
mod sorter;
mod sweep;
mod temp_file;
mod tiers;
mod transaction;
mod vacuum;

pub use arena_builder::ArenaBuilder;
pub use crew::Crew;
pub use due::is_untidy;
pub use flush::{build, flush, flush_log, job_memory, tidy, Flushed};
pub use lock::JobLock;
pub use progress::{phase_name, Phase, Progress};
pub use rebuild::{open_arena, rebuild_missing};
pub use router::load as load_router;
pub use routing::open_or_make as open_routing;
pub use rows::RowStore;
pub use sorter::keep as keep_sorters;
pub use sweep::{arena_place, sweep, sweep_database, sweep_if_idle};
pub use transaction::{remove_arenas_at_abort, watch_drops};
pub use vacuum::bulk_delete;

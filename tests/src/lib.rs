//! Private PostgreSQL clusters for the demo, the tests and the benchmarks of drift_pg.
//!
//! | module | what it knows |
//! |---|---|
//! | [`command`] | running programs: their errors, their output as it comes |
//! | [`user`] | the user of the operating system that runs servers |
//! | [`state`] | where everything is kept between runs |
//! | [`provision`] | PostgreSQL 15, its headers, libclang and cargo-pgrx |
//! | [`install`] | a private PostgreSQL with the extension in it |
//! | [`cluster`] | clusters: started, stopped, killed, backed up, replicated |
//! | [`oracle`] | exact mode held against the sequential scan |
//! | [`data`], [`vector`] | bundled and other vectors; vectors on the wire |
//! | [`regress`] | SQL scripts whose output must be the expected one |
//! | [`bench`] | recall, speed, build time and size, beside other indexes |
//! | [`progress`] | progress of long steps, on a terminal or in a log |
//!
//! A scenario test starts from [`cluster::Cluster::builder`]; the private PostgreSQL must have
//! been installed before, by `cargo verify`, `cargo demo` or `cargo verify --only install`.

#![warn(missing_docs)]

pub mod bench;
pub mod cluster;
pub mod command;
pub mod data;
pub mod install;
pub mod oracle;
pub mod progress;
pub mod provision;
pub mod regress;
mod server;
pub mod state;
pub mod user;
pub mod vector;

//! The bench: recall, speed, build time and size through SQL, beside other indexes.
//!
//! | module | what it knows |
//! |---|---|
//! | [`options`] | the command line |
//! | [`dataset`] | vectors, queries, exact answers, and the files they come in |
//! | [`synthetic`] | vectors that are made |
//! | [`host`] | the private server: its memory, its settings, its cores |
//! | [`peer`] | drift and what it is compared with: tables, indexes, knobs |
//! | [`pgvector`] | pgvector, built from Debian's source |
//! | [`wire`] | a connection that costs as little as a client can |
//! | [`load`] | pinned pairs of client and backend, and what they measure |
//! | [`curve`] | percentiles, medians, recall-speed curves and their ratios |
//! | [`sweep`] | the run: every index at every setting, in interleaved rounds |
//! | [`writes`] | inserts, copies, and queries beside them |
//! | [`report`], [`plot`] | what is printed and written |

pub mod curve;
pub mod dataset;
pub mod host;
pub mod load;
pub mod options;
pub mod peer;
pub mod pgvector;
pub mod plot;
pub mod report;
pub mod sweep;
pub mod synthetic;
pub mod wire;
pub mod writes;

use anyhow::Result;

use options::{Options, What};

/// Runs what the command line asks for.
///
/// # Errors
/// Anything that keeps a figure from being measured.
pub fn run(options: &Options) -> Result<()> {
    match options.what {
        What::Reads => sweep::run(options),
        What::Writes => writes::run(options),
    }
}

//! The router's own arena: opened, or made from the router's pages.

use super::arena_builder::report_unwritten;
use super::router;
use super::sweep::arena_place;
use crate::arena::{ArenaError, RoutingArena, RoutingIdentity};
use crate::cluster::Router;
use crate::metric::Metric;
use crate::page::{Identity, Index, Read, RouterRef};
use pgrx::PgSqlErrorCode;

/// The routing arena of the router that a manifest names, and whether it had to be made.
///
/// # Errors
/// What reading the router's pages gave, if it had to be made.
pub fn open_or_make(
    index: Index,
    metric: Metric,
    dims: usize,
    stored: &RouterRef,
) -> Read<(RoutingArena, bool)> {
    let (directory, name) = arena_place(index, stored.column.id);
    let identity = RoutingIdentity {
        router: stored.column.id.as_u128(),
        dim: dims as u32,
        metric,
        buckets: stored.buckets,
    };
    match RoutingArena::open(&directory, &name, &identity) {
        Ok(routing) => return Ok((routing, false)),
        Err(ArenaError::Missing) => {}
        Err(error) => {
            pgrx::ereport!(
                LOG,
                PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
                format!("an arena of index \"{}\" is not usable: {error}", index.name()),
                "It is derived from the index's pages and is made again."
            );
        }
    }
    let router = router::load(index, metric, dims, stored)?;
    Ok((make(index, stored.column.id, &router), true))
}

/// Makes the arena of a router: a file, or memory of this backend if no file can be written.
pub fn make(index: Index, id: Identity, router: &Router) -> RoutingArena {
    let (directory, name) = arena_place(index, id);
    let made = RoutingArena::create(&directory, &name, id.as_u128(), router)
        .inspect_err(|error| report_unwritten(index, error))
        .or_else(|_| RoutingArena::in_memory(id.as_u128(), router));
    match made {
        Ok(routing) => routing,
        Err(error) => {
            pgrx::ereport!(
                ERROR,
                PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY,
                format!("could not hold the router of index \"{}\": {error}", index.name())
            );
        }
    }
}

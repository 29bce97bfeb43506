//! The router's own arena: opened, or made from the router's pages.

use super::arena_builder::{report_unusable, report_unwritten};
use super::crew::Crew;
use super::router;
use super::sweep::arena_place;
use crate::arena::{ArenaError, RoutingArena, RoutingIdentity};
use crate::cluster::{Router, Stopped};
use crate::metric::Metric;
use crate::page::{Identity, Index, Read, RouterRef};
use pgrx::PgSqlErrorCode;
use std::sync::atomic::AtomicBool;

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
        Err(error) => report_unusable(index, &error),
    }
    let router = router::load(index, metric, dims, stored)?;
    Ok((make(index, &Crew::new(), stored.column.id, &router), true))
}

/// The stored router and its arena, from which it has been spared what takes long to find out.
///
/// # Errors
/// What reading the router's pages gave.
pub fn load_with_router(
    index: Index,
    metric: Metric,
    dims: usize,
    stored: &RouterRef,
) -> Read<(Router, RoutingArena)> {
    let router = router::load(index, metric, dims, stored)?;
    let (routing, _) = open_or_make(index, metric, dims, stored)?;
    routing.teach(&router);
    Ok((router, routing))
}

/// Makes the arena of a router: a file, or memory of this backend if no file can be written.
pub fn make(index: Index, crew: &Crew, id: Identity, router: &Router) -> RoutingArena {
    let (directory, name) = arena_place(index, id);
    let id = id.as_u128();
    // A stopped job has already ended the statement; the second time all is known.
    let _ = crew.run(|stop| router.routed(stop).map(|_| ()));
    let routed = router.routed(&AtomicBool::new(false));
    let made = routed.map_err(|Stopped| ArenaError::Layout("stopped")).and_then(|routed| {
        RoutingArena::create(&directory, &name, id, router, &routed)
            .inspect_err(|error| report_unwritten(index, error))
            .or_else(|_| RoutingArena::in_memory(id, router, &routed))
    });
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

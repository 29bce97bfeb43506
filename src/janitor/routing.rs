//! The router's own arena: opened, or made from the router's pages.

use super::arena_builder::report_unwritten;
use super::crew::Crew;
use super::router;
use super::sweep::arena_place;
use crate::arena::{ArenaError, RoutingArena, RoutingIdentity};
use crate::cluster::{Groups, Router, Stopped};
use crate::metric::Metric;
use crate::page::{Identity, Index, Read, RouterRef};
use crate::search::{groups, is_grouped};
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
    let groups = match is_grouped(router.len()) {
        true => find_groups(&Crew::new(), &router),
        false => one_group(&router),
    };
    Ok((make_with(index, stored.column.id, &router, &groups), true))
}

/// Makes the arena of a router: a file, or memory of this backend if no file can be written.
pub fn make(index: Index, crew: &Crew, id: Identity, router: &Router) -> RoutingArena {
    make_with(index, id, router, &find_groups(crew, router))
}

fn find_groups(crew: &Crew, router: &Router) -> Groups {
    let found = crew.run(|stop| groups(router, stop));
    // A stopped job has already ended the statement.
    found.unwrap_or_else(|Stopped| one_group(router))
}

fn one_group(router: &Router) -> Groups {
    match router.points(&AtomicBool::new(false)) {
        Ok((points, components)) => Groups::one(points, components),
        // The flag is nobody's.
        Err(Stopped) => Groups::one(&[], router.space().projection.components()),
    }
}

fn make_with(index: Index, id: Identity, router: &Router, groups: &Groups) -> RoutingArena {
    let (directory, name) = arena_place(index, id);
    let made = RoutingArena::create(&directory, &name, id.as_u128(), router, groups)
        .inspect_err(|error| report_unwritten(index, error))
        .or_else(|_| RoutingArena::in_memory(id.as_u128(), router, groups));
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

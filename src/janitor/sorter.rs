//! The stored router of an index, opened to sort rows by.

use super::flush::job_memory;
use super::routing::load_with_router;
use crate::arena::RoutingArena;
use crate::cluster::Router;
use crate::metric::Metric;
use crate::page::{Identity, Index, Read, RouterRef};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// The stored router of an index, and its arena.
pub struct Sorter {
    pub(super) router: Router,
    pub(super) routing: RoutingArena,
}

thread_local! {
    /// Whether this process does one job after the other.
    static KEEPS: Cell<bool> = const { Cell::new(false) };
    /// What the last job opened, by its router's name.
    static KEPT: RefCell<Option<(Identity, Rc<Sorter>)>> = const { RefCell::new(None) };
}

/// How many times its centroids' size an opened router takes, about: they are there as they are, in
/// groups, and in the forms that products want.
const FORMS: usize = 5;

/// From now on what one job has opened is kept for the next: flushes of one index follow each other,
/// and to open its router takes as long as to sort thousands of rows.
pub fn keep() {
    KEEPS.set(true);
}

impl Sorter {
    /// Opens the stored router.
    ///
    /// # Errors
    /// What reading its pages gave.
    pub fn open(index: Index, metric: Metric, dims: usize, stored: &RouterRef) -> Read<Rc<Sorter>> {
        let id = stored.column.id;
        // The name is never given twice, and what has it never changes.
        let kept = KEPT.take().filter(|(of, sorter)| *of == id && !sorter.routing.is_damaged());
        let sorter = match kept {
            Some((_, sorter)) => sorter,
            None => {
                let (router, routing) = load_with_router(index, metric, dims, stored)?;
                Rc::new(Sorter { router, routing })
            }
        };
        let size = size_of_val(sorter.router.centroids()).saturating_mul(FORMS);
        if KEEPS.get() && size <= job_memory() {
            KEPT.set(Some((id, sorter.clone())));
        }
        Ok(sorter)
    }

    /// The router, as searches see it.
    pub fn routing(&self) -> &RoutingArena {
        &self.routing
    }
}

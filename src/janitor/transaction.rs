//! Arenas that go with their relation: at commit of its DROP, at abort of its CREATE.
//!
//! What is missed here, say by a session that has not loaded the library, the next sweep finds.

use super::sweep::{arena_place, remove_arenas_of, sweep_tablespace};
use crate::page::{Identity, Index};
use pgrx::{pg_guard, pg_sys, PgXactCallbackEvent};
use std::ptr::addr_of;

/// Removes the arenas of an index built in this transaction if it does not commit.
pub fn remove_arenas_at_abort(index: Index) {
    remove_arenas_at(PgXactCallbackEvent::Abort, index);
}

fn remove_arenas_at(event: PgXactCallbackEvent, index: Index) {
    let (directory, name) = arena_place(index, Identity::NONE);
    pgrx::register_xact_callback(event, move || {
        remove_arenas_of(&directory, name.relation());
    });
}

static mut NEXT_HOOK: pg_sys::object_access_hook_type = None;

/// Hears of dropped relations from now on.
pub fn watch_drops() {
    // SAFETY: called once, from _PG_init, on the process's only thread.
    unsafe {
        NEXT_HOOK = pg_sys::object_access_hook;
        pg_sys::object_access_hook = Some(object_access);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn object_access(
    access: pg_sys::ObjectAccessType::Type,
    class: pg_sys::Oid,
    object: pg_sys::Oid,
    sub_object: std::ffi::c_int,
    argument: *mut std::ffi::c_void,
) {
    // SAFETY: the hook that was there before gets what we got. A relation about to be dropped is
    // still there, locked by whoever drops it.
    unsafe {
        if let Some(next) = *addr_of!(NEXT_HOOK) {
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                next(access, class, object, sub_object, argument);
            });
        }
        let is_relation = class == pg_sys::RelationRelationId && sub_object == 0;
        if access == pg_sys::ObjectAccessType::OAT_DROP && is_relation {
            relation_dropped(object);
        }
        if access == pg_sys::ObjectAccessType::OAT_DROP && class == pg_sys::TableSpaceRelationId {
            // Before the server looks whether it is empty.
            sweep_tablespace(object.to_u32());
        }
    }
}

/// Remembers the place of a drift index's arenas until its DROP commits.
fn relation_dropped(oid: pg_sys::Oid) {
    // SAFETY: the relation exists until the hook's caller removes it; it is closed again at once.
    unsafe {
        if pg_sys::get_rel_relkind(oid) as u8 != pg_sys::RELKIND_INDEX {
            return;
        }
        let relation = pg_sys::relation_open(oid, pg_sys::NoLock as pg_sys::LOCKMODE);
        let own = pg_sys::get_index_am_oid(c"drift".as_ptr(), true);
        if (*(*relation).rd_rel).relam == own {
            remove_arenas_at(PgXactCallbackEvent::Commit, Index::new(relation));
        }
        pg_sys::relation_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
    }
}

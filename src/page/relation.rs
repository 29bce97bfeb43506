//! The index as a relation.

use pgrx::pg_sys;
use std::ffi::CStr;
use std::path::PathBuf;

/// An open index relation.
///
/// Copies are cheap; the relation stays open as long as the callback that was handed it runs.
#[derive(Clone, Copy)]
pub struct Index(pg_sys::Relation);

impl Index {
    /// Wraps an open relation.
    ///
    /// # Safety
    /// `relation` is open and stays so while the value and its copies are used.
    pub unsafe fn new(relation: pg_sys::Relation) -> Index {
        Index(relation)
    }

    /// The relation for PostgreSQL's functions.
    pub fn relation(self) -> pg_sys::Relation {
        self.0
    }

    /// Its number in the catalogue.
    pub fn oid(self) -> pg_sys::Oid {
        // SAFETY: the relation is open.
        unsafe { (*self.0).rd_id }
    }

    /// Its name, for messages.
    pub fn name(self) -> String {
        // SAFETY: the relation is open, so its pg_class row and the name in it are there.
        unsafe { CStr::from_ptr((*(*self.0).rd_rel).relname.data.as_ptr()) }
            .to_string_lossy()
            .into_owned()
    }

    /// Path of the main fork, relative to the data directory.
    pub fn path(self) -> PathBuf {
        // SAFETY: the relation is open; GetRelationPath returns a palloc'd C string.
        unsafe {
            let node = (*self.0).rd_node;
            let path = pg_sys::GetRelationPath(
                node.dbNode,
                node.spcNode,
                node.relNode,
                (*self.0).rd_backend,
                pg_sys::ForkNumber::MAIN_FORKNUM,
            );
            let owned = PathBuf::from(CStr::from_ptr(path).to_string_lossy().into_owned());
            pg_sys::pfree(path.cast());
            owned
        }
    }

    /// Which file this is, for caches: it changes with TRUNCATE, REINDEX and SET TABLESPACE.
    pub fn file_key(self) -> (u32, u32, u32) {
        // SAFETY: the relation is open.
        let node = unsafe { (*self.0).rd_node };
        (node.dbNode.to_u32(), node.spcNode.to_u32(), node.relNode.to_u32())
    }

    /// Blocks of the main fork.
    pub fn blocks(self) -> u32 {
        // SAFETY: the relation is open.
        unsafe { pg_sys::RelationGetNumberOfBlocksInFork(self.0, pg_sys::ForkNumber::MAIN_FORKNUM) }
    }
}

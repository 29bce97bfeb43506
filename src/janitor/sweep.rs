//! Where arenas are, and the removal of those nobody needs.

use super::lock::JobLock;
use crate::arena::{self, ArenaName, Listed};
use crate::page::{Identity, Index, Manifest, Read, View};
use pgrx::pg_sys;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Directory and name of a segment's arena: next to the relation's own file.
pub fn arena_place(index: Index, segment: Identity) -> (PathBuf, ArenaName) {
    let path = index.path();
    let directory = path.parent().unwrap_or(Path::new(".")).to_path_buf();
    let relation = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(name) = ArenaName::new(&relation, segment.as_u128()) else {
        pgrx::ereport!(
            ERROR,
            pgrx::PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            format!("unexpected name \"{relation}\" of an index's file")
        );
    };
    (directory, name)
}

/// Removes, next to the relation's file, arenas of segments and routers that `manifest` no longer
/// has, arenas of relations that are gone, and what interrupted writers left.
///
/// Unlinking is always safe: whoever has an arena mapped keeps it. The caller holds the job lock,
/// so none of this index's arenas is in the making.
pub fn sweep(index: Index, manifest: &Manifest) {
    let (directory, own) = arena_place(index, Identity::NONE);
    let segments = manifest.segments.iter().map(|segment| segment.id);
    let router = manifest.router.iter().map(|router| router.column.id);
    let live: HashSet<u128> = segments.chain(router).map(|id| id.as_u128()).collect();
    let Ok(listed) = arena::list(&directory) else { return };
    for entry in listed {
        match entry {
            Listed::Arena(name) => {
                let needed = if name.relation() == own.relation() {
                    live.contains(&name.segment())
                } else {
                    !is_gone(&directory.join(name.relation()))
                };
                if !needed {
                    // What cannot be removed now will be met again by the next sweep.
                    let _ = arena::remove(&directory, &name);
                }
            }
            Listed::Temporary { pid, path, .. } => {
                if !is_running(pid) {
                    let _ = std::fs::remove_file(path);
                }
            }
        }
    }
}

/// As [`sweep`], by whoever noticed that an arena was missing: on a standby no job does it.
///
/// While a job runs there is nothing to do: it sweeps when it commits.
///
/// # Errors
/// What reading the manifest gave.
pub fn sweep_if_idle(index: Index) -> Read<()> {
    let Some(_job) = JobLock::try_acquire(index) else { return Ok(()) };
    let view = View::take(index)?;
    let (manifest, _) = Manifest::read(index, view.manifest())?;
    sweep(index, &manifest);
    Ok(())
}

/// Removes the arenas of dropped relations from every directory of this database: an index that was
/// moved to another tablespace, or dropped by a session that knew nothing of arenas, has left its
/// own behind.
pub fn sweep_database() {
    // SAFETY: reads a variable of the backend's own thread.
    let database = unsafe { pg_sys::MyDatabaseId }.to_u32().to_string();
    remove_orphans(&Path::new("base").join(&database));
    for version in subdirectories(Path::new("pg_tblspc")).flat_map(|space| subdirectories(&space)) {
        remove_orphans(&version.join(&database));
    }
}

/// As [`sweep_database`], for one tablespace and all databases.
pub fn sweep_tablespace(tablespace: u32) {
    let directory = Path::new("pg_tblspc").join(tablespace.to_string());
    for database in subdirectories(&directory).flat_map(|version| subdirectories(&version)) {
        remove_orphans(&database);
    }
}

fn subdirectories(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir())
}

/// Removes the arenas whose relation is gone.
fn remove_orphans(directory: &Path) {
    for entry in arena::list(directory).into_iter().flatten() {
        if let Listed::Arena(name) = entry {
            if is_gone(&directory.join(name.relation())) {
                let _ = arena::remove(directory, &name);
            }
        }
    }
}

/// Removes all arenas of a relation that is gone, or about to be.
pub fn remove_arenas_of(directory: &Path, relation: &str) {
    let Ok(listed) = arena::list(directory) else { return };
    for entry in listed {
        if let Listed::Arena(name) = entry {
            if name.relation() == relation {
                let _ = arena::remove(directory, &name);
            }
        }
    }
}

/// Whether a relation has been dropped: its file is gone, or empty until the next checkpoint.
fn is_gone(main_fork: &Path) -> bool {
    std::fs::metadata(main_fork).map_or(true, |file| file.len() == 0)
}

fn is_running(pid: u32) -> bool {
    // SAFETY: signal 0 only asks whether the process is there.
    i32::try_from(pid).is_ok_and(|pid| unsafe { libc::kill(pid, 0) } == 0)
}

//! Statements that want a database for themselves: DROP DATABASE, CREATE DATABASE from a template,
//! ALTER DATABASE ... SET TABLESPACE and RENAME.
//!
//! They fail if anybody else is connected. So before one runs, the database's workers are asked
//! to leave, and none comes until it has ended.

use super::{now, pace, shared};
use pgrx::{pg_guard, pg_sys, PgList, PgTryBuilder};
use std::ffi::{c_char, c_int, CStr};
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

/// How long workers may take to leave; the statement itself waits for some seconds more.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often they are looked after.
const NAP: Duration = Duration::from_millis(5);
/// Microseconds after which workers may come again, whatever became of the statement: once it has
/// begun, connections wait for its lock.
const LIMIT: i64 = 600_000_000;

type Utility = unsafe extern "C-unwind" fn(
    *mut pg_sys::PlannedStmt,
    *const c_char,
    bool,
    pg_sys::ProcessUtilityContext::Type,
    pg_sys::ParamListInfo,
    *mut pg_sys::QueryEnvironment,
    *mut pg_sys::DestReceiver,
    *mut pg_sys::QueryCompletion,
);

static mut NEXT: Utility = standard_ProcessUtility;

/// Watches statements from now on.
pub fn install() {
    // SAFETY: called once, from _PG_init, on the process's only thread.
    unsafe {
        NEXT = pg_sys::ProcessUtility_hook.unwrap_or(NEXT);
        pg_sys::ProcessUtility_hook = Some(process_utility);
    }
}

/// No guard is around statements that are none of ours, nor has this anything to drop: an error
/// that passes through a guard loses its context and the name of its constraint.
#[allow(clippy::too_many_arguments, reason = "PostgreSQL's signature")]
unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the statement is a parsed one, alive for the call. The hook that was there before, or
    // else the server's own function, gets what we got.
    unsafe {
        let run: Utility = match is_of_databases((*statement).utilityStmt) {
            true => process_exclusively,
            false => NEXT,
        };
        run(statement, query, read_only, context, parameters, environment, destination, completion);
    }
}

/// Whether a statement may be one that wants a database for itself.
///
/// # Safety
/// `node` is a parse tree.
unsafe fn is_of_databases(node: *const pg_sys::Node) -> bool {
    // SAFETY: a node begins with its tag, which tells its type.
    unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_DropdbStmt
            | pg_sys::NodeTag::T_CreatedbStmt
            | pg_sys::NodeTag::T_AlterDatabaseStmt => true,
            pg_sys::NodeTag::T_RenameStmt => {
                (*node.cast::<pg_sys::RenameStmt>()).renameType
                    == pg_sys::ObjectType::OBJECT_DATABASE
            }
            _ => false,
        }
    }
}

#[pg_guard]
#[allow(clippy::too_many_arguments, reason = "PostgreSQL's signature")]
unsafe extern "C-unwind" fn process_exclusively(
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the hook that was there before, or else the server's own function, gets what we got.
    let proceed = || unsafe {
        let next = NEXT;
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            next(
                statement,
                query,
                read_only,
                context,
                parameters,
                environment,
                destination,
                completion,
            );
        });
    };
    // SAFETY: the statement is a parsed one, alive for the call.
    let Some(wanted) = (unsafe { wanted_database((*statement).utilityStmt) }) else {
        proceed();
        return;
    };
    // SAFETY: a variable of the process.
    let own = unsafe { pg_sys::MyProcPid };
    PgTryBuilder::new(AssertUnwindSafe(|| {
        clear(wanted.database, own);
        proceed();
        if wanted.is_dropped {
            shared::with_board(|board| board.forget(wanted.database));
        }
    }))
    .finally(|| {
        shared::with_board(|board| board.unbar(wanted.database, own));
        shared::wake_launcher();
    })
    .execute();
}

extern "C-unwind" {
    /// Raw, for it takes the place of a hook.
    fn standard_ProcessUtility(
        statement: *mut pg_sys::PlannedStmt,
        query: *const c_char,
        read_only: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        parameters: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
        destination: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
}

/// A database that a statement wants for itself.
struct Wanted {
    database: u32,
    is_dropped: bool,
}

/// What database a statement wants for itself, if any.
///
/// # Safety
/// `node` is a parse tree that [`is_of_databases`], in a transaction.
unsafe fn wanted_database(node: *mut pg_sys::Node) -> Option<Wanted> {
    // SAFETY: the tag tells what the node is; names in it are C strings.
    unsafe {
        let (name, is_dropped) = match (*node).type_ {
            pg_sys::NodeTag::T_DropdbStmt => ((*node.cast::<pg_sys::DropdbStmt>()).dbname, true),
            pg_sys::NodeTag::T_CreatedbStmt => {
                let options = (*node.cast::<pg_sys::CreatedbStmt>()).options;
                let template = option(options, c"template").filter(|value| !value.is_null());
                // Without owning the template one may copy it.
                let name = template.map_or(c"template1".as_ptr(), |name| name.cast_const());
                let database = pg_sys::get_database_oid(name, true);
                return found(database, false);
            }
            pg_sys::NodeTag::T_AlterDatabaseStmt => {
                let statement = &*node.cast::<pg_sys::AlterDatabaseStmt>();
                option(statement.options, c"tablespace")?;
                (statement.dbname, false)
            }
            pg_sys::NodeTag::T_RenameStmt => ((*node.cast::<pg_sys::RenameStmt>()).subname, false),
            _ => return None,
        };
        let database = pg_sys::get_database_oid(name, true);
        if database == pg_sys::InvalidOid
            || !pg_sys::pg_database_ownercheck(database, pg_sys::GetUserId())
        {
            // It will fail; whoever may not do it is not to send workers away either.
            return None;
        }
        found(database, is_dropped)
    }
}

fn found(database: pg_sys::Oid, is_dropped: bool) -> Option<Wanted> {
    (database != pg_sys::InvalidOid).then(|| Wanted { database: database.to_u32(), is_dropped })
}

/// The value of an option that is given; null if it stands alone.
///
/// # Safety
/// `options` is a list of `DefElem`.
unsafe fn option(options: *mut pg_sys::List, name: &CStr) -> Option<*mut c_char> {
    // SAFETY: as the caller promises; defGetString raises an error if there is no value.
    unsafe {
        let options = PgList::<pg_sys::DefElem>::from_pg(options);
        let found = options.iter_ptr().find(|option| CStr::from_ptr((**option).defname) == name)?;
        if (*found).arg.is_null() {
            return Some(std::ptr::null_mut());
        }
        Some(pg_sys::defGetString(found))
    }
}

/// Sends the workers of a database away and keeps them out; waits until they are gone.
fn clear(database: u32, own: c_int) {
    shared::with_board(|board| board.bar(database, own, now() + LIMIT));
    let begun = Instant::now();
    loop {
        // While its seat is taken under the lock, a worker is there to be signalled.
        let visited = shared::with_board(|board| {
            board.is_visited(database, |pid| {
                // SAFETY: the worker's handler notes the cancel of a statement.
                unsafe { libc::kill(pid, libc::SIGINT) };
            })
        });
        if visited != Some(true) || begun.elapsed() > PATIENCE {
            return;
        }
        pace::sleep(NAP);
    }
}

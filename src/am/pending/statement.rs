//! Which statements insert many rows, and when what has been gathered has to be appended.

use super::{append_all, forget_all, forget_beyond, hand_over};
use pgrx::{pg_guard, pg_sys};
use std::cell::{Cell, RefCell};
use std::ffi::{c_char, c_int, c_void};
use std::ptr::null_mut;

/// What is done with the rows of the statement that runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Each is appended at once: it is no statement of those below, or there is none.
    Each,
    /// None has come yet. The first is appended at once: mostly it is the only one.
    First,
    /// They are gathered.
    Gather,
}

thread_local! {
    static MANNER: Cell<Manner> = const { Cell::new(Manner::Each) };
    /// Subtransactions under way, each with the manner of the statement it began in.
    static BEGUN_IN: RefCell<Vec<(pg_sys::SubTransactionId, Manner)>> =
        const { RefCell::new(Vec::new()) };
}

/// Whether the row that has just come is to be gathered.
pub fn gathers() -> bool {
    match MANNER.get() {
        Manner::Each => false,
        Manner::First => {
            MANNER.set(Manner::Gather);
            false
        }
        Manner::Gather => true,
    }
}

/// How many subtransactions are under way.
pub fn depth() -> usize {
    BEGUN_IN.with_borrow(Vec::len)
}

/// PostgreSQL's functions, and no guard around them: an error that passes through one is put together
/// anew, and loses its context, the name of its constraint and its place in the query. It leaves the
/// hooks below as it leaves PostgreSQL's own functions, by a jump, so that these have nothing to
/// drop, and the end of the (sub)transaction puts right what they have not.
mod unguarded {
    use pgrx::pg_sys::{
        DestReceiver, Instrumentation, ParamListInfo, PlannedStmt, ProcessUtilityContext,
        QueryCompletion, QueryDesc, QueryEnvironment, ScanDirection,
    };
    use std::ffi::{c_char, c_int};

    unsafe extern "C-unwind" {
        pub fn standard_ExecutorStart(query: *mut QueryDesc, flags: c_int);
        pub fn standard_ExecutorRun(
            query: *mut QueryDesc,
            direction: ScanDirection::Type,
            count: u64,
            once: bool,
        );
        pub fn standard_ExecutorFinish(query: *mut QueryDesc);
        pub fn InstrStartNode(account: *mut Instrumentation);
        pub fn InstrStopNode(account: *mut Instrumentation, rows: f64);
        pub fn standard_ProcessUtility(
            statement: *mut PlannedStmt,
            text: *const c_char,
            is_read_only: bool,
            context: ProcessUtilityContext::Type,
            parameters: ParamListInfo,
            environment: *mut QueryEnvironment,
            destination: *mut DestReceiver,
            completion: *mut QueryCompletion,
        );
    }
}

static mut START: Start = unguarded::standard_ExecutorStart;
static mut RUN: Run = unguarded::standard_ExecutorRun;
static mut FINISH: Finish = unguarded::standard_ExecutorFinish;
static mut UTILITY: Utility = unguarded::standard_ProcessUtility;

type Start = unsafe extern "C-unwind" fn(*mut pg_sys::QueryDesc, c_int);
type Run =
    unsafe extern "C-unwind" fn(*mut pg_sys::QueryDesc, pg_sys::ScanDirection::Type, u64, bool);
type Finish = unsafe extern "C-unwind" fn(*mut pg_sys::QueryDesc);
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

/// Looks at statements and transactions from now on.
pub fn watch_statements() {
    // SAFETY: called once, from _PG_init, on the process's only thread.
    unsafe {
        START = pg_sys::ExecutorStart_hook.unwrap_or(START);
        pg_sys::ExecutorStart_hook = Some(start);
        RUN = pg_sys::ExecutorRun_hook.unwrap_or(RUN);
        pg_sys::ExecutorRun_hook = Some(run);
        FINISH = pg_sys::ExecutorFinish_hook.unwrap_or(FINISH);
        pg_sys::ExecutorFinish_hook = Some(finish);
        UTILITY = pg_sys::ProcessUtility_hook.unwrap_or(UTILITY);
        pg_sys::ProcessUtility_hook = Some(utility);
        pg_sys::RegisterXactCallback(Some(transaction), null_mut());
        pg_sys::RegisterSubXactCallback(Some(subtransaction), null_mut());
    }
}

/// Appends what has been gathered, with a guard around what is ours.
#[pg_guard]
extern "C-unwind" fn append_gathered() {
    append_all();
}

/// A statement begins. Its scans see to what one around it has gathered by themselves, but those of
/// parallel workers cannot.
unsafe extern "C-unwind" fn start(query: *mut pg_sys::QueryDesc, flags: c_int) {
    // SAFETY: a query that is to be started has a plan. The hook that was there before, or else the
    // server's own function, gets what we got.
    unsafe {
        if (*(*query).plannedstmt).parallelModeNeeded {
            append_gathered();
        }
        START(query, flags);
    }
}

/// A statement runs, within another one perhaps.
unsafe extern "C-unwind" fn run(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
    once: bool,
) {
    // SAFETY: as above.
    unsafe {
        let gathers = inserts_many((*query).plannedstmt);
        let around = MANNER.replace(if gathers { Manner::First } else { Manner::Each });
        RUN(query, direction, count, once);
        if gathers {
            append_last(query);
        }
        MANNER.set(around);
    }
}

/// Appends what a statement's run has left, on its account and on that of the node that inserts:
/// EXPLAIN and pg_stat_statements tell of it as of the rows before.
///
/// # Safety
/// The statement has run, and has not ended.
unsafe fn append_last(query: *const pg_sys::QueryDesc) {
    // SAFETY: what is there of a statement's plan and accounts stays until its end. No account is
    // open: each is for the time of a call.
    unsafe {
        let node = (*query).planstate.as_ref().map_or(null_mut(), |node| node.instrument);
        let accounts = [(*query).totaltime, node];
        for account in accounts.into_iter().filter(|account| !account.is_null()) {
            unguarded::InstrStartNode(account);
        }
        append_gathered();
        for account in accounts.into_iter().filter(|account| !account.is_null()) {
            unguarded::InstrStopNode(account, 0.0);
        }
    }
}

/// Inserts what is left of common table expressions, and runs triggers, whose statements run by
/// themselves.
unsafe extern "C-unwind" fn finish(query: *mut pg_sys::QueryDesc) {
    let around = MANNER.replace(Manner::Each);
    // SAFETY: as above.
    unsafe { FINISH(query) };
    MANNER.set(around);
}

/// A statement of another kind begins; what it changes may be what rows have been gathered for.
#[allow(clippy::too_many_arguments, reason = "PostgreSQL's signature")]
unsafe extern "C-unwind" fn utility(
    statement: *mut pg_sys::PlannedStmt,
    text: *const c_char,
    is_read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: a utility statement has its node. The rest is as above.
    unsafe {
        append_gathered();
        let gathers = copies_in((*statement).utilityStmt);
        let around = MANNER.replace(if gathers { Manner::First } else { Manner::Each });
        UTILITY(
            statement,
            text,
            is_read_only,
            context,
            parameters,
            environment,
            destination,
            completion,
        );
        if gathers {
            append_gathered();
        }
        MANNER.set(around);
    }
}

/// Whether a plan is that of an INSERT or UPDATE whose rows may be gathered: with ON CONFLICT they
/// are speculative, and common table expressions may have such inserts of their own.
///
/// # Safety
/// `planned` is a plan.
unsafe fn inserts_many(planned: *const pg_sys::PlannedStmt) -> bool {
    // SAFETY: the tree of a plan is whole, and a node begins with its tag.
    unsafe {
        let planned = &*planned;
        let inserts = matches!(
            planned.commandType,
            pg_sys::CmdType::CMD_INSERT | pg_sys::CmdType::CMD_UPDATE
        );
        let tree = planned.planTree;
        inserts
            && !planned.hasModifyingCTE
            && !tree.is_null()
            && (*tree).type_ == pg_sys::NodeTag::T_ModifyTable
            && (*tree.cast::<pg_sys::ModifyTable>()).onConflictAction
                == pg_sys::OnConflictAction::ONCONFLICT_NONE
    }
}

/// Whether a utility statement is COPY ... FROM.
///
/// # Safety
/// `node` is a node, or null.
unsafe fn copies_in(node: *const pg_sys::Node) -> bool {
    // SAFETY: a node begins with its tag, which tells its type.
    unsafe {
        !node.is_null()
            && (*node).type_ == pg_sys::NodeTag::T_CopyStmt
            && (*node.cast::<pg_sys::CopyStmt>()).is_from
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn transaction(event: pg_sys::XactEvent::Type, _argument: *mut c_void) {
    match event {
        pg_sys::XactEvent::XACT_EVENT_PRE_COMMIT | pg_sys::XactEvent::XACT_EVENT_PRE_PREPARE => {
            append_all();
        }
        pg_sys::XactEvent::XACT_EVENT_COMMIT
        | pg_sys::XactEvent::XACT_EVENT_PREPARE
        | pg_sys::XactEvent::XACT_EVENT_ABORT => {
            forget_all();
            MANNER.set(Manner::Each);
            BEGUN_IN.with_borrow_mut(Vec::clear);
        }
        _ => {}
    }
}

/// Nothing here can fail: who begins a subtransaction is not prepared for that.
#[pg_guard]
unsafe extern "C-unwind" fn subtransaction(
    event: pg_sys::SubXactEvent::Type,
    own: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _argument: *mut c_void,
) {
    // The subtransactions around this one, and the manner of the statement it began in. An inner one
    // that failed to begin or to end has not told. One that began before the library was loaded is
    // not known, and around all that are.
    let ends = || {
        BEGUN_IN.with_borrow_mut(|begun| {
            let around = begun.iter().rposition(|(id, _)| *id == own);
            let manner = around.map_or(Manner::Each, |around| begun[around].1);
            begun.truncate(around.unwrap_or(0));
            (around, manner)
        })
    };
    match event {
        pg_sys::SubXactEvent::SUBXACT_EVENT_START_SUB => {
            BEGUN_IN.with_borrow_mut(|begun| begun.push((own, MANNER.get())));
        }
        pg_sys::SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => {
            let (around, _) = ends();
            hand_over(around.unwrap_or(0));
        }
        pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB => {
            let (around, manner) = ends();
            match around {
                Some(around) => forget_beyond(around),
                None => forget_all(),
            }
            // The statements that failed with it did not get to say that they ended.
            MANNER.set(manner);
        }
        _ => {}
    }
}

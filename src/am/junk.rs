//! Distances that nobody has asked for.
//!
//! The ORDER BY expression of a query is a column of its plan even if it is not among the columns
//! asked for ("junk"). The executor would compute it for each row that an index scan returns, and
//! fetch a long vector from where it is stored out of line to do so, which takes longer than to
//! find the row. Where the order of a scan is that of the result nobody reads this column, so the
//! plan gets a NULL there.

use pgrx::{pg_guard, pg_sys, PgList};
use std::ffi::{c_char, c_int};

/// PostgreSQL's planner without a guard around it: an error that passes through one loses its
/// context and its place in the query. It leaves the hook by a jump, which has nothing to drop.
mod unguarded {
    use pgrx::pg_sys::{ParamListInfo, PlannedStmt, Query};
    use std::ffi::{c_char, c_int};

    unsafe extern "C-unwind" {
        pub fn standard_planner(
            query: *mut Query,
            text: *const c_char,
            options: c_int,
            parameters: ParamListInfo,
        ) -> *mut PlannedStmt;
    }
}

type Planner = unsafe extern "C-unwind" fn(
    *mut pg_sys::Query,
    *const c_char,
    c_int,
    pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt;

static mut PLANNER: Planner = unguarded::standard_planner;

/// Looks at plans from now on.
pub fn spare_junk() {
    // SAFETY: called once, from _PG_init, on the process's only thread.
    unsafe {
        PLANNER = pg_sys::planner_hook.unwrap_or(PLANNER);
        pg_sys::planner_hook = Some(plan);
    }
}

unsafe extern "C-unwind" fn plan(
    query: *mut pg_sys::Query,
    text: *const c_char,
    options: c_int,
    parameters: pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt {
    // SAFETY: the hook that was there before, or else the server's own planner, gets what we got.
    // What it returns is a plan of our own to change.
    unsafe {
        let planned = PLANNER(query, text, options, parameters);
        spare(planned);
        planned
    }
}

/// Spares the executor the junk of a plan.
///
/// # Safety
/// `planned` is a plan that nobody else uses yet.
#[pg_guard]
unsafe extern "C-unwind" fn spare(planned: *mut pg_sys::PlannedStmt) {
    // SAFETY: the caller's promise.
    unsafe {
        if let Some(scan) = ordered_scan(planned) {
            replace_junk(scan);
        }
    }
}

/// The scan of a drift index whose order is that of a query's result.
///
/// # Safety
/// `planned` is a plan.
unsafe fn ordered_scan(planned: *mut pg_sys::PlannedStmt) -> Option<*mut pg_sys::IndexScan> {
    // SAFETY: a node begins with its tag, which tells its type; plans are trees of whole nodes. The
    // planner has locked the relations of a plan.
    unsafe {
        if (*planned).commandType != pg_sys::CmdType::CMD_SELECT {
            return None;
        }
        let mut node = (*planned).planTree;
        if tag(node) == Some(pg_sys::NodeTag::T_Limit) {
            let limit = node.cast::<pg_sys::Limit>();
            if (*limit).limitOption == pg_sys::LimitOption::LIMIT_OPTION_WITH_TIES {
                return None;
            }
            node = (*node).lefttree;
        }
        if tag(node) != Some(pg_sys::NodeTag::T_IndexScan) {
            return None;
        }
        let scan = node.cast::<pg_sys::IndexScan>();
        if (*scan).indexorderbyorig.is_null() {
            return None;
        }
        let index = pg_sys::RelationIdGetRelation((*scan).indexid);
        if index.is_null() {
            return None;
        }
        let method = (*(*index).rd_rel).relam;
        pg_sys::RelationClose(index);
        (method == pg_sys::get_index_am_oid(c"drift".as_ptr(), true)).then_some(scan)
    }
}

/// The type of a plan's node, if there is one.
///
/// # Safety
/// A plan, or null.
unsafe fn tag(node: *mut pg_sys::Plan) -> Option<pg_sys::NodeTag> {
    // SAFETY: a node begins with its tag.
    unsafe { node.cast::<pg_sys::Node>().as_ref() }.map(|node| node.type_)
}

/// Replaces the junk columns that a scan is ordered by.
///
/// # Safety
/// `scan` is a whole node of a plan that nobody else uses yet.
unsafe fn replace_junk(scan: *mut pg_sys::IndexScan) {
    // SAFETY: the lists are of target entries and of expressions.
    unsafe {
        let orders = PgList::<pg_sys::Node>::from_pg((*scan).indexorderbyorig);
        let targets = PgList::<pg_sys::TargetEntry>::from_pg((*scan).scan.plan.targetlist);
        for target in targets.iter_ptr().filter(|target| (**target).resjunk) {
            let expression = (*target).expr;
            let is_order = orders.iter_ptr().any(|order| {
                pg_sys::equal(order.cast_const().cast(), expression.cast_const().cast())
            });
            if is_order {
                let type_ = pg_sys::exprType(expression.cast());
                (*target).expr = pg_sys::makeNullConst(type_, -1, pg_sys::InvalidOid).cast();
            }
        }
    }
}

#[cfg(feature = "pg_test")]
#[pgrx::pg_schema]
mod tests {
    use pgrx::prelude::*;

    fn explain(query: &str) -> String {
        let plan = Spi::connect(|client| {
            let rows = client.select(&format!("EXPLAIN (VERBOSE, COSTS off) {query}"), None, &[]);
            let lines = rows.expect("a plan").map(|row| row.get::<String>(1));
            lines.map(|line| line.expect("text").expect("a line")).collect::<Vec<_>>()
        });
        plan.join("\n")
    }

    fn ids(query: &str) -> Vec<i32> {
        let sql = format!("SELECT array_agg(id) FROM ({query}) q");
        Spi::get_one(&sql).expect("a query").expect("rows")
    }

    #[pg_test]
    fn a_distance_is_computed_only_where_it_is_read() {
        Spi::run(
            "CREATE TABLE junk (id integer, e vector(3));
             INSERT INTO junk SELECT i, format('[%s,%s,1]', i % 50, i / 50)::vector
             FROM generate_series(1, 3000) i;
             CREATE INDEX ON junk USING drift (e);
             SET enable_seqscan = off; SET enable_sort = off",
        )
        .expect("a table");
        let order = "ORDER BY e <-> '[7.1,9.2,1]'";
        let spared = [
            format!("SELECT id FROM junk {order} LIMIT 5"),
            format!("SELECT id FROM junk {order} LIMIT 5 OFFSET 3"),
            format!("SELECT id FROM junk WHERE id > 9 {order}"),
        ];
        for query in &spared {
            let plan = explain(query);
            assert!(plan.contains("Index Scan using") && plan.contains("NULL::"), "{plan}");
        }
        let read = [
            format!("SELECT id, e <-> '[7.1,9.2,1]' FROM junk {order} LIMIT 5"),
            format!("SELECT id FROM junk {order} FETCH FIRST 5 ROWS WITH TIES"),
            format!("SELECT * FROM (SELECT id FROM junk {order} LIMIT 5) q WHERE id > 0"),
            String::from("SELECT id FROM junk ORDER BY e <-> '[7.1,9.2,1]', id LIMIT 5"),
        ];
        for query in &read {
            let plan = explain(query);
            assert!(!plan.contains("NULL::"), "{plan}");
        }
        assert!(read[..3].iter().all(|query| explain(query).contains("Index Scan using")));
        let nearest = ids(&read[3]);
        for query in [&spared[0], &read[1], &read[2]] {
            let mut found = ids(query);
            found.truncate(5);
            assert_eq!(found, nearest, "{query}");
        }
        Spi::run(&format!("DECLARE c SCROLL CURSOR FOR {}", spared[0])).expect("a cursor");
        let last = "FETCH LAST FROM c";
        let id = Spi::get_one::<i32>(last).expect("a row");
        assert_eq!(id, nearest.last().copied());
        Spi::run("CREATE TABLE copied AS SELECT id FROM junk ORDER BY e <-> '[7.1,9.2,1]' LIMIT 5")
            .expect("a table");
        let columns = "SELECT count(*) FROM pg_attribute
                       WHERE attrelid = 'copied'::regclass AND attnum > 0";
        assert_eq!(Spi::get_one::<i64>(columns), Ok(Some(1)));
    }
}

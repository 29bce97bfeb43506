//! Shared memory that is not as it should be.

use super::slot::Held;
use super::{take, Wanted};
use crate::page::{kill_log_rows, Index, Tid, View};
use pgrx::prelude::*;
use pgrx::PgRelation;

#[pg_schema]
mod tests {
    use super::*;

    const NEAREST: &str = "SELECT array_agg(id) FROM
        (SELECT id FROM m ORDER BY e <-> row_of(77) LIMIT 20) nearest";

    /// 6,000 rows of 256 dimensions in a log, and in memory.
    fn table() {
        Spi::run(
            "CREATE FUNCTION row_of(i integer) RETURNS vector LANGUAGE sql IMMUTABLE AS
             $$ SELECT array_agg(sin(i % 9 + d) + 0.3 * sin(i * d * 0.01) ORDER BY d)::vector
                FROM generate_series(1, 256) d $$;
             CREATE TABLE m (id integer, e vector(256));
             CREATE INDEX m_e ON m USING drift (e);
             SET drift.log_limit = '1GB';
             SET enable_seqscan = off;
             SET enable_sort = off;
             INSERT INTO m SELECT i, row_of(i) FROM generate_series(1, 6000) i;",
        )
        .expect("as the test set up");
        assert_eq!(held(), 6000, "the tests' server has a memtable");
    }

    fn held() -> i64 {
        let sql = "SELECT memtable_rows FROM drift_index_info('m_e')";
        Spi::get_one(sql).expect("as the test set up").expect("as the test set up")
    }

    fn nearest(recall: &str) -> Vec<i32> {
        Spi::run(&format!("SET drift.target_recall = {recall}")).expect("as the test set up");
        Spi::get_one(NEAREST).expect("as the test set up").expect("as the test set up")
    }

    /// Hands the index's slot, locked alone, to `spoil`.
    fn spoil(spoil: impl FnOnce(&Held)) {
        let relation =
            PgRelation::open_with_name_and_share_lock("m_e").expect("as the test set up");
        // SAFETY: the relation is open until the end of the function.
        let index = unsafe { Index::new(relation.as_ptr()) };
        let key = Held::find(index).expect("as the test set up").slot().key();
        spoil(&Held::exclusive(index, key).expect("as the test set up"));
    }

    #[pg_test]
    fn rows_are_found_while_only_some_have_codes() {
        table();
        let exact = nearest("1");
        assert_eq!(exact.len(), 20);
        // Each search gives codes to some hundred rows.
        for round in 0..14 {
            let found = nearest("0.99");
            let hits = found.iter().filter(|id| exact.contains(id)).count();
            assert!(hits >= 18, "search {round}: {hits} of 20");
        }
    }

    #[pg_test]
    fn rows_in_memory_are_found_among_those_of_a_segment() {
        table();
        Spi::run(
            "SELECT drift_flush('m_e');
             INSERT INTO m SELECT i, row_of(i) FROM generate_series(6001, 9000) i;",
        )
        .expect("as the test set up");
        assert_eq!(held(), 3000);
        // More than a scan is expected to be asked for: the memtable is asked again.
        for limit in [10, 300] {
            let ids = |recall: &str| -> Vec<i32> {
                let sql = format!(
                    "SELECT array_agg(id) FROM
                     (SELECT id FROM m ORDER BY e <-> row_of(8077) LIMIT {limit}) nearest"
                );
                Spi::run(&format!("SET drift.target_recall = {recall}"))
                    .expect("as the test set up");
                Spi::get_one(&sql).expect("as the test set up").expect("as the test set up")
            };
            let exact = ids("1");
            assert!(exact.iter().any(|id| *id > 6000) && exact.iter().any(|id| *id <= 6000));
            // The second time a scan knows how many are wanted.
            for _ in 0..2 {
                let found = ids("0.99");
                let hits = found.iter().filter(|id| exact.contains(id)).count();
                assert!(hits * 10 >= limit * 9, "{hits} of {limit}");
            }
        }
    }

    #[pg_test]
    fn every_row_comes_once_from_segment_and_memory() {
        table();
        Spi::run(
            "SELECT drift_flush('m_e');
             INSERT INTO m SELECT i, row_of(i) FROM generate_series(6001, 7000) i;
             SET drift.max_scan_tuples = 1000000;
             SET drift.target_recall = 0.9;",
        )
        .expect("as the test set up");
        for (query, filter, rows) in [
            ("row_of(6077)", "true", 7000),
            ("array_fill(0::real, ARRAY[256])::vector", "true", 7000),
            ("array_fill(1e30::real, ARRAY[256])::vector", "true", 7000),
            ("row_of(77)", "id % 500 = 3", 14),
        ] {
            let sql = format!(
                "SELECT array_agg(id) FROM
                 (SELECT id FROM m WHERE {filter} ORDER BY e <-> {query}) nearest"
            );
            let mut ids: Vec<i32> =
                Spi::get_one(&sql).expect("as the test set up").expect("as the test set up");
            assert_eq!(ids.len(), rows, "{query} {filter}");
            ids.sort_unstable();
            ids.dedup();
            assert_eq!(ids.len(), rows, "{query} {filter}");
        }
    }

    #[pg_test]
    fn rows_flushed_between_two_looks_are_found() {
        table();
        let relation =
            PgRelation::open_with_name_and_share_lock("m_e").expect("as the test set up");
        // SAFETY: the relation is open until the end of the function.
        let index = unsafe { Index::new(relation.as_ptr()) };
        let query = vec![0.5; 256];
        let wanted = Wanted { recall: 0.9, round: 0, expected: 16, cutoff: f64::INFINITY };
        let (view, known) = take(index).expect("as the test set up");
        assert_eq!(known.records().end - known.records().start, 6000);
        assert!(super::super::nearest(index, &view, &query, known, wanted).is_some());
        Spi::run(
            "SELECT drift_flush('m_e');
             INSERT INTO m SELECT i, row_of(i) FROM generate_series(6001, 6100) i;",
        )
        .expect("as the test set up");
        // They are not taken for those that came later.
        assert!(super::super::nearest(index, &view, &query, known, wanted).is_none());
        let (view, known) = take(index).expect("as the test set up");
        assert_eq!(known.records().end - known.records().start, 100);
        let found = super::super::nearest(index, &view, &query, known, wanted);
        assert_eq!(found.expect("they are there").rows.len(), 100);
    }

    #[pg_test]
    fn a_slot_whose_change_was_interrupted_is_forgotten() {
        table();
        let expected = nearest("1");
        assert_eq!(expected.len(), 20);
        spoil(|held| held.leave_changing());
        assert_eq!(held(), 0);
        assert_eq!(nearest("1"), expected);
        assert_eq!(held(), 6000, "the scan has read them again");
        spoil(|held| held.leave_changing());
        Spi::run("INSERT INTO m SELECT i, row_of(i) FROM generate_series(6001, 6100) i")
            .expect("as the test set up");
        assert_eq!(nearest("1").len(), 20);
        assert_eq!(held(), 6100);
    }

    #[pg_test]
    fn a_slot_of_other_dimensions_is_forgotten() {
        table();
        let expected = nearest("1");
        for recall in ["0.5", "1"] {
            spoil(Held::lengthen_rows);
            assert_eq!(nearest(recall), expected, "read from pages");
            assert_eq!(held(), 6000, "the scan has read them again");
        }
    }

    #[pg_test]
    fn a_graph_with_bad_links_is_forgotten() {
        table();
        let linked = link();
        assert!(linked > 3000, "{linked}");
        let found = nearest("0.5");
        let expected = nearest("1");
        assert!(found.iter().filter(|id| expected.contains(id)).count() >= 15);
        spoil(Held::scribble_links);
        assert_eq!(nearest("0.5"), expected, "read from pages");
        assert_eq!(held(), 6000);
        assert_eq!(nearest("1"), expected);

        // Whoever links meets them, too.
        link();
        spoil(Held::scribble_links);
        Spi::run("INSERT INTO m SELECT i, row_of(i) FROM generate_series(6001, 6100) i")
            .expect("as the test set up");
        link();
        assert_eq!(held(), 0);
        assert_eq!(nearest("0.5").len(), 20);
        assert_eq!(held(), 6100);
    }

    fn link() -> i64 {
        Spi::get_one("SELECT drift_link()").expect("as the test set up").expect("a number")
    }

    #[pg_test]
    fn a_row_whose_tid_was_overwritten_is_read_again() {
        table();
        let expected = nearest("1");
        let gone = expected[0];
        let place = format!("SELECT ctid::text FROM m WHERE id = {gone}");
        let place: String =
            Spi::get_one(&place).expect("as the test set up").expect("as the test set up");
        let relation =
            PgRelation::open_with_name_and_share_lock("m_e").expect("as the test set up");
        // SAFETY: the relation is open until the end of the function.
        let index = unsafe { Index::new(relation.as_ptr()) };
        let view = View::take(index).expect("as the test set up");
        // As a bulk delete does; the memtable is not told, as it is not on a standby.
        let is_dead = |tid: Tid| format!("({},{})", tid.block(), tid.offset()) == place;
        let (kept, removed, _) = kill_log_rows(index, &view, is_dead).expect("as the test set up");
        assert_eq!((kept, removed), (5999, 1));
        assert_ne!(view.log_kills(), View::take(index).expect("as the test set up").log_kills());
        assert_eq!(nearest("1")[..19], expected[1..]);
        assert_eq!(held(), 6000, "read again");
        assert_eq!(nearest("1")[..19], expected[1..]);
        // A second bulk delete cannot know whether anybody was told of the first.
        let kills = View::take(index).expect("as the test set up").log_kills();
        kill_log_rows(index, &view, |_| false).expect("as the test set up");
        assert_ne!(kills, View::take(index).expect("as the test set up").log_kills());
    }
}

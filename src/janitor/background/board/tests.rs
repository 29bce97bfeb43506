use super::*;

const A: Key = Key { database: 1, relation: 10 };
const B: Key = Key { database: 1, relation: 11 };
const OTHER: Key = Key { database: 2, relation: 10 };
const BOTH: u32 = FLUSH | ARENAS;

fn board() -> Box<Board> {
    bytemuck::zeroed_box()
}

fn worker(board: &mut Board, now: i64) -> Ticket {
    let (ticket, database) = board.seat(BOTH, now).unwrap();
    assert_eq!(board.enter(ticket, 100), Some(database));
    ticket
}

#[test]
fn work_is_done_once_and_then_the_worker_leaves() {
    let mut board = board();
    assert_eq!(board.announce(A, FLUSH, 5), Heard::New);
    assert_eq!(board.announce(A, FLUSH, 6), Heard::Known);
    let ticket = worker(&mut board, 0);
    assert_eq!(board.next(ticket, BOTH, 0), Next::Job { relation: 10, work: FLUSH });
    assert_eq!(board.busy(), 1);
    board.flush_begins(A);
    board.done(ticket);
    assert_eq!(board.next(ticket, BOTH, 0), Next::Leave);
    board.vacate(ticket, 0);
    assert_eq!(board.seat(BOTH, i64::MAX), None);
    assert!(!board.seal(u64::MAX));
}

#[test]
fn what_is_announced_while_a_job_runs_is_not_forgotten() {
    let mut board = board();
    board.announce(A, FLUSH, 5);
    let ticket = worker(&mut board, 0);
    board.next(ticket, BOTH, 0);
    board.flush_begins(A);
    assert_eq!(board.announce(A, FLUSH, 9), Heard::New);
    assert_eq!(board.seat(BOTH, 0), None, "nobody else takes the same index");
    board.done(ticket);
    assert_eq!(board.next(ticket, BOTH, 0), Next::Job { relation: 10, work: FLUSH });
}

#[test]
fn what_a_flush_has_in_hand_is_not_to_be_flushed_again() {
    let mut board = board();
    assert_eq!(board.announce_log(A, 101, 100), Heard::New);
    let ticket = worker(&mut board, 0);
    board.next(ticket, BOTH, 0);
    board.flush_begins(A);
    board.has_in_hand(A, 120);
    assert_eq!(board.announce_log(A, 121, 100), Heard::Known);
    assert_eq!(board.announce_log(A, 220, 100), Heard::Known);
    assert!(!board.is_flush_wanted(A));
    assert_eq!(board.announce_log(A, 221, 100), Heard::New);
    assert_eq!(board.announce_log(A, 222, 100), Heard::Known);
    board.done(ticket);
    assert_eq!(board.next(ticket, BOTH, 0), Next::Job { relation: 10, work: FLUSH });
    // Nothing is in hand until this one has begun, nor after it.
    assert_eq!(board.announce_log(A, 150, 100), Heard::New);
    board.flush_begins(A);
    board.has_in_hand(A, 150);
    board.done(ticket);
    assert_eq!(board.announce_log(A, 101, 100), Heard::New);
}

#[test]
fn pages_that_came_before_the_view_ask_for_no_other_flush() {
    let mut board = board();
    board.announce(A, BOTH, 0);
    let ticket = worker(&mut board, 0);
    assert_eq!(board.next(ticket, BOTH, 0), Next::Job { relation: 10, work: BOTH });
    board.flush_begins(A);
    board.announce_log(A, 110, 100);
    board.has_in_hand(A, 111);
    assert!(!board.is_flush_wanted(A));
    // The arenas take long; what the flush had in hand is in a segment by now.
    board.has_in_hand(A, 0);
    assert_eq!(board.announce_log(A, 101, 100), Heard::New);
}

#[test]
fn putting_in_order_gives_way_to_all_that_is_in_the_log() {
    const ALL: u32 = FLUSH | ARENAS | TIDY;
    let mut board = board();
    board.tidy_later(A, 0, false);
    let (ticket, _) = board.seat(ALL, QUIET).unwrap();
    board.enter(ticket, 100);
    board.next(ticket, ALL, QUIET);
    board.flush_begins(A);
    board.has_in_hand(A, 90);
    assert!(!board.is_flush_wanted(A));
    assert_eq!(board.announce_log(A, 101, 100), Heard::New);
    assert!(board.is_flush_wanted(A));
}

#[test]
fn short_jobs_do_not_wait_longer_for_long_ones_that_were_cut_short() {
    const ALL: u32 = FLUSH | ARENAS | TIDY;
    let mut board = board();
    let mut now = 0;
    board.tidy_later(A, now, false);
    for nth in 1..5 {
        // A long one is cut short by a flush.
        now += QUIET << nth;
        let (ticket, _) = board.seat(ALL, now).unwrap();
        board.enter(ticket, 100);
        assert_eq!(board.next(ticket, ALL, now), Next::Job { relation: 10, work: FLUSH | TIDY });
        board.postpone(ticket, now, SECOND);
        assert_eq!(board.next(ticket, ALL, now), Next::Job { relation: 10, work: FLUSH });
        board.tidy_later(A, now, true);
        board.done(ticket);
        assert_eq!(board.next_due(ALL, now), Some(now + QUIET));
        // A short one is not, but leaves another long one to be done.
        now += QUIET;
        assert_eq!(board.next(ticket, ALL, now), Next::Job { relation: 10, work: FLUSH | TIDY });
        board.tidy_later(A, now, false);
        board.done(ticket);
        assert_eq!(board.next_due(ALL, now), Some(now + (QUIET << nth)));
        board.vacate(ticket, now);
    }
}

#[test]
fn segments_seen_out_of_order_are_put_in_order_unless_that_is_known() {
    const ALL: u32 = FLUSH | ARENAS | TIDY;
    let mut board = board();
    assert!(board.untidy_seen(A, 5));
    assert_eq!(board.next_due(ALL, 5), Some(5 + QUIET));
    // Who sees it later does not put it off.
    assert!(!board.untidy_seen(A, 9));
    assert_eq!(board.next_due(ALL, 9), Some(5 + QUIET));
    let (ticket, _) = board.seat(ALL, 5 + QUIET).unwrap();
    board.enter(ticket, 100);
    assert_eq!(board.next(ticket, ALL, 5 + QUIET), Next::Job { relation: 10, work: FLUSH | TIDY });
    // They are seen so until the job is done.
    assert!(!board.untidy_seen(A, 6 + QUIET));
    board.done(ticket);
    assert_eq!(board.next(ticket, ALL, i64::MAX), Next::Leave);
    assert_eq!(board.next_due(ALL, i64::MAX), None);
}

#[test]
fn an_index_left_alone_is_put_in_order_once() {
    const ALL: u32 = FLUSH | ARENAS | TIDY;
    let mut board = board();
    board.tidy_later(A, 10, false);
    assert_eq!(board.next_due(ALL, 10), Some(10 + QUIET));
    assert_eq!(board.next_due(ARENAS, 10), None);
    assert_eq!(board.seat(ALL, 9 + QUIET), None);
    let (ticket, _) = board.seat(ALL, 10 + QUIET).unwrap();
    board.enter(ticket, 100);
    let work = FLUSH | TIDY;
    assert_eq!(board.next(ticket, ALL, 10 + QUIET), Next::Job { relation: 10, work });
    assert!(!board.is_flush_wanted(A));
    board.announce(A, FLUSH, 0);
    assert!(board.is_flush_wanted(A));
    // The flush goes first, and the next time it has to be quiet for longer.
    board.postpone(ticket, 50, SECOND);
    assert_eq!(board.next(ticket, ALL, 50), Next::Job { relation: 10, work: FLUSH });
    board.tidy_later(A, 60, false);
    board.done(ticket);
    assert_eq!(board.next(ticket, ALL, 59 + 2 * QUIET), Next::Leave);
    assert_eq!(board.next(ticket, ALL, 60 + 2 * QUIET), Next::Job { relation: 10, work });
    board.done(ticket);
    assert_eq!(board.next(ticket, ALL, i64::MAX), Next::Leave);
    board.tidy_later(A, 100, false);
    assert_eq!(board.next_due(ALL, 100), Some(100 + QUIET));
    // A flush that is wanted is done alone, however late it is.
    let late = 10 * QUIET;
    board.announce(A, FLUSH, 0);
    assert_eq!(board.next(ticket, ALL, late), Next::Job { relation: 10, work: FLUSH });
    board.tidy_later(A, late, false);
    board.done(ticket);
    // One that has failed is not tried again before its time.
    let late = late + QUIET;
    assert_eq!(board.next(ticket, ALL, late), Next::Job { relation: 10, work });
    board.vacate(ticket, late);
    let late = late + SECOND;
    let ticket = worker(&mut board, late);
    assert_eq!(board.next(ticket, ALL, late), Next::Job { relation: 10, work: FLUSH });
}

#[test]
fn a_checkpoint_seals_what_is_older() {
    let mut board = board();
    board.announce(A, 0, 50);
    board.announce(A, 0, 70);
    board.announce(B, 0, 60);
    assert_eq!(board.seat(BOTH, 0), None);
    assert!(!board.seal(50));
    assert!(board.seal(51));
    let ticket = worker(&mut board, 0);
    assert_eq!(board.next(ticket, BOTH, 0), Next::Job { relation: 10, work: FLUSH });
    board.done(ticket);
    assert_eq!(board.next(ticket, BOTH, 0), Next::Leave, "the other is newer");
}

#[test]
fn one_worker_on_its_way_for_each_piece_of_work() {
    let mut board = board();
    board.announce(A, FLUSH, 0);
    assert!(board.seat(BOTH, 0).is_some());
    assert_eq!(board.seat(BOTH, 0), None);
    board.announce(B, FLUSH, 0);
    assert!(board.seat(BOTH, 0).is_some());
    board.announce(OTHER, FLUSH, 0);
    assert_eq!(board.seat(BOTH, 0), None, "all seats are taken");
}

#[test]
fn failures_are_retried_ever_later() {
    let mut board = board();
    let mut now = 0;
    for failures in 0..12 {
        let heard = board.announce(A, FLUSH, 0);
        assert_eq!(heard == Heard::Failing, failures >= HOPELESS, "{failures}");
        let ticket = worker(&mut board, now);
        board.next(ticket, BOTH, now);
        board.vacate(ticket, now);
        let due = board.next_due(BOTH, now).unwrap();
        assert_eq!(due - now, (SECOND << failures).min(LONGEST_PAUSE));
        assert_eq!(board.seat(BOTH, due - 1), None);
        now = due;
    }
    let ticket = worker(&mut board, now);
    board.next(ticket, BOTH, now);
    board.done(ticket);
    assert_eq!(board.announce(A, FLUSH, 0), Heard::New, "success is taken note of");
}

#[test]
fn a_standby_is_asked_for_arenas_only() {
    let mut board = board();
    board.announce(A, BOTH, 0);
    let (ticket, _) = board.seat(ARENAS, 0).unwrap();
    board.enter(ticket, 1);
    assert_eq!(board.next(ticket, ARENAS, 0), Next::Job { relation: 10, work: ARENAS });
    board.done(ticket);
    assert_eq!(board.next(ticket, ARENAS, 0), Next::Leave);
    assert_eq!(board.next(ticket, BOTH, 0), Next::Job { relation: 10, work: FLUSH });
}

#[test]
fn a_barred_database_gets_no_worker_and_loses_those_it_has() {
    let mut board = board();
    board.announce(A, FLUSH, 0);
    board.announce(B, FLUSH, 0);
    let there = worker(&mut board, 0);
    let (coming, _) = board.seat(BOTH, 0).unwrap();
    assert!(board.bar(1, 7, 1000));
    assert!(board.is_to_leave(there));
    assert_eq!(board.enter(coming, 101), None);
    let mut pids = Vec::new();
    assert!(board.is_visited(1, |pid| pids.push(pid)));
    assert_eq!(pids, [100]);
    board.vacate(there, 0);
    assert!(!board.is_visited(1, |_| ()));
    assert_eq!(board.seat(BOTH, 0), None);
    board.unbar(1, 7);
    assert!(board.seat(BOTH, 0).is_some());
}

#[test]
fn what_dead_processes_leave_is_freed() {
    let mut board = board();
    board.announce(A, FLUSH, 0);
    let ticket = worker(&mut board, 0);
    board.next(ticket, BOTH, 0);
    board.bar(2, 7, 1000);
    board.reap(10, |_| true);
    assert_eq!(board.busy(), 1);
    board.reap(10, |_| false);
    assert_eq!(board.busy(), 0);
    board.announce(OTHER, FLUSH, 0);
    assert_eq!(board.seat(BOTH, 10).map(|(_, database)| database), Some(2));
    board.bar(2, 7, 1000);
    board.reap(1001, |_| true);
    assert!(!board.is_barred(2), "stood too long");
    assert_eq!(board.enter(ticket, 100), None, "its seat has been given up");
}

#[test]
fn a_database_nobody_gets_into_is_forgotten() {
    let mut board = board();
    let mut now = 0;
    for _ in 0..=LOST {
        board.announce(A, FLUSH, 0);
        let ticket = worker(&mut board, now);
        board.vacate(ticket, now);
        assert_eq!(board.seat(BOTH, now), None, "not at once again");
        now += LONGEST_PAUSE;
    }
    assert_eq!(board.seat(BOTH, now), None);
    board.announce(A, FLUSH, 0);
    let ticket = worker(&mut board, now);
    assert_eq!(board.next(ticket, BOTH, now), Next::Job { relation: 10, work: FLUSH });
}

#[test]
fn a_full_table_says_so_and_a_dropped_database_makes_room() {
    let mut board = board();
    for relation in 1..=ENTRIES as u32 {
        assert_eq!(board.announce(Key { database: 3, relation }, FLUSH, 0), Heard::New);
    }
    assert_eq!(board.announce(A, FLUSH, 0), Heard::Full);
    board.forget(3);
    assert_eq!(board.announce(A, FLUSH, 0), Heard::New);
}

//! Threads that leave the processor to others many times a millisecond.
//!
//! A scheduler lets a thread whose turn it is go on for milliseconds, up to the next tick of its
//! clock, however little the thread weighs. A query that becomes runnable meanwhile takes so much
//! longer. So the threads of a background job ask for short turns, and end each of them themselves.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// How long a turn takes.
const TURN: Duration = Duration::from_micros(100);
/// Looks between two looks at the clock.
const LOOKS: u32 = 4;

thread_local! {
    /// Of a courteous thread: the begin of its turn, and how often it was asked for the end since
    /// it has looked at the clock.
    static TURNS: Cell<Option<(Instant, u32)>> = const { Cell::new(None) };
}

/// From now on this thread's turns are short.
pub fn begin() {
    #[cfg(target_os = "linux")]
    ask_for_short_turns();
    TURNS.set(Some((Instant::now(), 0)));
}

/// Ends the turn of a courteous thread, if it has taken long enough. For loops whose steps take a
/// few microseconds.
#[inline]
pub fn give_way() {
    let Some((since, looks)) = TURNS.get() else { return };
    if looks < LOOKS {
        TURNS.set(Some((since, looks + 1)));
    } else if since.elapsed() < TURN {
        TURNS.set(Some((since, 0)));
    } else {
        std::thread::yield_now();
        TURNS.set(Some((Instant::now(), 0)));
    }
}

/// Asks Linux, which knows of such wishes from 6.12 on, for turns that are as short: before a turn
/// is over, a thread that leaves the processor is the first to get it back.
#[cfg(target_os = "linux")]
fn ask_for_short_turns() {
    /// `struct sched_attr` of `sched_setattr(2)`, in its first version.
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    // SAFETY: plain calls that read and write the calling thread's attributes through a pointer to
    // as many bytes as they are told. What is refused leaves turns as they are.
    unsafe {
        let mut attributes = std::mem::zeroed::<Attributes>();
        let size = size_of::<Attributes>() as u32;
        if libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) == 0
            && attributes.policy == libc::SCHED_OTHER as u32
        {
            attributes.runtime = TURN.as_nanos() as u64;
            libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_courteous_threads_end_their_turns() {
        let turn = || TURNS.get().map(|(since, _)| since);
        let others = std::thread::spawn(move || {
            (0..100 * LOOKS).for_each(|_| give_way());
            turn()
        });
        assert_eq!(others.join().unwrap(), None);
        let courteous = std::thread::spawn(move || {
            begin();
            let (first, end) = (turn(), Instant::now() + Duration::from_secs(30));
            while turn() == first && Instant::now() < end {
                give_way();
            }
            (first, turn())
        });
        let (first, second) = courteous.join().unwrap();
        assert!(second.unwrap() >= first.unwrap() + TURN);
    }
}

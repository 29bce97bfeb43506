//! How inserts and the janitor share the burden of a log that grows.

use std::time::Duration;

/// Times its limit that a log grows to while its rows come faster than they are flushed.
const BEHIND: f64 = 1.5;
/// Times its limit that a log may grow to before inserts slow down.
const SLOW: f64 = 8.0;
/// Times its limit at which an insert flushes the log itself.
const FULL: f64 = 16.0;
/// Pause for each page just below that.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// What an insert does that has added pages to the log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pressure {
    /// Nothing.
    None,
    /// It tells the janitor.
    Announce,
    /// It tells the janitor, and pauses so long for each page it has added.
    Slow(Duration),
    /// It flushes.
    Full,
}

impl Pressure {
    /// The pressure of a log of `pages` pages that is to have at most `limit`.
    ///
    /// The pause grows with the square of the excess: a short burst is hardly held up, and long
    /// before the log is full its writers are slower than any flush.
    pub fn of(pages: u32, limit: u32) -> Pressure {
        let times = f64::from(pages) / f64::from(limit.max(1));
        if times <= 1.0 {
            Pressure::None
        } else if times <= SLOW {
            Pressure::Announce
        } else if times < FULL {
            let excess = (times - SLOW) / (FULL - SLOW);
            Pressure::Slow(LONGEST_PAUSE.mul_f64(excess * excess))
        } else {
            Pressure::Full
        }
    }
}

/// Whether a log of `pages` pages tells that flushes do not keep up with what is inserted.
pub fn is_behind(pages: u32, limit: u32) -> bool {
    f64::from(pages) > BEHIND * f64::from(limit)
}

/// Whether it is as long as one may be before its writers are held up, if the index is searched.
pub fn is_far_behind(pages: u32, limit: u32) -> bool {
    f64::from(pages) > SLOW * f64::from(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_grows_without_a_step_until_the_log_is_full() {
        assert_eq!(Pressure::of(100, 100), Pressure::None);
        assert_eq!(Pressure::of(101, 100), Pressure::Announce);
        assert_eq!(Pressure::of(800, 100), Pressure::Announce);
        let mut before = Duration::ZERO;
        for pages in 801..1600 {
            let Pressure::Slow(pause) = Pressure::of(pages, 100) else { panic!("{pages}") };
            assert!(pause >= before && pause - before < Duration::from_millis(1), "{pages}");
            before = pause;
        }
        assert!(before > LONGEST_PAUSE.mul_f64(0.99));
        assert_eq!(Pressure::of(1600, 100), Pressure::Full);
        assert_eq!(Pressure::of(u32::MAX, 0), Pressure::Full);
    }
}

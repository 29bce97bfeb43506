//! Which segments are written anew, and when.

/// A segment with less than this share of its rows alive is written anew.
const LEAST_ALIVE: f64 = 0.7;

/// With fewer segments than this a flush writes few rows a second time: in a load that does not
/// last the janitor is soon to put them in order anyway.
const FEW: usize = 8;

/// With fewer than this, it does not write more than so many times the rows it is for: what takes
/// long is better done when nobody writes.
const MANY: usize = 12;
const MOST_TIMES: u64 = 8;

/// One that is in haste merges so many that are of like size, which is up to so many times the
/// smallest's, where that is cheap; where it is not, from so many segments on.
const FEWEST_MERGED: usize = 4;
/// Not more than this at once.
pub const MOST_MERGED: usize = 8;
const LIKE: u64 = 3;
const TOO_MANY: usize = 16;

/// Which segments, given as rows and live rows, are to be written anew with `fresh` rows.
///
/// From the smallest on, each that is not larger, or where segments are many, not more than twice
/// as large, as what is being written anyway: sizes grow geometrically, so that their number, and
/// how often a row is written, stay logarithmic.
pub fn due(segments: &[(u64, u64)], fresh: u64) -> Vec<bool> {
    let times = if segments.len() < FEW { 1 } else { 2 };
    let most = match segments.len() {
        ..MANY => fresh.saturating_mul(MOST_TIMES),
        _ => u64::MAX,
    };
    let mut by_size: Vec<usize> = (0..segments.len()).collect();
    by_size.sort_by_key(|nth| segments[*nth].1);
    let mut merged = vec![false; segments.len()];
    let mut writing = fresh;
    for nth in by_size {
        let (rows, live) = segments[nth];
        let bloated = (live as f64) < rows as f64 * LEAST_ALIVE;
        let is_due = writing > 0 && live <= writing * times && writing + live <= most;
        if bloated || is_due {
            merged[nth] = true;
            writing += live;
        }
    }
    merged
}

/// As [`due`], but puts off what can wait: there will be a time when fewer rows come. Segments of
/// like size become one as soon as they are a few, if they are `cheap`, in a `rush` once they are
/// many, and others, and the smallest whatever their size, where there are too many: a row is written a
/// logarithmic number of times, and hardly ever many of them at once.
pub fn overdue(segments: &[(u64, u64)], cheap: &[bool], rush: bool) -> Vec<bool> {
    if !rush || segments.len() >= MANY {
        let joined = joined(segments, cheap);
        if joined.contains(&true) {
            return joined;
        }
    }
    if segments.len() < TOO_MANY {
        return vec![false; segments.len()];
    }
    let mut by_size: Vec<usize> = (0..segments.len()).collect();
    by_size.sort_by_key(|nth| segments[*nth].1);
    match first_alike(segments, &by_size) {
        [] => mask(segments.len(), &by_size[..FEWEST_MERGED]),
        alike => mask(segments.len(), alike),
    }
}

/// Of `cheap` segments the smallest that are a few of like size.
pub fn joined(segments: &[(u64, u64)], cheap: &[bool]) -> Vec<bool> {
    let mut by_size: Vec<usize> = (0..segments.len()).filter(|nth| cheap[*nth]).collect();
    by_size.sort_by_key(|nth| segments[*nth].1);
    mask(segments.len(), first_alike(segments, &by_size))
}

/// Which of so many are chosen.
fn mask(count: usize, chosen: &[usize]) -> Vec<bool> {
    let mut mask = vec![false; count];
    chosen.iter().for_each(|nth| mask[*nth] = true);
    mask
}

/// The first, and so smallest, of these that are enough of like size; none if there are not.
fn first_alike<'n>(segments: &[(u64, u64)], by_size: &'n [usize]) -> &'n [usize] {
    let alike = |first: usize| {
        let from_there = &by_size[first..];
        let most = segments[by_size[first]].1.saturating_mul(LIKE);
        let count = from_there.iter().take(MOST_MERGED).take_while(|n| segments[**n].1 <= most);
        &from_there[..count.count()]
    };
    (0..by_size.len()).map(alike).find(|run| run.len() >= FEWEST_MERGED).unwrap_or_default()
}

/// A segment this many times as large as all smaller ones together is left alone even when nobody
/// writes.
const TOO_LARGE: u64 = 8;

/// Which segments are to be written anew as one, now that there are no fresh rows: as many as pay,
/// for each search looks into all.
pub fn untidy(segments: &[(u64, u64)]) -> Vec<bool> {
    let mut by_size: Vec<usize> = (0..segments.len()).collect();
    by_size.sort_by_key(|nth| segments[*nth].1);
    let (mut smaller, mut count) = (0, 0);
    for (place, nth) in by_size.iter().enumerate() {
        let live = segments[*nth].1;
        if place > 0 && live <= smaller * TOO_LARGE {
            count = place + 1;
        }
        smaller += live;
    }
    let mut merged = vec![false; segments.len()];
    by_size[..count].iter().for_each(|nth| merged[*nth] = true);
    for (merged, (rows, live)) in merged.iter_mut().zip(segments) {
        *merged |= (*live as f64) < *rows as f64 * LEAST_ALIVE;
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    /// What flushes have made of an index.
    #[derive(Default)]
    struct Simulation {
        segments: Vec<(u64, u64)>,
        written: u64,
        most_segments: usize,
        segments_seen: usize,
    }

    impl Simulation {
        fn flush(&mut self, fresh: u64) {
            let merged = due(&self.segments, fresh);
            self.flush_with(fresh, &merged);
        }

        fn flush_with(&mut self, fresh: u64, merged: &[bool]) {
            let mut keep = merged.iter().map(|merged| !merged);
            let mut written = fresh;
            self.segments.retain(|(_, live)| {
                let keep = keep.next() == Some(true);
                written += if keep { 0 } else { *live };
                keep
            });
            self.segments.push((written, written));
            self.written += written;
            self.most_segments = self.most_segments.max(self.segments.len());
            self.segments_seen += self.segments.len();
        }
    }

    /// Flushes of varying size into an index that has `base` rows: how often each row was written,
    /// the most segments there were, and their mean.
    fn simulate(base: u64, flushes: u32, mean: u64) -> (f64, usize, f64) {
        let mut rng = SmallRng::seed_from_u64(mean);
        let mut index = Simulation::default();
        if base > 0 {
            index.segments.push((base, base));
        }
        let mut rows = 0;
        for _ in 0..flushes {
            let fresh = rng.random_range(mean / 2..=mean * 3 / 2).max(1);
            index.flush(fresh);
            rows += fresh;
        }
        assert_eq!(index.segments.iter().map(|s| s.1).sum::<u64>(), base + rows);
        let mean = index.segments_seen as f64 / f64::from(flushes);
        (index.written as f64 / rows as f64, index.most_segments, mean)
    }

    #[test]
    fn a_row_is_written_a_logarithmic_number_of_times_into_a_handful_of_segments() {
        let expected = [(10, 2.5, 8), (100, 5.0, 13), (1000, 7.0, 13), (10_000, 9.0, 14)];
        for (flushes, amplification, most) in expected {
            for mean in [1, 10, 4000] {
                for base in [0, 1_000_000] {
                    let (written, segments, seen) = simulate(base, flushes, mean);
                    let case = format!(
                        "{base} rows and {flushes} flushes of {mean}: each written {written:.2} \
                         times, {segments} segments at most, {seen:.1} in the mean"
                    );
                    assert!(written < amplification && segments <= most && seen < 8.5, "{case}");
                    println!("{case}");
                }
            }
        }
    }

    #[test]
    fn what_is_put_in_order_is_in_order_then() {
        assert!(untidy(&[]).is_empty());
        assert_eq!(untidy(&[(5, 5)]), [false]);
        assert_eq!(untidy(&[(900, 900), (10, 10), (5, 5)]), [false, true, true]);
        assert_eq!(untidy(&[(900, 900), (100, 100), (13, 13)]), [true, true, true]);
        assert_eq!(untidy(&[(900, 900), (15, 15)]), [false, false]);
        assert_eq!(untidy(&[(900, 300), (15, 15)]), [true, false]);
        assert_eq!(untidy(&[(0, 0), (0, 0)]), [true, true]);
        let mut simulation = Simulation::default();
        simulation.segments.push((1_000_000, 1_000_000));
        for _ in 0..200 {
            simulation.flush(4000);
            let merged = untidy(&simulation.segments);
            let of = |wanted| {
                let all = simulation.segments.iter().zip(&merged);
                all.filter(move |(_, merged)| **merged == wanted).map(|(segment, _)| *segment)
            };
            let mut tidied: Vec<(u64, u64)> = of(false).collect();
            let rows = of(true).map(|(_, live)| live).sum();
            tidied.extend(Some((rows, rows)).filter(|_| merged.contains(&true)));
            tidied.sort_unstable();
            let below = tidied.iter().scan(0, |sum, (_, live)| {
                let smaller = *sum;
                *sum += live;
                Some(smaller)
            });
            assert!(tidied.iter().zip(below).all(|((_, live), below)| *live > 8 * below));
            assert!(!untidy(&tidied).contains(&true), "{tidied:?}");
        }
    }

    #[test]
    fn in_a_hurry_nothing_dear_is_merged_until_there_are_many() {
        let mut segments = vec![(10, 10); TOO_MANY];
        let of = |segments: &[(u64, u64)], cheap: &[bool]| -> Vec<usize> {
            assert!(segments.len() >= MANY || !overdue(segments, cheap, true).contains(&true));
            let merged = overdue(segments, cheap, false);
            (0..merged.len()).filter(|nth| merged[*nth]).collect()
        };
        let mut cheap = [false; TOO_MANY];
        assert!(of(&segments[1..], &cheap[1..]).is_empty());
        assert!(!due(&segments[1..], 1000).contains(&false));
        assert_eq!(of(&segments, &cheap), Vec::from_iter(0..MOST_MERGED));
        // Three small ones are not alike the others, of which some are.
        segments[3..].iter_mut().zip(1..).for_each(|(s, nth)| *s = (nth << 20, nth << 20));
        assert_eq!(of(&segments, &cheap), [4, 5, 6, 7, 8]);
        // A few that are cheap go first, and before there are many.
        cheap[5..].iter_mut().step_by(2).for_each(|cheap| *cheap = true);
        assert_eq!(of(&segments, &cheap), [5, 7, 9, 11]);
        assert_eq!(of(&segments[2..], &cheap[2..]), [3, 5, 7, 9]);
        cheap[9] = false;
        assert_eq!(of(&segments[2..], &cheap[2..]), [5, 9, 11, 13]);
        cheap[13] = false;
        assert!(of(&segments[2..], &cheap[2..]).is_empty());
        // Where none are alike, the smallest.
        segments.iter_mut().zip(1..).for_each(|(s, nth)| *s = (1 << nth, 1 << nth));
        assert_eq!(of(&segments, &cheap), [0, 1, 2, 3]);
    }

    #[test]
    fn a_load_in_haste_writes_each_row_a_few_times_and_seldom_many_at_once() {
        for (is_cheap, flushes, amplification, times, seen) in [
            (true, 60, 2.5, 24, 6.0),
            (true, 1000, 5.0, 600, 9.0),
            (true, 10_000, 6.5, 6000, 10.5),
            (false, 60, 2.0, 10, 12.0),
            (false, 1000, 4.0, 450, 14.0),
            (false, 10_000, 6.0, 5000, 14.0),
        ] {
            let mut simulation = Simulation::default();
            simulation.segments.push((10_000_000, 10_000_000));
            let mut largest = 0;
            for _ in 0..flushes {
                let before = simulation.written;
                let cheap = vec![is_cheap; simulation.segments.len()];
                let merged = overdue(&simulation.segments, &cheap, false);
                simulation.flush_with(16_000, &merged);
                largest = largest.max((simulation.written - before) / 16_000);
            }
            let written = simulation.written as f64 / 16_000.0 / f64::from(flushes);
            let mean = simulation.segments_seen as f64 / f64::from(flushes);
            let case = format!(
                "{flushes} flushes: {written:.2} times, {largest} flushes at once, {mean:.1} \
                 segments"
            );
            println!("{case}");
            assert!(written < amplification && largest < times && mean < seen, "{case}");
            assert!(simulation.most_segments <= TOO_MANY, "{case}");
        }
    }

    #[test]
    fn few_fresh_rows_have_few_others_written() {
        let mut segments: Vec<(u64, u64)> =
            (0..MANY as u32 - 1).map(|n| 1 << n).map(|n| (n, n)).collect();
        let written = |segments: &[(u64, u64)]| {
            let merged = due(segments, 10);
            segments.iter().zip(merged).filter(|(_, merged)| *merged).map(|(s, _)| s.1).sum::<u64>()
        };
        assert!((32..80).contains(&written(&segments)));
        segments.push((1, 1));
        assert_eq!(written(&segments), 2048);
    }

    #[test]
    fn segments_full_of_dead_rows_are_rewritten_though_nothing_is_fresh() {
        assert_eq!(due(&[(1000, 990), (1000, 400)], 0), [false, true]);
        assert_eq!(due(&[(1000, 990)], 0), [false]);
    }
}

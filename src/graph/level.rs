//! Which rows are on which level, and where their links stand.

use super::UPPER_LINKS;

/// `log2` of the rows of a group.
const GROUP_BITS: u32 = UPPER_LINKS.trailing_zeros();

const _: () = assert!(UPPER_LINKS == 1 << GROUP_BITS);

/// The highest level there can be among rows numbered by u32.
const TOP: u32 = (u32::BITS - 1) / GROUP_BITS;

/// Rows of a group on `level`, as a power of two.
fn bits(level: u32) -> u32 {
    level * GROUP_BITS
}

/// The highest level that `linked` rows reach.
pub(super) fn top(linked: u32) -> u32 {
    match linked.checked_ilog2() {
        Some(log) => log / GROUP_BITS,
        None => 0,
    }
}

/// The row that stands for group number `group` on `level`.
pub(super) fn member(level: u32, group: u32) -> u32 {
    (1..=level).rev().fold(group, |group, level| {
        let chosen = hash(level, group) & (UPPER_LINKS as u32 - 1);
        (group << GROUP_BITS) | chosen
    })
}

/// The levels, from 1 on, whose group is complete once `row` is linked, with the row that joins.
pub(super) fn joins(row: u32) -> impl Iterator<Item = (u32, u32)> {
    let complete = (row.trailing_ones() / GROUP_BITS).min(TOP);
    (1..=complete).map(move |level| (level, member(level, row >> bits(level))))
}

/// Whether `row` is on `level`.
pub(super) fn is_member(level: u32, row: u32) -> bool {
    level <= TOP && member(level, row >> bits(level)) == row
}

/// The row, and the one of its two upper words, that hold link `nth` of `row` on `level`.
pub(super) fn upper_place(level: u32, row: u32, nth: u32) -> (u32, usize) {
    let first = row >> bits(level) << bits(level);
    let step = first + (nth << bits(level - 1));
    match level {
        1 => (step, 0),
        // Level 2 uses the first row of each group, level 3 the second, and so on: none meet.
        _ => (step + level - 2, 1),
    }
}

/// A mixer with good low bits (the finaliser of MurmurHash3).
fn hash(level: u32, group: u32) -> u32 {
    let mut x = group ^ level.wrapping_mul(0x9E37_79B9);
    x = (x ^ (x >> 16)).wrapping_mul(0x85EB_CA6B);
    x = (x ^ (x >> 13)).wrapping_mul(0xC2B2_AE35);
    x ^ (x >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_group_has_one_member_and_it_is_on_the_level_below() {
        for level in 1..=4 {
            for group in 0..40u32 {
                let row = member(level, group);
                assert_eq!(row >> bits(level), group);
                assert!(is_member(level, row) && is_member(level - 1, row));
            }
        }
        let chosen: HashSet<u32> = (0..200).map(|group| member(1, group) % 16).collect();
        assert_eq!(chosen.len(), 16, "the places within groups vary");
    }

    #[test]
    fn members_join_when_their_group_is_complete() {
        assert_eq!(joins(14).count(), 0);
        assert_eq!(joins(15).collect::<Vec<_>>(), [(1, member(1, 0))]);
        assert_eq!(joins(255).collect::<Vec<_>>(), [(1, member(1, 15)), (2, member(2, 0))]);
        assert!(joins(u32::MAX - 1).count() < 8);
        assert_eq!([top(0), top(1), top(15), top(16), top(255), top(256)], [0, 0, 0, 1, 1, 2]);
    }

    #[test]
    fn no_two_links_share_a_word_and_all_rows_are_there() {
        let mut taken = HashSet::new();
        for row in 0..1 << 16 {
            for (level, member) in joins(row) {
                for nth in 0..UPPER_LINKS as u32 {
                    let place = upper_place(level, member, nth);
                    assert!(place.0 <= row);
                    assert!(taken.insert(place), "{place:?}");
                }
            }
        }
    }
}

//! Who gets a slot, and who has to give one up for it.

use super::{is_eligible, now, Held, Key, Slot, EMPTY, READY};
use crate::memtable::area::{area, Area, Mode};
use crate::page::{Index, View};
use std::sync::atomic::Ordering;

/// Gives the index whose view this is an empty slot, unless it has one or none can be had.
pub fn give_slot(index: Index, view: &View) -> bool {
    let Some(area) = area().filter(|_| is_eligible(index)) else { return false };
    let key = Key::new(index, view.log_id());
    let pool = area.pool_lock().acquire(Mode::Exclusive);
    let its = |slot: &Slot| slot.state() != EMPTY && slot.file() == key.file;
    let is_empty = |slot: &Slot| slot.state() == EMPTY;
    let slots = area.slots();
    let number = slots.iter().position(its).or_else(|| slots.iter().position(is_empty));
    let number = match number {
        Some(number) => Some(number),
        None => evict(area, None).then(|| slots.iter().position(is_empty)).flatten(),
    };
    let Some(number) = number else { return false };
    // An index's own slot may be in use: by readers, for a short time.
    let held = Held::lock(area, number, Mode::Exclusive);
    let slot = held.slot();
    let outdated = slot.key() != key
        || slot.state() != READY
        || slot.kills() != view.log_kills()
        || slot.first_seq() > view.log_head_seq();
    if outdated {
        held.reset(key, view);
        slot.touch();
    }
    drop(held);
    drop(pool);
    true
}

/// Empties the slot that was used least recently, if it has been idle for long enough.
pub fn evict(area: &'static Area, spared: Option<usize>) -> bool {
    let now = now();
    let mut victims: Vec<usize> = (0..area.slots().len())
        .filter(|nth| {
            let slot = &area.slots()[*nth];
            let of_use = spared.is_none() || slot.has_chunks();
            Some(*nth) != spared && slot.state() != EMPTY && slot.is_idle(now) && of_use
        })
        .collect();
    victims.sort_by_key(|nth| area.slots()[*nth].used.load(Ordering::Relaxed));
    victims.into_iter().any(|number| {
        // Its users may be waiting for us.
        let Some(lock) = area.slot_lock(number).try_acquire(Mode::Exclusive) else { return false };
        Held { area, number, mode: Mode::Exclusive, _lock: lock }.vacate();
        true
    })
}

//! Identifiers of System V objects: what `*get(2)` gives, and how the other calls find the object by it.
//!
//! An identifier is a slot and, above it, a sequence number. Slots are used in turn, and the sequence number grows when the turn begins anew, so
//! that an identifier of an object that is gone does not find another one soon.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicI32, Ordering};

use smallvec::SmallVec;

use super::permissions::{IPC_PRIVATE, Permissions};
use crate::errno::{Errno, Result};
use crate::memory::{PAGE_SIZE, fallible, reserve};
use crate::sched;
use crate::sync::SpinLock;

/// Most objects of a kind that can be set.
pub const SLOTS: usize = 32768;
/// Slots are used in a turn of at least so many.
const SHORTEST_TURN: usize = 64;
/// Sequence numbers: what is left of a positive `int`.
const SEQUENCES: u32 = (i32::MAX as usize / SLOTS + 1) as u32;

const IPC_CREAT: u32 = 0o1000;
const IPC_EXCL: u32 = 0o2000;

/// The sequence number in an identifier.
pub fn sequence_of(id: i32) -> u16 {
    (id as usize / SLOTS) as u16
}

/// An object that has an identifier.
pub trait Object: Send + Sync {
    /// Its identifier.
    fn id(&self) -> i32;
    /// Owner and permissions as they are now.
    fn permissions(&self) -> Permissions;
    /// What it counts for beside itself: semaphores, pages.
    fn weight(&self) -> u64;
    /// `EINVAL` when it does not suit a caller who asks for this size.
    fn suits(&self, size: u64) -> Result<()>;
}

/// How much there may be.
#[derive(Clone, Copy)]
pub struct Limits {
    pub objects: usize,
    /// Sum of the objects' weights.
    pub weight: u64,
}

/// The slots that are in use, as bits; a second level tells which words of the first are full.
struct Slots {
    words: Vec<u64>,
    full: [u64; SLOTS / 64 / 64],
}

impl Slots {
    fn new() -> Result<Self> {
        Ok(Self { words: fallible::filled(0, SLOTS / 64)?, full: [0; SLOTS / 64 / 64] })
    }

    fn set(&mut self, slot: usize, used: bool) {
        let word = slot / 64;
        if used {
            self.words[word] |= 1 << (slot % 64);
        } else {
            self.words[word] &= !(1 << (slot % 64));
        }
        let bit = 1 << (word % 64);
        if self.words[word] == u64::MAX {
            self.full[word / 64] |= bit;
        } else {
            self.full[word / 64] &= !bit;
        }
    }

    /// The first free slot from `from` on.
    fn free_from(&self, from: usize) -> Option<usize> {
        let first = from / 64;
        let here = !self.words.get(first)? & (u64::MAX << (from % 64));
        if here != 0 {
            return Some(first * 64 + here.trailing_zeros() as usize);
        }
        let mut group = (first + 1) / 64;
        let mut mask = u64::MAX << ((first + 1) % 64);
        loop {
            let free = !self.full.get(group)? & mask;
            if free != 0 {
                let word = group * 64 + free.trailing_zeros() as usize;
                return Some(word * 64 + (!self.words[word]).trailing_zeros() as usize);
            }
            group += 1;
            mask = u64::MAX;
        }
    }
}

/// The objects of one kind.
struct Objects<T> {
    by_slot: BTreeMap<usize, (i32, Arc<T>)>,
    /// The slots of the objects that have keys.
    by_key: BTreeMap<i32, usize>,
    slots: Slots,
    weight: u64,
    /// The slot after the last one that was given in turn.
    next: usize,
    last: Option<usize>,
    sequence: u32,
}

/// The objects of one kind, by identifier and by key.
pub struct Ids<T> {
    objects: SpinLock<Objects<T>>,
    /// The identifier that the next object shall have, or -1: `kernel.*_next_id`.
    wanted: AtomicI32,
}

impl<T: Object> Ids<T> {
    /// None yet.
    pub fn new() -> Result<Self> {
        let objects = Objects {
            by_slot: BTreeMap::new(),
            by_key: BTreeMap::new(),
            slots: Slots::new()?,
            weight: 0,
            next: 0,
            last: None,
            sequence: 0,
        };
        Ok(Self { objects: SpinLock::growing(objects), wanted: AtomicI32::new(-1) })
    }

    /// `kernel.*_next_id`.
    pub fn wanted(&self) -> i32 {
        // Relaxed: a setting of its own.
        self.wanted.load(Ordering::Relaxed)
    }

    /// Sets `kernel.*_next_id`: -1 for no wish.
    pub fn set_wanted(&self, id: i32) -> Result<()> {
        if id < -1 {
            return Err(Errno::EINVAL);
        }
        // Relaxed: as above.
        self.wanted.store(id, Ordering::Relaxed);
        Ok(())
    }

    /// What all `*get(2)` do: finds the object of a key or makes one. `prepare` checks the arguments of a new object, allocates what it
    /// needs and gives a function that makes it for an identifier; `limits` are those of the moment.
    pub fn get<M: FnOnce(i32) -> T>(
        &self,
        key: i32,
        size: u64,
        flags: u32,
        limits: impl Fn() -> Limits,
        prepare: impl FnOnce() -> Result<(u64, M)>,
    ) -> Result<i32> {
        if let Some(found) = self.by_key(key) {
            return existing(&*found, size, flags);
        }
        if key != IPC_PRIVATE && flags & IPC_CREAT == 0 {
            return Err(Errno::ENOENT);
        }
        let (weight, make) = prepare()?;
        reserve::ask_lasting(PAGE_SIZE)?;
        let mut objects = self.objects.lock();
        let found = objects.by_key.get(&key).and_then(|slot| objects.by_slot.get(slot));
        if let Some((_, found)) = found {
            let found = found.clone();
            drop(objects);
            return existing(&*found, size, flags);
        }
        let limits = limits();
        if objects.by_slot.len() >= limits.objects.min(SLOTS)
            || objects.weight.saturating_add(weight) > limits.weight
        {
            return Err(Errno::ENOSPC);
        }
        // Relaxed: the lock orders those who take it.
        let wanted = self.wanted.swap(-1, Ordering::Relaxed);
        let id = objects.allocate(wanted)?;
        let slot = id as usize % SLOTS;
        objects.by_slot.insert(slot, (key, Arc::new(make(id))));
        if key != IPC_PRIVATE {
            objects.by_key.insert(key, slot);
        }
        objects.weight += weight;
        Ok(id)
    }

    /// The object that a key names now.
    fn by_key(&self, key: i32) -> Option<Arc<T>> {
        let objects = self.objects.lock();
        let slot = objects.by_key.get(&key)?;
        objects.by_slot.get(slot).map(|(_, object)| object.clone())
    }

    /// The object with an identifier; `EINVAL` when there is none.
    pub fn by_id(&self, id: i32) -> Result<Arc<T>> {
        self.by_slot(id).ok().filter(|object| object.id() == id).ok_or(Errno::EINVAL)
    }

    /// The object in a slot, which may be given as an identifier: what `*_STAT` calls an index.
    pub fn by_slot(&self, slot: i32) -> Result<Arc<T>> {
        let slot = usize::try_from(slot).map_err(|_| Errno::EINVAL)? % SLOTS;
        let objects = self.objects.lock();
        objects.by_slot.get(&slot).map(|(_, object)| object.clone()).ok_or(Errno::EINVAL)
    }

    /// Takes an object out. False when it was out already.
    pub fn remove(&self, object: &T) -> bool {
        let slot = object.id() as usize % SLOTS;
        let mut objects = self.objects.lock();
        if !objects.by_slot.get(&slot).is_some_and(|(_, found)| core::ptr::eq(Arc::as_ptr(found), object)) {
            return false;
        }
        objects.forget_key(slot);
        let removed = objects.by_slot.remove(&slot);
        objects.slots.set(slot, false);
        objects.weight -= object.weight();
        drop(objects);
        // The object is freed without the lock.
        drop(removed);
        true
    }

    /// The object's key is free for another.
    pub fn forget_key(&self, object: &T) {
        let slot = object.id() as usize % SLOTS;
        let mut objects = self.objects.lock();
        if objects.by_slot.get(&slot).is_some_and(|(_, found)| core::ptr::eq(Arc::as_ptr(found), object)) {
            objects.forget_key(slot);
        }
    }

    /// How many objects there are, the highest slot in use (0 for none), and the sum of the weights.
    pub fn totals(&self) -> (usize, usize, u64) {
        let objects = self.objects.lock();
        let highest = objects.by_slot.last_key_value().map_or(0, |(slot, _)| *slot);
        (objects.by_slot.len(), highest, objects.weight)
    }

    /// The objects, in the order of their slots; those that come or go meanwhile are met or not. Some with one hold of the lock, which each
    /// operation of a neighbour takes, and whoever is due runs in between.
    pub fn each(&self) -> impl Iterator<Item = Arc<T>> {
        const AT_ONCE: usize = 16;
        let mut next = 0;
        let mut some: SmallVec<[Arc<T>; AT_ONCE]> = SmallVec::new();
        core::iter::from_fn(move || {
            // To show one takes thousands of instructions.
            sched::cond_resched();
            if some.is_empty() {
                let objects = self.objects.lock();
                for (slot, (_, object)) in objects.by_slot.range(next..).take(AT_ONCE) {
                    some.push(object.clone());
                    next = slot + 1;
                }
                drop(objects);
                some.reverse();
            }
            some.pop()
        })
    }
}

impl<T> Drop for Ids<T> {
    /// A namespace ends with tens of thousands of them.
    fn drop(&mut self) {
        let objects = self.objects.get_mut();
        while objects.by_key.pop_last().is_some() {
            sched::cond_resched();
        }
        while let Some(last) = objects.by_slot.pop_last() {
            drop(last);
            sched::cond_resched();
        }
    }
}

impl<T> Objects<T> {
    /// A new identifier: the `wanted` one or the next with its sequence number, or that whose turn it is.
    fn allocate(&mut self, wanted: i32) -> Result<i32> {
        if wanted >= 0 {
            let slot = self.slots.free_from(wanted as usize % SLOTS).ok_or(Errno::ENOSPC)?;
            return Ok(self.take(slot, u32::from(sequence_of(wanted))));
        }
        let turn = (self.by_slot.len() * 3 / 2).clamp(SHORTEST_TURN, SLOTS);
        let in_turn = self.slots.free_from(self.next).filter(|slot| *slot < turn);
        let slot = in_turn.or_else(|| self.slots.free_from(0)).ok_or(Errno::ENOSPC)?;
        if self.last.is_some_and(|last| slot <= last) {
            self.sequence = (self.sequence + 1) % SEQUENCES;
        }
        self.next = slot + 1;
        self.last = Some(slot);
        Ok(self.take(slot, self.sequence))
    }

    fn take(&mut self, slot: usize, sequence: u32) -> i32 {
        self.slots.set(slot, true);
        (sequence as usize * SLOTS + slot) as i32
    }

    fn forget_key(&mut self, slot: usize) {
        if let Some((key, _)) = self.by_slot.get_mut(&slot)
            && *key != IPC_PRIVATE
        {
            self.by_key.remove(key);
            *key = IPC_PRIVATE;
        }
    }
}

/// A key that has an object already.
fn existing<T: Object>(object: &T, size: u64, flags: u32) -> Result<i32> {
    if flags & (IPC_CREAT | IPC_EXCL) == IPC_CREAT | IPC_EXCL {
        return Err(Errno::EEXIST);
    }
    object.suits(size)?;
    // What is asked for owner, group and others is asked for the caller.
    object.permissions().check((flags >> 6 | flags >> 3 | flags) & 0o7)?;
    Ok(object.id())
}

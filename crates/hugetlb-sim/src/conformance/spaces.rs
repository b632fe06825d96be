//! Address spaces, their tables, and flushes.

use std::collections::HashSet;
use std::sync::Barrier;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use hugetlb::{
    Entry, EntryValue, Flush, Format, Level, PageSize, PhysAddr, Protection, SLOT_SIZE, Space, VirtAddr,
};

use super::{Check, Host, Sentence, require};

/// The second slot of the second 512 GiB, where nothing of the host is.
const SLOT: VirtAddr = VirtAddr(Level::Pgd.span() + SLOT_SIZE);
const SIZE: u64 = PageSize::Size2M.bytes();

pub(super) fn sentences<M: Host>() -> Vec<Sentence<M>> {
    vec![
        ("Space::id tells spaces apart, also after one is gone and another was made", ids::<M>),
        (
            "Space::entry makes the tables above an entry, empty; find_entry finds the same entry",
            entries::<M>,
        ),
        ("Space::entry gives two who ask at once the same entry", racing::<M>),
        ("Space::entry and find_entry give none where an entry above is managed", managed::<M>),
        ("Space::replace_managed puts an empty table of the host into the entry", replaced::<M>),
        ("Space::replace_managed is one store: the entry is never empty in between", one_store::<M>),
        ("a leaf in a table of the host leads programs to its frame", leads::<M>),
        ("flush makes every CPU forget a leaf", flushed::<M>),
        ("flush with tables makes every CPU forget entries that led to tables", tables_flushed::<M>),
        ("flush_spaces makes every CPU forget all of the spaces that are concerned", spaces_flushed::<M>),
    ]
}

fn ids<M: Host>(machine: &M) -> Check {
    let mut seen = HashSet::new();
    for number in 0..24 {
        let spaces = [machine.space(), machine.space()];
        for space in &spaces {
            require(seen.insert(space.id()), || format!("{} came again, round {number}", space.id()))?;
        }
        drop(spaces);
        machine.pass_grace_period();
    }
    Ok(())
}

fn is_empty(entry: &Entry) -> bool {
    entry.load(Ordering::Acquire) == EntryValue::default()
}

fn made<S: Space>(space: &S, address: VirtAddr, level: Level) -> Result<&Entry, String> {
    let entry = space.entry(address, level).map_err(|_| "no memory for a table")?;
    entry.ok_or_else(|| format!("entry gives none of {level:?} at {address:?}"))
}

fn entries<M: Host>(machine: &M) -> Check {
    let space = machine.space();
    require(space.find_entry(SLOT, Level::Pmd).is_none(), || "find_entry makes tables".to_string())?;
    for level in [Level::Pud, Level::Pmd] {
        for address in [SLOT, SLOT + level.span()] {
            let entry = made(&space, address, level)?;
            require(is_empty(entry) || level == Level::Pud, || format!("{address:?} is not empty"))?;
            let found = space.find_entry(address, level);
            require(found.is_some_and(|found| std::ptr::eq(found, entry)), || {
                format!("find_entry finds another entry of {level:?} at {address:?}")
            })?;
        }
        let (first, next) = (made(&space, SLOT, level)?, made(&space, SLOT + level.span(), level)?);
        require(!std::ptr::eq(first, next), || "two addresses have one entry".to_string())?;
    }
    Ok(())
}

fn racing<M: Host>(machine: &M) -> Check {
    for round in 0..8 {
        let (space, start) = (machine.space(), Barrier::new(2));
        let ask = || {
            start.wait();
            made(&space, SLOT, Level::Pmd).map(|entry| entry as *const Entry as usize)
        };
        let (one, other) = thread::scope(|scope| {
            let other = scope.spawn(ask);
            (ask(), other.join().map_err(|_| "a panic".to_string()).and_then(|other| other))
        });
        require(one.clone()? == other.clone()?, || format!("two tables were made in round {round}"))?;
        drop(space);
        machine.pass_grace_period();
    }
    Ok(())
}

/// A space whose slot leads to a table of the library, and that table.
fn attached<M: Host>(machine: &M) -> Result<(M::Space, PhysAddr), String> {
    let space = machine.space();
    let table = machine.allocate_table().ok_or("no table")?;
    let value = M::Format::managed(table, Protection::READ | Protection::WRITE);
    let filled = made(&space, SLOT, Level::Pud)?.fill(value);
    require(filled.is_ok(), || "the entry of an unused slot is not empty".to_string())?;
    Ok((space, table))
}

fn clear<S: Space>(space: &S, level: Level) {
    if let Some(entry) = space.find_entry(SLOT, level) {
        entry.store(EntryValue::default(), Ordering::Release);
    }
}

fn managed<M: Host>(machine: &M) -> Check {
    let (space, table) = attached(machine)?;
    let entry = space.entry(SLOT, Level::Pmd).map_err(|_| "no memory for a table")?;
    let none = entry.is_none() && space.find_entry(SLOT, Level::Pmd).is_none();
    let is_untouched = made(&space, SLOT, Level::Pud)?.load(Ordering::Acquire)
        == M::Format::managed(table, Protection::READ | Protection::WRITE);
    clear(&space, Level::Pud);
    require(none, || "an entry of a table of the library".to_string())?;
    require(is_untouched, || "the managed entry was changed".to_string())
}

fn replaced<M: Host>(machine: &M) -> Check {
    let (space, _) = attached(machine)?;
    space.replace_managed(SLOT, Level::Pud).map_err(|_| "no memory for a table")?;
    let value = made(&space, SLOT, Level::Pud)?.load(Ordering::Acquire);
    let is_hosts = M::Format::is_present(value) && !M::Format::is_managed(Level::Pud, value);
    if !is_hosts {
        clear(&space, Level::Pud);
        return Err(format!("the entry is {value:?}"));
    }
    for number in 0..512 {
        let address = SLOT + number * SIZE;
        let entry = space.find_entry(address, Level::Pmd).ok_or("the host has no table there")?;
        require(is_empty(entry), || format!("{address:?} is not empty"))?;
    }
    Ok(())
}

fn one_store<M: Host>(machine: &M) -> Check {
    let done = AtomicBool::new(false);
    for _ in 0..8 {
        let (space, _) = attached(machine)?;
        done.store(false, Ordering::SeqCst);
        let start = Barrier::new(2);
        let was_empty = thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let Some(entry) = space.find_entry(SLOT, Level::Pud) else { return true };
                start.wait();
                let mut was_empty = false;
                while !done.load(Ordering::SeqCst) {
                    was_empty |= is_empty(entry);
                }
                was_empty
            });
            start.wait();
            let replaced = space.replace_managed(SLOT, Level::Pud);
            done.store(true, Ordering::SeqCst);
            watcher.join().unwrap_or(true) || replaced.is_err()
        });
        require(!was_empty, || "somebody saw it empty".to_string())?;
        drop(space);
        machine.pass_grace_period();
    }
    Ok(())
}

/// A space with a leaf, which a program has used.
fn used<M: Host>(machine: &M) -> Result<(M::Space, PhysAddr), String> {
    let space = machine.space();
    let frame = machine.allocate_huge(PageSize::Size2M).ok_or("no huge frame")?;
    let leaf = M::Format::leaf(Level::Pmd, frame, Protection::READ | Protection::WRITE);
    made(&space, SLOT, Level::Pmd)?.store(leaf, Ordering::Release);
    let place = machine.translate(&space, SLOT + 64);
    if place != Some(PhysAddr(frame.0 + 64)) {
        clear(&space, Level::Pmd);
        return Err(format!("a load goes to {place:?}, not into {frame:?}"));
    }
    Ok((space, frame))
}

fn leads<M: Host>(machine: &M) -> Check {
    let (space, frame) = used(machine)?;
    machine.write(frame, 99);
    let read = machine.translate(&space, SLOT).map(|place| machine.read(place));
    let neighbour = machine.translate(&space, SLOT + SIZE);
    clear(&space, Level::Pmd);
    require(read == Some(99), || format!("a load reads {read:?}"))?;
    require(neighbour.is_none(), || "an address without an entry leads somewhere".to_string())
}

fn forgotten<M: Host>(machine: &M, space: &M::Space) -> Check {
    let place = machine.translate(space, SLOT);
    require(place.is_none(), || format!("a load still goes to {place:?}"))
}

fn flushed<M: Host>(machine: &M) -> Check {
    let (space, _) = used(machine)?;
    clear(&space, Level::Pmd);
    let flush = Flush { space: space.clone(), range: SLOT..SLOT + SIZE, tables: false };
    machine.flush(&[flush]);
    forgotten(machine, &space)
}

fn tables_flushed<M: Host>(machine: &M) -> Check {
    let (space, table) = attached(machine)?;
    let frame = machine.allocate_huge(PageSize::Size2M).ok_or("no huge frame")?;
    let leaf = M::Format::leaf(Level::Pmd, frame, Protection::READ | Protection::WRITE);
    machine.table(table)[Level::Pmd.index(SLOT)].store(leaf, Ordering::Release);
    let place = machine.translate(&space, SLOT);
    clear(&space, Level::Pud);
    require(place == Some(frame), || format!("a load goes to {place:?}, not to {frame:?}"))?;
    machine.flush(&[Flush { space: space.clone(), range: SLOT..SLOT + SLOT_SIZE, tables: true }]);
    forgotten(machine, &space)
}

fn spaces_flushed<M: Host>(machine: &M) -> Check {
    let (one, _) = used(machine)?;
    let (other, _) = used(machine)?;
    [&one, &other].into_iter().for_each(|space| clear(space, Level::Pmd));
    // As the library asks: under a lock.
    let concerned = Mutex::new(HashSet::from([one.id(), other.id()]));
    machine.flush_spaces(&|space| concerned.lock().is_ok_and(|concerned| concerned.contains(&space)));
    forgotten(machine, &one)?;
    forgotten(machine, &other)
}

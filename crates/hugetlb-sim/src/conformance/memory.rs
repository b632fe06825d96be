//! Frames for page tables, and huge frames.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use hugetlb::{EntryValue, PageSize, PhysAddr, TABLE_SIZE};

use super::{Check, Host, Sentence, require};

/// As many as the kit may count on.
const TABLES: usize = 16;
const HUGE: PageSize = PageSize::Size2M;

pub(super) fn sentences<M: Host>() -> Vec<Sentence<M>> {
    vec![
        ("a frame for a page table is 4 KiB, aligned", aligned),
        ("a frame for a page table is all zero", zeroed),
        ("a frame for a page table is nobody else's", distinct),
        ("the entries of a table are its memory, each time they are asked for", same),
        ("a retired table is reused only after a grace period", grace),
        ("a huge frame is naturally aligned, and nobody else's", huge),
        ("zero fills the bytes from start with zeroes, and no others", zero),
        ("copy_huge copies a whole huge frame", copy),
    ]
}

fn tables<M: Host>(machine: &M) -> Vec<PhysAddr> {
    (0..TABLES).map(|_| machine.allocate_table().expect("the machine has 32 tables")).collect()
}

fn aligned<M: Host>(machine: &M) -> Check {
    let odd = tables(machine).into_iter().find(|table| !table.0.is_multiple_of(TABLE_SIZE));
    require(odd.is_none(), || format!("{odd:?}"))
}

fn zeroed<M: Host>(machine: &M) -> Check {
    // Twice: the second time they were used.
    for round in 0..2 {
        let tables = tables(machine);
        for table in &tables {
            let dirty = machine
                .table(*table)
                .iter()
                .position(|entry| entry.load(Ordering::Relaxed) != EntryValue::default());
            require(dirty.is_none(), || format!("entry {dirty:?} of {table:?} in round {round}"))?;
        }
        tables.into_iter().for_each(|table| machine.retire_table(table));
        machine.pass_grace_period();
    }
    Ok(())
}

fn distinct<M: Host>(machine: &M) -> Check {
    let mut seen = HashSet::new();
    let twice = tables(machine).into_iter().find(|table| !seen.insert(*table));
    require(twice.is_none(), || format!("{twice:?} was given out twice"))
}

fn same<M: Host>(machine: &M) -> Check {
    let tables = tables(machine);
    for (number, table) in tables.iter().enumerate() {
        machine.table(*table)[number].store(EntryValue(number as u64 + 1), Ordering::Relaxed);
    }
    for (number, table) in tables.iter().enumerate() {
        for (at, entry) in machine.table(*table).iter().enumerate() {
            let expected = if at == number { number as u64 + 1 } else { 0 };
            let value = entry.load(Ordering::Relaxed).0;
            require(value == expected, || format!("entry {at} of {table:?} is {value}, not {expected}"))?;
        }
    }
    Ok(())
}

fn grace<M: Host>(machine: &M) -> Check {
    let mut retired: HashSet<PhysAddr> = tables(machine).into_iter().collect();
    let kept = retired.iter().next().copied();
    retired.retain(|table| Some(*table) != kept);
    retired.iter().for_each(|table| machine.retire_table(*table));
    let early =
        (0..TABLES / 2).filter_map(|_| machine.allocate_table()).find(|table| retired.contains(table));
    require(early.is_none(), || format!("{early:?} was reused at once"))?;
    machine.pass_grace_period();
    // All come back: four times as many as the machine needs to have.
    for _ in 0..4 {
        let again: Vec<PhysAddr> = (0..TABLES / 4)
            .map(|_| machine.allocate_table().ok_or("a retired table never comes back"))
            .collect::<Result<_, _>>()?;
        again.into_iter().for_each(|table| machine.retire_table(table));
        machine.pass_grace_period();
    }
    Ok(())
}

fn frames<M: Host>(machine: &M) -> Vec<PhysAddr> {
    (0..4).map(|_| machine.allocate_huge(HUGE).expect("the machine has 4 huge frames")).collect()
}

fn huge<M: Host>(machine: &M) -> Check {
    let mut seen = HashSet::new();
    for frame in frames(machine) {
        require(frame.0.is_multiple_of(HUGE.bytes()), || format!("{frame:?} is not aligned"))?;
        require(seen.insert(frame), || format!("{frame:?} was given out twice"))?;
    }
    Ok(())
}

/// Places in a huge frame: both ends, and around the middle.
fn places(frame: PhysAddr) -> impl Iterator<Item = PhysAddr> {
    let half = HUGE.bytes() / 2;
    [0, 8, half - 8, half, half + 8, HUGE.bytes() - 8].into_iter().map(move |at| PhysAddr(frame.0 + at))
}

fn zero<M: Host>(machine: &M) -> Check {
    let all = frames(machine);
    all.iter().flat_map(|frame| places(*frame)).for_each(|place| machine.write(place, 7));
    let half = HUGE.bytes() / 2;
    machine.zero(PhysAddr(all[1].0 + half), half);
    for place in all.iter().flat_map(|frame| places(*frame)) {
        let is_inside = (all[1].0 + half..all[1].0 + HUGE.bytes()).contains(&place.0);
        let (value, expected) = (machine.read(place), if is_inside { 0 } else { 7 });
        require(value == expected, || format!("{place:?} is {value}, not {expected}"))?;
    }
    Ok(())
}

fn copy<M: Host>(machine: &M) -> Check {
    let all = frames(machine);
    for (number, place) in all.iter().flat_map(|frame| places(*frame)).enumerate() {
        machine.write(place, number as u64 + 1);
    }
    let before: Vec<u64> = places(all[3]).map(|place| machine.read(place)).collect();
    machine.copy_huge(HUGE, all[0], all[2]);
    for (from, to) in places(all[0]).zip(places(all[2])) {
        let (from, copied) = (machine.read(from), machine.read(to));
        require(from == copied, || format!("{to:?} is {copied}, not {from}"))?;
    }
    let after: Vec<u64> = places(all[3]).map(|place| machine.read(place)).collect();
    require(before == after, || "another frame has changed".to_string())
}

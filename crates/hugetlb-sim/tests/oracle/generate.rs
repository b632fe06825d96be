//! Sequences of operations, chosen where something may happen: at the ends of slots, windows, mappings and files.

use std::ops::Range;

use hugetlb::PageSize;
use proptest::prelude::*;
use proptest::sample::select;
use proptest_state_machine::ReferenceStateMachine;

use crate::model::{FileModel, Model};
use crate::operation::{Operation, Protection, SLOT};
use crate::supply::Supply;

pub const CPUS: usize = 2;
/// The third has 1 GiB pages.
const FILES: [PageSize; 3] = [PageSize::Size2M, PageSize::Size2M, PageSize::Size1G];
/// Frames of 2 MiB that the machine has: hardly any, or more than are needed.
const FRAMES: [u64; 2] = [12, 1500];
/// Frames of 1 GiB.
pub const GIGANTIC: u64 = 3;

fn protections() -> impl Strategy<Value = Protection> {
    prop_oneof![1 => Just(Protection::Nothing), 2 => Just(Protection::Read), 6 => Just(Protection::ReadWrite)]
}

fn page_in(start: u64, pages: u64) -> impl Strategy<Value = u64> + Clone {
    let near = [0, 1, 2, 31, 32, 510, 511, 512, 513, pages - 1];
    let mut choices: Vec<u64> = near.into_iter().filter(|within| *within < pages).collect();
    choices.sort_unstable();
    choices.dedup();
    select(choices).prop_map(move |within| start + within)
}

/// A range inside a mapping, of its pages.
fn range_in(start: u64, pages: u64, unit: u64) -> impl Strategy<Value = Range<u64>> {
    (page_in(0, pages / unit), page_in(0, pages / unit))
        .prop_map(move |(a, b)| start + a.min(b) * unit..start + (a.max(b) + 1) * unit)
}

fn file_range() -> impl Strategy<Value = Range<u64>> {
    (select(vec![0, 1, 2, 31, 510, 511, 512]), select(vec![1, 2, 3, 32]))
        .prop_map(|(first, pages)| first..first + pages)
}

/// A mapping of the file: of parts of a slot at several phases, of 64 MiB, of a slot and more.
fn map(process: usize, number: usize, file: &FileModel) -> BoxedStrategy<Operation> {
    let place = match file.page_size {
        PageSize::Size2M => (
            (1u64..6, select(vec![0, 0, 0, 1, 32, 64, 511]))
                .prop_map(|(slot, within)| slot * SLOT + within)
                .boxed(),
            select(vec![1, 3, 32, 32, 512, 512, 513, 1024]).boxed(),
            select(vec![0, 0, 0, 1, 32, 512]).boxed(),
        ),
        PageSize::Size1G => (
            (1u64..6).prop_map(|slot| slot * SLOT).boxed(),
            select(vec![SLOT, 2 * SLOT]).boxed(),
            select(vec![0, SLOT]).boxed(),
        ),
    };
    (place, prop::bool::weighted(0.75), any::<bool>(), protections())
        .prop_map(move |((start, pages, first), shared, reserve, protection)| Operation::Map {
            process,
            file: number,
            start,
            pages,
            first,
            shared,
            reserve,
            protection,
        })
        .boxed()
}

/// What the pools are made to be.
fn resize(frames: u64) -> impl Strategy<Value = Operation> {
    prop_oneof![
        3 => select(vec![0, 1, 2, 3, 5, 8, frames, frames + 1])
            .prop_map(|pages| Operation::Resize { size: PageSize::Size2M, pages }),
        1 => (0..GIGANTIC + 2).prop_map(|pages| Operation::Resize { size: PageSize::Size1G, pages }),
        2 => select(vec![0, 1, 3, frames]).prop_map(|pages| Operation::Overcommit { pages }),
    ]
}

/// Generates; what it believes of pools is that they give all that is asked for.
pub struct Oracle;

impl ReferenceStateMachine for Oracle {
    type State = Model;
    type Transition = Operation;

    fn init_state() -> BoxedStrategy<Model> {
        select(&FRAMES[..]).prop_map(|frames| Model::new(frames, &FILES)).boxed()
    }

    fn transitions(model: &Model) -> BoxedStrategy<Operation> {
        let processes = model.processes.len();
        let maps = {
            let files = model.files.clone();
            (0..processes, select(vec![0, 0, 0, 1, 1, 1, 2]))
                .prop_flat_map(move |(process, file)| map(process, file, &files[file]))
        };
        let files = 0..FILES.len();
        let truncated = (files.clone(), select(vec![0, 1, 2, 32, 511, 512, 513, 1024]));
        let mut choices: Vec<(u32, BoxedStrategy<Operation>)> = vec![
            (5, maps.boxed()),
            (1, (0..processes).prop_map(|process| Operation::Fork { process }).boxed()),
            (1, (0..processes).prop_map(|process| Operation::Exit { process }).boxed()),
            (1, truncated.prop_map(|(file, pages)| Operation::Truncate { file, pages }).boxed()),
            (
                2,
                (files.clone(), file_range())
                    .prop_map(|(file, range)| Operation::Punch { file, range })
                    .boxed(),
            ),
            (
                1,
                (files, file_range(), any::<bool>())
                    .prop_map(|(file, range, keep_size)| Operation::Allocate { file, range, keep_size })
                    .boxed(),
            ),
            (2, resize(model.frames).boxed()),
        ];
        let mappings: Vec<(usize, u64, u64, u64)> = model
            .processes
            .iter()
            .enumerate()
            .flat_map(|(process, mappings)| {
                let unit = |file: usize| model.files[file].unit();
                mappings.iter().map(move |(start, m)| (process, *start, m.pages, unit(m.file)))
            })
            .collect();
        if !mappings.is_empty() {
            choices.extend(changes(mappings));
        }
        prop::strategy::Union::new_weighted(choices).boxed()
    }

    fn preconditions(model: &Model, operation: &Operation) -> bool {
        model.is_valid(operation)
    }

    fn apply(mut model: Model, operation: &Operation) -> Model {
        model.apply(operation, &mut Supply::plenty());
        model
    }
}

/// What happens to mappings: each is a process, a start, pages, and the pages of 2 MiB in one of its own.
fn changes(mappings: Vec<(usize, u64, u64, u64)>) -> [(u32, BoxedStrategy<Operation>); 6] {
    let one = move || select(mappings.clone());
    let ranged =
        || one().prop_flat_map(|(process, start, pages, unit)| (Just(process), range_in(start, pages, unit)));
    let paged =
        || one().prop_flat_map(|(process, start, pages, _)| (Just(process), page_in(start, pages), 0..CPUS));
    [
        (2, ranged().prop_map(|(process, range)| Operation::Unmap { process, range }).boxed()),
        (
            2,
            (ranged(), protections())
                .prop_map(|((process, range), protection)| Operation::Protect { process, range, protection })
                .boxed(),
        ),
        (2, ranged().prop_map(|(process, range)| Operation::Discard { process, range }).boxed()),
        (
            1,
            (one(), 1u64..6, select(vec![0, 0, 7, 64]))
                .prop_map(|((process, from, ..), slot, within)| Operation::Move {
                    process,
                    from,
                    to: slot * SLOT + within,
                })
                .boxed(),
        ),
        (10, paged().prop_map(|(process, page, cpu)| Operation::Load { process, cpu, page }).boxed()),
        (
            10,
            (paged(), 1u64..1 << 32)
                .prop_map(|((process, page, cpu), value)| Operation::Store { process, cpu, page, value })
                .boxed(),
        ),
    ]
}

//! Large private memory on base pages, of a program that can be told to take huge pages for it.
//!
//! Such a program maps its memory at the start and sets huge pages aside for all of it, touched or not. So
//! the pool needs pages for what is mapped, and the tables that are saved are those of what is in place.

use super::tables::{Owner, family};
use crate::audit::advice::program::{Memory, Program};
use crate::audit::advice::{Advice, Pages, Step, Worth, is_plain};
use crate::audit::collect::{Missing, Process};
use crate::audit::geometry::Tables;
use crate::audit::host::Host;
use crate::audit::pools;
use crate::audit::probe::{self, Area};
use crate::output::human;

/// A smaller mapping is a stack or a part of a heap.
const LARGE: u64 = 16 << 20;
/// glibc's heaps of threads begin at multiples of this, and none is larger.
const HEAP: u64 = 64 << 20;

/// What a program has that huge pages can take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Large {
    /// Bytes of it that are in place.
    populated: u64,
    /// Huge pages for all that is mapped.
    pages: u64,
    /// Bytes of page tables that go.
    tables: u64,
}

impl Large {
    /// Adds a mapping, if it is of the kind.
    fn add(&mut self, area: &Area, page_size: u64, entries: impl Fn(Tables) -> u64) {
        let length = area.end - area.start;
        let is_heap = area.start.is_multiple_of(HEAP) && length < HEAP;
        let is_anonymous = area.name.is_empty() || area.name.starts_with("[anon");
        // What is executable is code that the program makes.
        let is_data = area.access.write && !area.access.execute && !area.access.shared;
        if !is_anonymous || !is_data || length < LARGE || is_heap {
            return;
        }
        self.populated += area.populated;
        self.pages += length.div_ceil(page_size);
        // What is above them stays.
        self.tables += entries(Tables { pte: area.exclusive.pte, ..Tables::default() });
    }
}

/// What a program's processes have of it, each looked into as far as there is time; of the others all that is
/// anonymous counts.
fn large(host: &Host, owner: &Owner, page_size: u64) -> Large {
    let geometry = host.source.geometry;
    let name = owner.programs.first().map_or("", |name| family(name));
    let is_one = |process: &&Process| family(&process.name) == name && process.rss_anonymous >= LARGE;
    let mut all = Large::default();
    for process in host.census.processes.iter().filter(is_one) {
        let areas = match host.deadline.is_past() {
            true => Err(Missing::Late),
            false => probe::areas(host.source, &host.census, process.pid, &host.deadline),
        };
        match areas {
            Ok(areas) => {
                areas.iter().for_each(|area| all.add(area, page_size, |tables| tables.bytes(geometry)));
            }
            Err(_) => {
                all.populated += process.rss_anonymous;
                all.pages += process.rss_anonymous.div_ceil(page_size);
                all.tables += (process.rss_anonymous / geometry.entries()).min(process.vm_pte);
            }
        }
    }
    all
}

/// What is advised for a program's private memory, if it is worth it.
pub fn advise(host: &Host, owner: &Owner, worth: Worth) -> Option<Advice> {
    let subject = owner.subject();
    let program = subject.program();
    // The first two have a setting of their own for shared memory, and keep nothing large beside it.
    if matches!(program, Program::PostgreSql | Program::Oracle | Program::Other | Program::Dpdk) {
        return None;
    }
    let pool = pools::taken(&host.pools, program.names_its_size(), host.source.geometry.huge())?;
    // Cheap, and above what is looked into below.
    if worth == Worth(0)
        || !worth.is_reached((owner.anonymous / host.source.geometry.entries()).min(owner.private), 0)
    {
        return None;
    }
    let large = large(host, owner, pool.page_size);
    let cost = (large.pages * pool.page_size).saturating_sub(large.populated);
    if large.pages == 0 || !worth.is_reached(large.tables, cost) {
        return None;
    }
    let memory =
        Memory { file: "", size: large.populated, page_size: pool.page_size, is_default: pool.is_default };
    let (mut steps, source) = program.put_on_huge_pages(memory)?;
    steps.insert(
        0,
        Step::by_hand(format!(
            "Give the pool {} pages of {} for it (see grow-pool), and check that it has got them. They are \
             for all that the program has mapped; a larger setting needs more.",
            human::count(large.pages),
            human::bytes(pool.page_size)
        )),
    );
    if let Some(name) = owner.programs.first().filter(|name| is_plain(name)) {
        steps.push(Step::run(
            "Check that it has taken them: behind each process stands how many of its mappings are on huge pages.",
            [format!(
                "pgrep -x {name} | while read pid; do echo \"$pid: $(grep -c '^VmFlags:.* ht' /proc/$pid/smaps)\"; done"
            )],
        ));
    }
    Some(Advice {
        id: "huge-pages",
        situation: format!(
            "{} of private memory on base pages cost {} of page tables.",
            human::bytes(large.populated),
            human::bytes(large.tables)
        ),
        subject,
        steps,
        gain: large.tables,
        cost,
        frees: 0,
        pages: Some(Pages { size: pool.page_size, count: large.pages }),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::maps::Access;

    #[test]
    fn only_large_writable_private_memory_counts() {
        let access = Access { read: true, write: true, execute: false, shared: false };
        let area = |start: u64, length: u64, name: &str, access| Area {
            start,
            end: start + length,
            name: name.into(),
            access,
            populated: length / 2,
            exclusive: Tables { pte: 3, pmd: 1, ..Tables::default() },
        };
        const PLACE: u64 = 0x7f00_0100_0000;
        let counted = |area: &Area| {
            let mut large = Large::default();
            large.add(area, 2 << 20, |tables| tables.count() * 4096);
            large.pages
        };
        for (one, pages) in [
            (area(PLACE, 256 << 20, "", access), 128),
            (area(PLACE, 256 << 20, "[anon:heap of Java]", access), 128),
            // Not a whole number of huge pages.
            (area(PLACE, (16 << 20) + 4096, "", access), 9),
            (area(PLACE, 8 << 20, "", access), 0),
            (area(PLACE, 256 << 20, "[heap]", access), 0),
            (area(PLACE, 256 << 20, "/memfd:x", access), 0),
            (area(PLACE, 256 << 20, "", Access { shared: true, ..access }), 0),
            (area(PLACE, 256 << 20, "", Access { write: false, ..access }), 0),
            (area(PLACE, 256 << 20, "", Access { execute: true, ..access }), 0),
            // A heap of a thread, and a pool of buffers at such a place.
            (area(0x7f00_0000_0000, 63 << 20, "", access), 0),
            (area(0x7f00_0000_0000, 64 << 20, "", access), 32),
        ] {
            assert_eq!(counted(&one), pages, "{one:?}");
        }
        let mut large = Large::default();
        large.add(&area(PLACE, 32 << 20, "", access), 2 << 20, |tables| tables.count() * 4096);
        assert_eq!(large, Large { populated: 16 << 20, pages: 16, tables: 3 * 4096 });
    }
}

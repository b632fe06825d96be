//! Advice for shared memory on base pages: put it on huge ones.

use super::postgres::{self, Case};
use super::program::{self, Memory, Program};
use super::{Advice, Pages, Step, Subject, Worth, sources};
use crate::audit::pools::Pool;
use crate::audit::report::FileReport;
use crate::output::human;

/// What is advised for a file on base pages, if that is worth it.
pub fn advise(case: &Case, worth: Worth) -> Option<Advice> {
    let Case { file, pool, resident, .. } = *case;
    let subject = file.subject();
    let program = subject.program();
    let count = file.size.div_ceil(pool.page_size);
    let gain = file.bytes.now.saturating_sub(file.bytes.huge);
    let cost = (count * pool.page_size).saturating_sub(resident);
    if !worth.is_reached(gain, cost) {
        return None;
    }
    let memory =
        Memory { file: &file.name, size: file.size, page_size: pool.page_size, is_default: pool.is_default };
    let pages = is_in_place(case).then_some(Pages { size: pool.page_size, count });
    let (mut steps, source) = match program {
        Program::PostgreSql if file.name.starts_with("/dev/shm/") => return transparent(file, subject, gain),
        Program::PostgreSql => return Some(postgres::advise(case, subject, gain)),
        Program::Redis | Program::Memcached => return None,
        program => program.put_on_huge_pages(memory)?,
    };
    steps.insert(
        0,
        if pages.is_some() {
            pool_first(count, pool)
        } else {
            not_in_place(file.size, resident, count, pool)
        },
    );
    Some(Advice {
        id: "huge-pages",
        situation: format!(
            "{} of shared memory on base pages cost {} of page tables in {}; on huge pages {}.",
            human::bytes(file.size),
            human::bytes(file.bytes.now),
            human::processes(file.processes),
            human::bytes(file.bytes.huge)
        ),
        subject,
        steps,
        gain,
        cost,
        frees: 0,
        pages,
        source,
    })
}

/// Whether most of the memory is there. Anybody may map much more than there is, and touch a byte of each huge page.
pub fn is_in_place(case: &Case) -> bool {
    case.resident >= case.file.size / 2
}

/// What stands in the place of a step to grow the pool, where that would take memory from the host that nobody has now.
pub fn not_in_place(size: u64, resident: u64, count: u64, pool: &Pool) -> Step {
    Step::by_hand(format!(
        "Only {} of {} are known to be in place, so grow-pool does not count it. Where you know that the program fills all of it: {} \
         more pages of {} are to be in the pool than are wanted otherwise.",
        human::bytes(resident),
        human::bytes(size),
        human::count(count),
        human::bytes(pool.page_size)
    ))
}

fn pool_first(count: u64, pool: &Pool) -> Step {
    let size = human::bytes(pool.page_size);
    if pool.available() >= count {
        Step::by_hand(format!(
            "The pool has {} pages of {size} that nobody has been promised; {} of them are needed.",
            human::count(pool.available()),
            human::count(count)
        ))
    } else {
        Step::by_hand(format!(
            "Give the pool {} pages of {size} for it (see grow-pool), and check that it has got them.",
            human::count(count)
        ))
    }
}

/// For a tmpfs file that no setting puts on hugetlbfs.
fn transparent(file: &FileReport, subject: Subject, gain: u64) -> Option<Advice> {
    Some(Advice {
        id: "transparent-huge-pages",
        situation: format!(
            "{} of dynamic shared memory in /dev/shm cost {} of page tables in {}; huge_pages has no bearing on it.",
            human::bytes(file.size),
            human::bytes(file.bytes.now),
            human::processes(file.processes)
        ),
        subject,
        steps: vec![
            Step::by_hand(
                "Set min_dynamic_shared_memory to what parallel queries take: that much is then part of the \
                 main memory, and on its huge pages.",
            ),
            Step::run(
                "Or let tmpfs take transparent huge pages where a whole one is written; it applies to files \
                 that are made from then on.",
                ["mount -o remount,huge=within_size /dev/shm".into()],
            ),
        ],
        gain,
        cost: 0,
        frees: 0,
        pages: None,
        source: sources::TRANSPARENT,
    })
}

/// The program that most advice goes by: that of the first name that is known.
impl Subject {
    /// Which program it is.
    pub fn program(&self) -> Program {
        let known = self.programs.iter().map(|name| program::of(name, &self.file));
        known.min().unwrap_or(Program::Other)
    }
}

//! The design's goals against Linux, and its expected picture, held against what was measured.

use guest_link::record::{Access, AttachCase, Basic, Operation};

use super::figures::{bytes, time};
use super::{Measured, Results};

/// How a figure is written.
#[derive(Clone, Copy)]
pub enum Unit {
    Time,
    Bytes,
    Count,
}

impl Unit {
    pub fn write(self, value: f64) -> String {
        match self {
            Unit::Time => time(value as u64),
            Unit::Bytes => bytes(value as u64),
            Unit::Count => format!("{value:.0}"),
        }
    }
}

/// A figure of the table.
pub struct Figure {
    pub name: String,
    pub unit: Unit,
    /// Ours divided by Linux's, at most.
    pub goal: Option<f64>,
    read: Box<Read>,
}

/// Reads a figure out of a subject's results.
type Read = dyn Fn(&Measured) -> Option<f64>;

impl Figure {
    pub fn of(&self, measured: &Measured) -> Option<f64> {
        (self.read)(measured)
    }
}

fn figure(
    name: impl Into<String>,
    unit: Unit,
    goal: Option<f64>,
    read: impl Fn(&Measured) -> Option<f64> + 'static,
) -> Figure {
    Figure { name: name.into(), unit, goal, read: Box::new(read) }
}

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// All rows of the table.
pub fn figures(results: &Results) -> Vec<Figure> {
    let attach = |case| {
        (
            move |measured: &Measured| measured.attach(case).map(|(_, time)| time as f64),
            move |measured: &Measured| measured.attach(case).map(|(faults, _)| faults as f64),
        )
    };
    let (congruent, congruent_faults) = attach(AttachCase::Congruent);
    let (other, other_faults) = attach(AttachCase::OtherPhase);
    let (part, part_faults) = attach(AttachCase::Part);
    let path =
        |name: &'static str| move |measured: &Measured| measured.path(name).map(|(length, _)| length as f64);
    let fresh =
        |measured: &Measured| measured.case(Access::Fresh, "none", 0).map(|case| case.times.p50 as f64);
    let mut rows = vec![
        figure("attach 1 GiB, touch 512 present pages", Unit::Time, Some(0.5), congruent),
        figure("  faults", Unit::Count, Some(0.0), congruent_faults),
        figure("same, at another phase", Unit::Time, Some(0.05), other),
        figure("  faults", Unit::Count, Some(0.0), other_faults),
        figure("same, 64 MiB of it", Unit::Time, None, part),
        figure("  faults", Unit::Count, Some(0.0), part_faults),
        figure("minor fault, instructions", Unit::Count, Some(0.25), path("minor fault, shared mapping")),
        figure("  in a private mapping", Unit::Count, Some(0.25), path("minor fault, private mapping")),
        figure("system call, instructions", Unit::Count, None, path("system call (getppid)")),
    ];
    // Of Linux's instructions; what the goals leave open has none.
    let goal = |operation| match operation {
        Operation::Start => Some(0.15),
        Operation::Punch | Operation::Mprotect | Operation::Exit => Some(0.3),
        _ => None,
    };
    for operation in Operation::ALL.into_iter().filter(|operation| operation.turns() == 1) {
        for sharers in super::COUNTED_SHARERS {
            rows.push(figure(
                format!("{}, {sharers} sharers, instructions", operation.name()),
                Unit::Count,
                goal(operation),
                move |measured: &Measured| measured.counted(operation, sharers).map(|cost| cost as f64),
            ));
        }
    }
    rows.push(figure("mmap, touch, munmap of 1 GiB, instructions", Unit::Count, Some(0.5), |measured| {
        let attach = measured.counted(Operation::Attach, 1)?;
        Some((attach + measured.counted(Operation::Detach, 1)?) as f64)
    }));
    // Instructions too.
    rows.extend(Basic::ALL.map(|basic| figure(basic.name(), Unit::Count, Some(1.0), path(basic.name()))));
    rows.push(figure("populate a fresh page (median)", Unit::Time, Some(1.0), fresh));
    for sharers in sharers(results) {
        let goal = Some(0.3);
        rows.push(figure(
            format!("punch 64 MiB, {sharers} sharers"),
            Unit::Time,
            goal,
            move |measured: &Measured| measured.cost(Operation::Punch, sharers).map(|cost| cost as f64),
        ));
    }
    let most = sharers(results).into_iter().max().unwrap_or(1);
    let at_most =
        move |operation| move |measured: &Measured| measured.cost(operation, most).map(|cost| cost as f64);
    rows.push(figure(
        format!("truncate 64 MiB, {most} sharers"),
        Unit::Time,
        Some(0.3),
        at_most(Operation::Truncate),
    ));
    rows.push(figure("mprotect of a shared 1 GiB", Unit::Time, Some(0.1), |measured: &Measured| {
        measured.cost(Operation::Mprotect, 1).map(|cost| cost as f64)
    }));
    rows.push(figure(
        format!("start and exit of one sharer, beside {most}"),
        Unit::Time,
        Some(0.3),
        move |measured: &Measured| {
            let start = measured.cost(Operation::Start, most)?;
            Some((start + measured.cost(Operation::Exit, most)?) as f64)
        },
    ));
    rows.push(figure(
        format!("page tables for each of {most} sharers"),
        Unit::Bytes,
        Some(0.5),
        move |measured: &Measured| {
            let (sharers, growth) = measured.tables(GIB).into_iter().find(|&(sharers, _)| sharers == most)?;
            Some(growth as f64 / f64::from(sharers))
        },
    ));
    rows.push(figure("page tables, 1 TiB, most sharers", Unit::Bytes, None, |measured: &Measured| {
        measured.tables(TIB).last().map(|&(_, growth)| growth as f64)
    }));
    for disturbance in ["punch", "truncate", "mprotect", "fork", "exit"] {
        rows.push(figure(
            format!("longest access of a bystander of {disturbance}"),
            Unit::Time,
            (disturbance == "punch").then_some(0.05),
            move |measured: &Measured| measured.longest(Access::Present, disturbance).map(|time| time as f64),
        ));
    }
    rows
}

/// Numbers of sharers for which every subject has costs.
fn sharers(results: &Results) -> Vec<u32> {
    let all = results.subjects.iter().map(|one| one.costs(Operation::Punch));
    all.map(|costs| costs.into_iter().map(|(sharers, _)| sharers).collect::<Vec<_>>())
        .filter(|list| !list.is_empty())
        .reduce(|mut common, other| {
            common.retain(|sharers| other.contains(sharers));
            common
        })
        .unwrap_or_default()
}

/// A sentence of the design, and whether the figures bear it out.
pub struct Verdict {
    pub claim: String,
    pub holds: bool,
    pub figures: String,
}

/// The expected picture and the flatness that the goals ask for.
pub fn verdicts(results: &Results) -> Vec<Verdict> {
    let subject = |name: &str| results.subjects.iter().find(|one| one.name == name);
    let mut verdicts = Vec::new();
    let punches = |one: &Measured| -> Option<(u64, u64, u32)> {
        let costs = one.costs(Operation::Punch);
        let (first, last) = (*costs.first()?, *costs.last()?);
        (first.0 != last.0).then_some((first.1, last.1, last.0))
    };
    if let Some(one) = subject("file-lock")
        && let Some((_, punch, sharers)) = punches(one)
        && let Some(case) = one.cases().filter(|case| case.disturbance == "punch" && case.sharers > 0).last()
    {
        let waits = one.longest(Access::Present, "punch").unwrap_or_default();
        verdicts.push(Verdict {
            claim: "under file-lock a bystander waits as long as the longest punch".into(),
            holds: waits >= punch / 2,
            figures: format!(
                "longest wait {}; a punch with {sharers} sharers takes {}; median wait during punches {}",
                time(waits),
                time(punch),
                time(case.times.p50)
            ),
        });
    }
    if let (Some(one), Some(other)) = (subject("vma-lock"), subject("file-lock"))
        && let (Some(ours), Some(theirs)) =
            (one.longest(Access::Present, "punch"), other.longest(Access::Present, "punch"))
    {
        verdicts.push(Verdict {
            claim: "under vma-lock a bystander does not wait for a whole punch".into(),
            holds: ours < theirs,
            figures: format!("longest wait {}, under file-lock {}", time(ours), time(theirs)),
        });
    }
    if let Some((first, last, sharers)) = subject("vma-lock").and_then(punches) {
        verdicts.push(Verdict {
            claim: "under vma-lock a punch costs more, the more share".into(),
            holds: last > 2 * first,
            figures: format!("{} alone, {} with {sharers} sharers", time(first), time(last)),
        });
    }
    if let Some((first, last, sharers)) = subject("file-tables").and_then(punches) {
        verdicts.push(Verdict {
            claim: "under file-tables a punch costs at most 1.2 times as much with all sharers as alone"
                .into(),
            holds: last as f64 <= 1.2 * first as f64,
            figures: format!(
                "{} alone, {} with {sharers} sharers: {:.2} times",
                time(first),
                time(last),
                last as f64 / first as f64
            ),
        });
    }
    if let (Some(ours), Some(linux)) = (subject("file-tables"), subject("linux"))
        && let (Some(our_wait), Some(their_wait)) =
            (ours.longest(Access::Present, "punch"), linux.longest(Access::Present, "punch"))
    {
        verdicts.push(Verdict {
            claim: "under file-tables a bystander's longest access during punches is at most 1/20 of Linux's"
                .into(),
            holds: our_wait * 20 <= their_wait,
            figures: format!("{} to {}", time(our_wait), time(their_wait)),
        });
    }
    verdicts
}

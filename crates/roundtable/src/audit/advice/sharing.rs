//! Advice for files on huge pages whose page tables are not shared.

use std::collections::BTreeSet;

use super::{Advice, Pages, Step, Subject, Worth, sources};
use crate::audit::cost::Cost;
use crate::audit::geometry::Geometry;
use crate::audit::group::{Group, Shape};
use crate::audit::kernel_version::Kernel;
use crate::audit::slots::{Analysis, Verdict, phase};
use crate::output::human;

/// What is advised for a file on huge pages, as far as it is worth it.
pub fn advise(
    group: &Group,
    analysis: &Analysis,
    cost: &Cost,
    kernel: &Kernel,
    geometry: Geometry,
    subject: &Subject,
    worth: Worth,
) -> Vec<Advice> {
    let file = File { group, analysis, cost, geometry };
    // What no kernel shares needs no other advice.
    let possible = if kernel.shares { file.sharing(subject) } else { Vec::new() };
    let mut all: Vec<Advice> = possible.into_iter().chain(file.gigantic(subject)).collect();
    all.retain(|advice| worth.is_reached(advice.gain, advice.cost));
    all
}

struct File<'a> {
    group: &'a Group,
    analysis: &'a Analysis,
    cost: &'a Cost,
    geometry: Geometry,
}

impl File<'_> {
    fn slots(&self, verdict: Verdict) -> u64 {
        self.analysis.verdicts.get(&verdict).copied().unwrap_or(0)
    }

    /// How to share more.
    fn sharing(&self, subject: &Subject) -> Vec<Advice> {
        let page = self.geometry.page();
        let advice = |id, gain, cost, situation: String, steps, source| Advice {
            id,
            subject: subject.clone(),
            situation,
            steps,
            gain,
            cost,
            frees: 0,
            pages: None,
            source,
        };
        let mut all = Vec::new();
        let wrong = self.slots(Verdict::NotCongruent);
        let short = self.slots(Verdict::TooShort);
        if subject.program().chooses_addresses() {
            if wrong > 0 {
                let gain = self.cost.now.pmd.saturating_sub(self.cost.best_here.pmd) * page;
                all.extend(self.congruence().map(|(situation, step)| {
                    advice("same-address", gain, 0, situation, vec![step], sources::MMAP)
                }));
            }
            if short > 1 && (wrong == 0 || !self.group.size.is_multiple_of(self.geometry.slot())) {
                let cost = self.group.size.next_multiple_of(self.geometry.slot()) - self.group.size;
                let (situation, step) = self.length();
                all.push(advice(
                    "fill-slots",
                    (short - 1) * page,
                    cost,
                    situation,
                    vec![step],
                    sources::POOLS,
                ));
            }
        }
        let protection = self.slots(Verdict::ProtectionDiffers);
        if protection > 0 {
            let members =
                |shapes: &mut dyn Iterator<Item = &Shape>| shapes.map(|shape| shape.members).sum::<u64>();
            let writers = members(&mut self.group.shapes.iter().filter(|shape| shape.access.write));
            let all_of = members(&mut self.group.shapes.iter());
            all.push(advice(
                "same-protection",
                protection * page,
                0,
                format!(
                    "{} of {} mappings may write, and Linux lets readers and writers share no table.",
                    human::count(writers),
                    human::count(all_of)
                ),
                vec![Step::by_hand("Map it with the same protection everywhere.")],
                sources::MMAP,
            ));
        }
        let flags = self.slots(Verdict::FlagsDiffer);
        if flags > 0 {
            let names: Vec<&str> = self.analysis.differing.iter().map(String::as_str).collect();
            all.push(advice(
                "same-flags",
                flags * page,
                0,
                format!("The mappings differ in the flags {}.", names.join(", ")),
                vec![Step::by_hand(
                    "Map it with the same flags everywhere. In VmFlags nr is MAP_NORESERVE, dc is \
                     MADV_DONTFORK, dd is MADV_DONTDUMP, um is a userfaultfd, kN is protection key N, sd \
                     comes and goes with /proc/PID/clear_refs.",
                )],
                sources::SMAPS,
            ));
        }
        let userfaultfd =
            self.slots(Verdict::UserfaultfdWriteProtect) + self.slots(Verdict::UserfaultfdMinor);
        if userfaultfd > 0 {
            all.push(advice(
                "userfaultfd",
                userfaultfd.saturating_sub(1) * page,
                0,
                "Linux shares no table where a userfaultfd waits for write-protect or minor faults (live \
                 migration, snapshots)."
                    .into(),
                vec![Step::by_hand("Let that end, then map the memory anew.")],
                sources::USERFAULTFD,
            ));
        }
        let private = self.slots(Verdict::Private);
        if private > 1 && self.group.pids.len() > 1 {
            all.push(advice(
                "map-shared",
                (private - 1) * page,
                0,
                "Private mappings share no table, and each write copies a huge page.".into(),
                vec![Step::by_hand("Map it with MAP_SHARED if its processes mean to share it.")],
                sources::MMAP,
            ));
        }
        let own = self.slots(Verdict::OwnTable);
        if own > 1 {
            all.push(advice(
                "map-again",
                (own - 1) * page,
                0,
                format!(
                    "{} slots could share, but got a table of their own at another time: before a partner \
                     was there, or with another protection.",
                    human::count(own)
                ),
                vec![Step::by_hand("Start those processes again, or map the memory anew.")],
                sources::POOLS,
            ));
        }
        all
    }

    /// Pages so large that they need no table that could be shared.
    fn gigantic(&self, subject: &Subject) -> Option<Advice> {
        let slot = self.geometry.slot();
        let gain = self.cost.now.pmd * self.geometry.page();
        if self.group.file.page_size != self.geometry.huge() || gain == 0 || self.group.size < slot {
            return None;
        }
        let (how, source) = subject.program().use_gigantic_pages()?;
        let count = self.group.size.div_ceil(slot);
        let unit = human::bytes(slot);
        Some(Advice {
            id: "gigantic-pages",
            subject: subject.clone(),
            situation: format!(
                "Tables for pages of {} cost {}; pages of {unit} need none.",
                human::bytes(self.geometry.huge()),
                human::bytes(gain)
            ),
            steps: vec![
                Step::by_hand(format!(
                    "Add hugepagesz=1G hugepages={count} to the kernel's command line and boot: later there \
                     is seldom a free {unit} in one piece."
                )),
                Step::by_hand(how),
                Step::by_hand(
                    "Start the program again, then take the pages of the smaller size that it had out of their pool.",
                ),
            ],
            gain,
            cost: count * slot - self.group.size,
            frees: 0,
            pages: Some(Pages { size: slot, count }),
            source,
        })
    }

    /// Where to map it so that addresses are congruent.
    fn congruence(&self) -> Option<(String, Step)> {
        let (geometry, slot) = (self.geometry, self.geometry.slot());
        let shared: Vec<&Shape> = self.group.shapes.iter().filter(|shape| shape.access.shared).collect();
        // The place that most have already is the cheapest for all.
        let most = shared.iter().max_by_key(|shape| shape.members)?;
        let aligned = most.start.wrapping_sub(most.offset).next_multiple_of(slot).wrapping_add(most.offset);
        let fills = (0..most.populated.len()).any(|index| most.fills(index, geometry));
        let (place, others) =
            if fills && most.members > 1 { (most.start, "the others") } else { (aligned, "all") };
        let unit = human::bytes(slot);
        let distances: BTreeSet<u64> = shared.iter().map(|shape| phase(shape, geometry)).collect();
        Some((
            format!(
                "Its mappings in {} lie at {} different distances from a multiple of {unit}, and only those \
                 at one distance share.",
                human::processes(self.group.pids.len() as u64),
                distances.len()
            ),
            Step::by_hand(format!(
                "Let {others} map it at {place:#x}, or any other address that differs from it by a multiple \
                 of {unit} ({slot:#x}): pass the address to mmap or shmat, or map it once and fork."
            )),
        ))
    }

    /// How large to make it so that slots are filled.
    fn length(&self) -> (String, Step) {
        let slot = self.geometry.slot();
        let (unit, size) = (human::bytes(slot), human::bytes(self.group.size));
        let up = human::bytes(self.group.size.next_multiple_of(slot));
        let shared = self.group.shapes.iter().filter(|shape| shape.access.shared);
        let is_aligned = shared.clone().all(|shape| shape.start.wrapping_sub(shape.offset) % slot == 0);
        let situation =
            format!("Linux shares only whole slots of {unit}, and this file's {size} leave parts over.");
        let step = if is_aligned {
            format!("Make it {up} instead of {size}, so that the last slot is filled too.")
        } else {
            let start = self.group.shapes[0].start.next_multiple_of(slot);
            format!("Map it at {start:#x} or another multiple of {unit}, and make it {up} long.")
        };
        (situation, Step::by_hand(step))
    }
}

//! Who has the huge pages: every page in use and every promise, as far as anything tells of it; the rest is named.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};

use serde::Serialize;

use crate::audit::advice::{Advice, Step, Subject, is_plain, sources};
use crate::audit::files::{FileId, describe};
use crate::audit::group::Group;
use crate::audit::holding::{self, Descriptor, Left, MountPoint, Place, Segment};
use crate::audit::host::Host;
use crate::audit::pools::Pool;
use crate::audit::reservations::Reservations;
use crate::output::human;

/// So many holders of a pool are told, those with most pages first.
const TOLD: usize = 50;

/// How pages are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hold {
    /// By a file that processes map.
    Mapped,
    /// By private copies in processes' memory.
    Private,
    /// By a file on a hugetlbfs that nobody maps or has open.
    File,
    /// By a file on a hugetlbfs that nobody maps, and that is open.
    OpenFile,
    /// By a file on a hugetlbfs that nobody in sight maps or has open, where not all are in sight.
    Unseen,
    /// By a file that nobody maps and that has a name no more: processes have it open.
    Descriptor,
    /// By a SysV segment that nobody has attached.
    Segment,
    /// By a mount's own promise (`min_size=`).
    Mount,
}

/// Somebody who holds pages of a pool, or a promise of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// How.
    pub hold: Hold,
    /// Whom it belongs to: the file, and who maps it or has it open.
    pub subject: Subject,
    /// Pages.
    pub pages: u64,
    /// Pages that are promised to it beyond these.
    pub promised: u64,
    /// Seconds since it was changed last, of a file that nobody maps.
    pub age_seconds: Option<u64>,
    /// The number of a segment.
    pub segment: Option<u64>,
    /// What is known of a file that nobody maps.
    #[serde(skip)]
    pub left: Option<Left>,
}

/// The account of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Account {
    /// Those who hold pages.
    pub holders: Vec<Holder>,
    /// How many more there are, and what they hold.
    pub other_holders: u64,
    /// Their pages.
    pub other_pages: u64,
    /// Pages in use of which nothing tells whose they are.
    pub unexplained: u64,
    /// Promised pages of which nothing tells to whom.
    pub unexplained_promises: u64,
}

/// Accounts for the pages of each pool; `is_whole` where every process was seen.
pub fn answer(host: &Host, is_whole: bool) -> Vec<Account> {
    let busy = |pool: &Pool| pool.in_use() > 0 || pool.reserved > 0;
    if !host.pools.iter().any(busy) {
        return host.pools.iter().map(|_| Account::default()).collect();
    }
    let mounts = holding::mounts(host.source, &host.census, &host.deadline);
    let mapped: HashSet<FileId> = host.groups.iter().map(|group| group.id).collect();
    let known = holding::places(&mapped);
    let left = holding::left_files(host.source, &mounts, &known, &host.deadline);
    let segments = holding::segments(host.source, &mapped);
    let mut reservations = Reservations::new(host.source, &host.deadline);
    let mut accounts: Vec<Building> = host
        .pools
        .iter()
        .map(|pool| {
            let mut building =
                Building { pool, holders: Vec::new(), pages: 0, promised: 0, left: HashMap::new() };
            building.mapped(host, &mut reservations);
            building.files(&left);
            building
        })
        .collect();
    // Looking at every descriptor of the host costs most: only where pages are missing, or a file waits to be
    // called left.
    let is_short = |building: &Building| building.unexplained() > 0;
    if !left.is_empty() || accounts.iter().any(is_short) {
        let uses = holding::uses(host, &mounts, &known, &left);
        for building in &mut accounts {
            building.descriptors(host, &uses.open);
            if !(is_whole && uses.is_whole) {
                building.doubt();
            }
        }
    }
    accounts.iter_mut().for_each(|building| building.segments(&segments, host.source.geometry.entries()));
    accounts.iter_mut().for_each(|building| building.mounts(&mounts));
    accounts.into_iter().map(Building::finish).collect()
}

struct Building<'a> {
    pool: &'a Pool,
    holders: Vec<Holder>,
    /// What these have together: there may be very many.
    pages: u64,
    promised: u64,
    /// Which of them are files that nobody maps.
    left: HashMap<Place, usize>,
}

impl Building<'_> {
    fn unexplained(&self) -> u64 {
        self.pool.in_use().saturating_sub(self.pages)
    }

    fn unexplained_promises(&self) -> u64 {
        self.pool.reserved.saturating_sub(self.promised)
    }

    fn add(&mut self, hold: Hold, subject: Subject, pages: u64, promised: u64) -> &mut Holder {
        let promised = promised.min(self.unexplained_promises());
        self.pages += pages;
        self.promised += promised;
        self.holders.push(Holder {
            hold,
            subject,
            pages,
            promised,
            age_seconds: None,
            segment: None,
            left: None,
        });
        self.holders.last_mut().expect("it was pushed")
    }

    /// Files that processes map, and what they have copied of them.
    fn mapped(&mut self, host: &Host, reservations: &mut Reservations) {
        let size = self.pool.page_size;
        let groups = host.groups.iter().filter(|group| group.file.is_hugetlb && group.file.page_size == size);
        for group in groups {
            let private = holding::private_pages(group);
            let shared = holding::file_pages(host.source, group)
                .unwrap_or_else(|| holding::most_pages(group).saturating_sub(private));
            let promised = reservations.promises(group, shared, private);
            let subject = subject(host, group);
            if private > 0 {
                self.add(Hold::Private, subject.clone(), private, if shared > 0 { 0 } else { promised });
            }
            if shared > 0 || private == 0 {
                self.add(Hold::Mapped, subject, shared, promised);
            }
        }
    }

    /// Files that nobody maps.
    fn files(&mut self, left: &[Left]) {
        for file in left.iter().filter(|file| file.page_size == self.pool.page_size) {
            let subject = Subject { file: file.path.clone(), ..Subject::default() };
            self.left.insert(file.place(), self.holders.len());
            let holder = self.add(Hold::File, subject, file.pages, 0);
            holder.age_seconds = file.age_seconds;
            holder.left = Some(file.clone());
        }
    }

    /// Not all were asked: somebody else may have the files that nobody seems to have.
    fn doubt(&mut self) {
        for holder in self.holders.iter_mut().filter(|holder| holder.hold == Hold::File) {
            holder.hold = Hold::Unseen;
        }
    }

    /// Files that are open and have no name any more, and who has the others open.
    fn descriptors(&mut self, host: &Host, found: &[Descriptor]) {
        for open in found.iter().filter(|open| open.page_size == self.pool.page_size) {
            let mut subject = Subject { file: open.name.clone(), ..Subject::default() };
            subject.processes = open.pids.len() as u64;
            subject.some_pids = open.pids.iter().copied().take(8).collect();
            let processes = || open.pids.iter().filter_map(|pid| host.process(*pid));
            subject.programs = processes().map(|process| process.name.clone()).take(8).collect();
            subject.units = processes()
                .map(|process| process.unit.clone())
                .filter(|unit| !unit.is_empty())
                .take(8)
                .collect();
            let known = self.left.get(&open.place()).copied();
            match known.map(|index| &mut self.holders[index]) {
                Some(holder) => {
                    holder.hold = Hold::OpenFile;
                    holder.subject = Subject { file: std::mem::take(&mut holder.subject.file), ..subject };
                }
                None if open.pages > 0 && !open.is_known => {
                    self.add(Hold::Descriptor, subject, open.pages, 0);
                }
                None => {}
            }
        }
    }

    /// Segments that nobody has attached. The kernel does not tell of what pages they are: only as many are
    /// counted as are missing.
    fn segments(&mut self, segments: &[Segment], entries: u64) {
        let size = self.pool.page_size;
        for segment in segments.iter().filter(|segment| segment.resident.is_multiple_of(size)) {
            let all = segment.size.div_ceil(size);
            // Linux 6.7 and later count each base page of a huge page as a huge one (hugetlbfs' nrpages
            // changed its unit).
            let readings = [segment.resident / size, segment.resident / size / entries];
            let promised = |pages| all - pages;
            let fits = |pages: &u64| {
                *pages <= all.min(self.unexplained())
                    && (*pages > 0 || promised(0) > 0 && promised(0) <= self.unexplained_promises())
            };
            if let Some(pages) = readings.into_iter().find(fits) {
                let subject = Subject { file: segment.name.clone(), ..Subject::default() };
                let holder = self.add(Hold::Segment, subject, pages, promised(pages));
                holder.segment = Some(segment.id);
                holder.age_seconds = segment.age_seconds;
            }
        }
    }

    /// What mounts have had promised to them, beyond what their files have.
    fn mounts(&mut self, mounts: &[MountPoint]) {
        for mount in mounts.iter().filter(|mount| mount.page_size == self.pool.page_size) {
            let promised = (mount.min_size / mount.page_size).saturating_sub(mount.used_pages);
            if promised > 0 && self.unexplained_promises() > 0 {
                let subject = Subject { file: format!("mount {}", mount.path), ..Subject::default() };
                self.add(Hold::Mount, subject, 0, promised);
            }
        }
    }

    fn finish(mut self) -> Account {
        let (unexplained, unexplained_promises) = (self.unexplained(), self.unexplained_promises());
        self.holders.retain(|holder| holder.pages > 0 || holder.promised > 0);
        self.holders
            .sort_by_key(|holder| (Reverse(holder.pages + holder.promised), holder.subject.file.clone()));
        let others = self.holders.split_off(self.holders.len().min(TOLD));
        Account {
            holders: self.holders,
            other_holders: others.len() as u64,
            other_pages: others.iter().map(|holder| holder.pages).sum(),
            unexplained,
            unexplained_promises,
        }
    }
}

fn subject(host: &Host, group: &Group) -> Subject {
    let processes = || group.pids.iter().filter_map(|pid| host.process(*pid));
    Subject {
        programs: processes().map(|process| process.name.clone()).take(64).collect(),
        processes: group.pids.len() as u64,
        some_pids: group.pids.iter().copied().take(8).collect(),
        units: processes()
            .map(|process| process.unit.clone())
            .filter(|unit| !unit.is_empty())
            .take(64)
            .collect(),
        file: describe(&group.file.name, group.id.inode),
    }
}

/// Of the files to remove so many are named.
const NAMED: usize = 8;

/// How to get back pages that nobody uses.
pub fn advise(pool: &Pool, account: &Account) -> Vec<Advice> {
    let size = human::bytes(pool.page_size);
    let of = |hold| account.holders.iter().filter(move |holder| holder.hold == hold && holder.pages > 0);
    let mut all = Vec::new();
    let mut add = |id, pages: u64, situation: String, steps, subject, source| {
        all.push(Advice {
            id,
            subject,
            situation,
            steps,
            gain: 0,
            cost: 0,
            frees: pages * pool.page_size,
            pages: None,
            source,
        });
    };
    let left: Vec<&Holder> = of(Hold::File).collect();
    if !left.is_empty() {
        let pages: u64 = left.iter().map(|holder| holder.pages).sum();
        let age = left.iter().filter_map(|holder| holder.age_seconds).min();
        let them = if left.len() == 1 { "it" } else { "them" };
        let mut step = Step::by_hand(format!(
            "When no program is about to start from {them} again, remove {them}; the pages are free at once."
        ));
        // A path that another could let lead elsewhere, or that is another's from the start, is none for root.
        let is_ours = |file: &&Left| file.inside.is_none() && !file.is_movable && is_plain(&file.path);
        let ours = left.iter().filter_map(|holder| holder.left.as_ref()).filter(is_ours);
        step.commands = ours.take(NAMED).map(|file| format!("rm {}", file.path)).collect();
        if step.commands.len() < left.len() {
            step.what += " (Not all are named here: --json does, up to 50.)";
        }
        let inside: BTreeSet<i32> = left.iter().filter_map(|holder| holder.left.as_ref()?.inside).collect();
        if !inside.is_empty() {
            let pids: Vec<String> = inside.iter().take(NAMED).map(i32::to_string).collect();
            step.what += &format!(
                " Some are not on this program's mounts but on those of others ({} {}): remove them there, by \
                 the container's own means. Here their paths are other files.",
                if inside.len() == 1 { "pid" } else { "pids" },
                pids.join(" ")
            );
        }
        let name = match left.as_slice() {
            [one] => one.subject.file.clone(),
            several => format!("{} files", several.len()),
        };
        add(
            "left-files",
            pages,
            format!(
                "{} pages of {size} are held by {} on hugetlbfs that no process maps or has open{}: a \
                 program that was killed leaves them (DPDK and SPDK, QEMU with mem-path).",
                human::count(pages),
                if left.len() == 1 { "a file" } else { "files" },
                age.map_or(String::new(), |age| format!(", changed {} ago", human::duration(age)))
            ),
            vec![step],
            Subject { file: name, ..Subject::default() },
            sources::DPDK,
        );
    }
    for holder in of(Hold::Descriptor).chain(of(Hold::OpenFile)) {
        add(
            "open-file",
            holder.pages,
            format!(
                "{} pages of {size} are held by a file that nobody maps, and that is open in {}.",
                human::count(holder.pages),
                holder.subject.describe()
            ),
            vec![Step::by_hand(
                "Let those processes close it, or end them; when the last has done so the pages are free.",
            )],
            holder.subject.clone(),
            sources::POOLS,
        );
    }
    for holder in of(Hold::Segment) {
        let id = holder.segment.unwrap_or(0);
        add(
            "left-segment",
            holder.pages,
            format!(
                "{} pages of {size} are held by a SysV segment that no process has attached.",
                human::count(holder.pages)
            ),
            vec![Step::run(
                "When no program is about to attach it again (ipcs -m -i tells who made it and when), remove it.",
                [format!("ipcrm -m {id}")],
            )],
            holder.subject.clone(),
            sources::SYSVIPC,
        );
    }
    all
}

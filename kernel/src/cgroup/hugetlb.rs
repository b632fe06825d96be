//! The controller `hugetlb`: how many huge pages of each size a group uses and is promised, and how many it may.
//!
//! The library asks for the payer of the thread that faults or maps (`hugetlb::Payer`) and keeps it with the page or the promise.
//! A payer is the [`Account`] of the nearest group with the controller on. Accounts are a tree of their own: turning the
//! controller off, or removing the group, ends no account that pages still refer to, and turning it on begins a new one.

use alloc::sync::{Arc, Weak};
use core::fmt::Write as _;
use core::sync::atomic::{AtomicU64, Ordering};

use ::hugetlb::{Expense, PageSize, Payer, Refused};

use super::Controller;
use super::group::Group;
use super::knob::{Interface, push_limit};
use crate::errno::{Errno, Result};
use crate::fs::registry::parse_size;
use crate::memory::PAGE_SIZE;
use crate::memory::fallible::Text;
use crate::process;

/// What is counted of a page size for pages, or for promises; in huge pages.
struct Counter {
    usage: AtomicU64,
    max: AtomicU64,
}

/// What is told of a page size.
#[derive(Default)]
struct Events {
    /// Refusals to this group or one below, and to this one.
    max: AtomicU64,
    local: AtomicU64,
}

/// What a group's huge pages are charged to.
pub(super) struct Account {
    parent: Option<Arc<Account>>,
    group: Weak<Group>,
    counters: [[Counter; 2]; PageSize::ALL.len()],
    events: [Events; PageSize::ALL.len()],
}

/// A limit that no page count reaches: what Linux's `PAGE_COUNTER_MAX` comes to, in huge pages.
const fn no_limit(size: PageSize) -> u64 {
    (i64::MAX as u64 / PAGE_SIZE as u64) >> (size.shift() - PAGE_SIZE.trailing_zeros())
}

const fn index(size: PageSize) -> usize {
    matches!(size, PageSize::Size1G) as usize
}

impl Account {
    /// One with nothing charged.
    pub fn new(group: &Arc<Group>) -> Arc<Account> {
        let counter = |size| Counter { usage: AtomicU64::new(0), max: AtomicU64::new(no_limit(size)) };
        Arc::new(Account {
            parent: group.parent.as_ref().and_then(account_of),
            group: Arc::downgrade(group),
            counters: PageSize::ALL.map(|size| [counter(size), counter(size)]),
            events: Default::default(),
        })
    }

    fn counter(&self, size: PageSize, expense: Expense) -> &Counter {
        &self.counters[index(size)][matches!(expense, Expense::Promise) as usize]
    }

    fn chain(&self) -> impl Iterator<Item = &Account> {
        core::iter::successors(Some(self), |account| account.parent.as_deref())
    }

    fn discharge(&self, expense: Expense, size: PageSize, pages: u64, levels: usize) {
        for account in self.chain().take(levels) {
            let before = account.counter(size, expense).usage.fetch_sub(pages, Ordering::SeqCst);
            debug_assert!(before >= pages, "a huge page is counted out twice");
        }
    }

    /// Charges it and all above, or nobody. No usage ever is above its limit, not for a moment.
    fn charge(&self, expense: Expense, size: PageSize, pages: u64) -> Result<(), Refused> {
        for (level, account) in self.chain().enumerate() {
            let counter = account.counter(size, expense);
            let more = |usage: u64| {
                usage.checked_add(pages).filter(|sum| *sum <= counter.max.load(Ordering::SeqCst))
            };
            if counter.usage.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_err() {
                self.discharge(expense, size, pages, level);
                self.refused(size);
                return Err(Refused);
            }
        }
        Ok(())
    }

    fn refused(&self, size: PageSize) {
        self.events[index(size)].local.fetch_add(1, Ordering::SeqCst);
        self.tell(names(size).events_local);
        for account in self.chain() {
            account.events[index(size)].max.fetch_add(1, Ordering::SeqCst);
            account.tell(names(size).events);
        }
    }

    fn tell(&self, name: &str) {
        if let Some(group) = self.group.upgrade() {
            group.changed(name);
        }
    }

    /// As Linux: a limit below what is used is refused.
    fn set_max(&self, size: PageSize, expense: Expense, max: u64) -> Result<()> {
        let counter = self.counter(size, expense);
        let old = counter.max.load(Ordering::SeqCst);
        if counter.usage.load(Ordering::SeqCst) > max {
            return Err(Errno::EBUSY);
        }
        counter.max.store(max, Ordering::SeqCst);
        // Who charges looks at the limit after the usage that it adds to: either it has seen the new one, or we see its charge.
        if counter.usage.load(Ordering::SeqCst) > max {
            counter.max.store(old, Ordering::SeqCst);
            return Err(Errno::EBUSY);
        }
        Ok(())
    }
}

/// The account of the nearest group, from this one up, with the controller on.
fn account_of(group: &Arc<Group>) -> Option<Arc<Account>> {
    group.chain().find_map(|group| group.hugetlb.lock().clone())
}

/// Who pays for huge pages; nobody for processes in the root, and for the kernel.
#[derive(Clone)]
pub struct HugePayer(Option<Arc<Account>>);

impl HugePayer {
    /// Of the current thread.
    pub fn current() -> HugePayer {
        let group = process::try_current().and_then(|thread| thread.process.cgroup.group());
        HugePayer(group.as_ref().and_then(account_of))
    }
}

impl PartialEq for HugePayer {
    fn eq(&self, other: &HugePayer) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            (Some(this), Some(other)) => Arc::ptr_eq(this, other),
            _ => false,
        }
    }
}

impl Payer for HugePayer {
    fn nobody() -> HugePayer {
        HugePayer(None)
    }

    fn is_nobody(&self) -> bool {
        self.0.is_none()
    }

    fn charge(&self, expense: Expense, size: PageSize, pages: u64) -> Result<(), Refused> {
        self.0.as_ref().map_or(Ok(()), |account| account.charge(expense, size, pages))
    }

    fn discharge(&self, expense: Expense, size: PageSize, pages: u64) {
        if let Some(account) = &self.0 {
            account.discharge(expense, size, pages, usize::MAX);
        }
    }
}

/// The names of the files of a page size.
struct Names {
    current: &'static str,
    events: &'static str,
    events_local: &'static str,
    max: &'static str,
    numa_stat: &'static str,
    rsvd_current: &'static str,
    rsvd_max: &'static str,
}

macro_rules! names {
    ($size:literal) => {
        Names {
            current: concat!("hugetlb.", $size, ".current"),
            events: concat!("hugetlb.", $size, ".events"),
            events_local: concat!("hugetlb.", $size, ".events.local"),
            max: concat!("hugetlb.", $size, ".max"),
            numa_stat: concat!("hugetlb.", $size, ".numa_stat"),
            rsvd_current: concat!("hugetlb.", $size, ".rsvd.current"),
            rsvd_max: concat!("hugetlb.", $size, ".rsvd.max"),
        }
    };
}

const NAMES: [Names; 2] = [names!("2MB"), names!("1GB")];

const fn names(size: PageSize) -> &'static Names {
    &NAMES[index(size)]
}

fn own(group: &Arc<Group>) -> Result<Arc<Account>> {
    group.hugetlb.lock().clone().ok_or(Errno::ENODEV)
}

fn show_usage(group: &Arc<Group>, text: &mut Text, size: PageSize, expense: Expense) -> Result<()> {
    let usage = own(group)?.counter(size, expense).usage.load(Ordering::SeqCst);
    let _ = writeln!(text, "{}", usage << size.shift());
    Ok(())
}

fn show_max(group: &Arc<Group>, text: &mut Text, size: PageSize, expense: Expense) -> Result<()> {
    let max = own(group)?.counter(size, expense).max.load(Ordering::SeqCst);
    push_limit(text, (max < no_limit(size)).then(|| max << size.shift()));
    Ok(())
}

fn store_max(group: &Arc<Group>, value: &str, size: PageSize, expense: Expense) -> Result<()> {
    let max = match value {
        "max" => no_limit(size),
        _ if value.ends_with('%') => return Err(Errno::EINVAL),
        _ => (parse_size(value, 0)? >> size.shift()).min(no_limit(size)),
    };
    own(group)?.set_max(size, expense, max)
}

/// The files of a page size.
macro_rules! interfaces {
    ($size:expr) => {
        [
            Interface::new(names($size).max)
                .of(Controller::Hugetlb)
                .read(|group, text| show_max(group, text, $size, Expense::Page))
                .write(|group, value, _| store_max(group, value, $size, Expense::Page)),
            Interface::new(names($size).rsvd_max)
                .of(Controller::Hugetlb)
                .read(|group, text| show_max(group, text, $size, Expense::Promise))
                .write(|group, value, _| store_max(group, value, $size, Expense::Promise)),
            Interface::new(names($size).current)
                .of(Controller::Hugetlb)
                .read(|group, text| show_usage(group, text, $size, Expense::Page)),
            Interface::new(names($size).rsvd_current)
                .of(Controller::Hugetlb)
                .read(|group, text| show_usage(group, text, $size, Expense::Promise)),
            Interface::new(names($size).events).of(Controller::Hugetlb).read(|group, text| {
                let events = own(group)?.events[index($size)].max.load(Ordering::SeqCst);
                let _ = writeln!(text, "max {events}");
                Ok(())
            }),
            Interface::new(names($size).events_local).of(Controller::Hugetlb).read(|group, text| {
                let events = own(group)?.events[index($size)].local.load(Ordering::SeqCst);
                let _ = writeln!(text, "max {events}");
                Ok(())
            }),
            // There is one node.
            Interface::new(names($size).numa_stat).of(Controller::Hugetlb).read(|group, text| {
                let usage = own(group)?.counter($size, Expense::Page).usage.load(Ordering::SeqCst);
                let bytes = usage << $size.shift();
                let _ = writeln!(text, "total={bytes} N0={bytes}");
                Ok(())
            }),
        ]
    };
}

pub(super) const INTERFACES_2M: [Interface; 7] = interfaces!(PageSize::Size2M);
pub(super) const INTERFACES_1G: [Interface; 7] = interfaces!(PageSize::Size1G);

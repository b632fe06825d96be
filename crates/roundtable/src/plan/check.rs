//! What of a plan this host has, and what is missing.

use serde::Serialize;

use super::arithmetic::Way;
use super::{Asks, Plan};
use crate::audit::kernel_version;
use crate::audit::meminfo::Meminfo;
use crate::audit::pools::{self, Pool};
use crate::audit::source::Source;
use crate::output::human;
use crate::size::Size;

/// One thing that the plan needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The way of mapping that needs it; of all, when it is none's own.
    pub way: Option<Way>,
    /// Whether this host has it.
    pub is_met: bool,
    /// Whether it has to: of several ways to map the memory one is enough, and a configuration names it.
    pub is_needed: bool,
    /// What is needed and what there is, in a sentence.
    pub what: String,
}

/// Compares a plan with a host; only what concerns pages of one size, if one was named. What the configuration asks for
/// is needed, or where there is none any one of the ways.
pub fn checks(source: &Source, plan: &Plan, page_size: Option<Size>) -> Vec<Check> {
    let meminfo = Meminfo::read(source);
    let pools = pools::read(source, &meminfo);
    let kernel = kernel_version::running(source);
    let total = meminfo.get("MemTotal").unwrap_or(0);
    let available = meminfo.get("MemAvailable").or_else(|| meminfo.get("MemFree")).unwrap_or(0);
    let mut checks = vec![Check {
        way: None,
        is_met: plan.size <= total,
        is_needed: true,
        what: format!("the memory is {}; this host has {}", human::bytes(plan.size), human::bytes(total)),
    }];
    let wanted = |way: Way| page_size.is_none_or(|size| size.0 == way.page_size());
    for line in plan.ways.iter().filter(|line| line.way == Way::Base) {
        // It is there already where the memory is in use now; a new server needs both.
        let needed = line.bytes.map(|tables| tables.saturating_add(plan.size));
        checks.push(Check {
            way: Some(Way::Base),
            is_met: needed.is_some_and(|needed| needed <= available),
            is_needed: false,
            what: format!(
                "on base pages memory and page tables take {}; {} are available",
                needed.map_or("more than 16 EiB".into(), human::bytes),
                human::bytes(available)
            ),
        });
    }
    for (way, pages) in [(Way::Huge, plan.nr_hugepages_2m), (Way::Gigantic, plan.nr_hugepages_1g)] {
        if wanted(way) {
            checks.push(pool(&pools, way, pages, available));
        }
    }
    if wanted(Way::Huge) {
        checks.push(Check {
            way: Some(Way::HugeShared),
            is_met: kernel.shares,
            is_needed: false,
            what: format!(
                "Linux {} {} page tables of huge pages ({})",
                kernel.release,
                if kernel.shares { "shares" } else { "does not share" },
                kernel.reason
            ),
        });
    }
    let default = pools.iter().find(|pool| pool.is_default).map(|pool| pool.page_size);
    let of_size =
        |size: u64| [Way::Base, Way::Huge, Way::Gigantic].into_iter().find(|way| way.page_size() == size);
    let asked = match (page_size, plan.asks) {
        (Some(size), _) => of_size(size.0),
        (None, Some(Asks::BasePages)) => Some(Way::Base),
        (None, Some(Asks::HugePages { size })) => {
            of_size(if size == 0 { default.unwrap_or(0) } else { size }).or(Some(Way::Huge))
        }
        (None, None) => None,
    };
    // Sharing is the kernel's, and comes by itself or not at all.
    let mut ways: Vec<&mut Check> =
        checks.iter_mut().filter(|check| check.way.is_some_and(|way| way != Way::HugeShared)).collect();
    let is_one_met = ways.iter().any(|check| check.is_met);
    for check in &mut ways {
        check.is_needed = if asked.is_some() { check.way == asked } else { !is_one_met };
    }
    checks
}

fn pool(pools: &[Pool], way: Way, pages: u64, available: u64) -> Check {
    let size = human::bytes(way.page_size());
    let pool = pools.iter().find(|pool| pool.page_size == way.page_size());
    let (is_met, what) = match pool {
        None => (false, format!("this machine has no huge pages of {size}")),
        Some(pool) if pool.available() >= pages => (
            true,
            format!(
                "{} pages of {size} are needed; {} are free and not promised",
                human::count(pages),
                human::count(pool.available())
            ),
        ),
        Some(pool) => {
            let more = pages - pool.available();
            let bytes = more.saturating_mul(pool.page_size);
            let room = if bytes <= available { "" } else { ", which is more than is available" };
            (
                false,
                format!(
                    "{} pages of {size} are needed, {} are free and not promised: set nr_hugepages to {}, \
                     which takes {} more memory{room}",
                    human::count(pages),
                    human::count(pool.available()),
                    pool.persistent() + more,
                    human::bytes(bytes)
                ),
            )
        }
    };
    Check { way: Some(way), is_met, is_needed: false, what }
}

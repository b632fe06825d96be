//! Whether the figures are what the kernel's way of sharing promises.

/// The figures of one crowd of processes.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    pub processes: u64,
    /// All page tables, in kB.
    pub tables_kb: u64,
    /// What touching added to them.
    pub touched_kb: u64,
    /// Shared tables in the kernel's own count, when all had touched; 0 where it does not tell.
    pub shared_tables: u64,
    /// PUD entries that led to them when all had mapped the file.
    pub attachments_at_mmap: u64,
    /// And when all had touched it.
    pub attachments: u64,
    pub least_faults: u64,
    pub most_touch_faults: u64,
}

/// A PMD table, in kB.
pub const TABLE_KB: u64 = 4;
/// What other processes' tables may change by meanwhile, in kB.
const NOISE_KB: u64 = 64;

/// What in the figures cannot be true of the protocol, if anything. The file lies in so many slots of 1 GiB.
pub fn contradiction(protocol: Option<&str>, slots: u64, shared: &Crowd, unshared: &Crowd) -> Option<String> {
    let own = unshared.processes * slots * TABLE_KB;
    let wrong = |holds: bool, what: String| (!holds).then_some(what);
    wrong(
        unshared.touched_kb + NOISE_KB >= own && unshared.least_faults > 0,
        format!("without sharing, {own} kB of own tables are needed, and {} were seen", unshared.touched_kb),
    )
    .or_else(|| match protocol {
        Some("file-tables") => attached_at_mmap(slots, shared),
        Some("none") => wrong(
            shared.shared_tables == 0 && shared.touched_kb + NOISE_KB >= shared.processes * slots * TABLE_KB,
            format!("nothing is shared, and touching cost no more than {} kB", shared.touched_kb),
        ),
        // Others share by faults, where a partner is found; how many do is for their own tests.
        _ => None,
    })
    .or_else(|| {
        let comparable = protocol == Some("file-tables") && shared.processes == unshared.processes;
        let saved = shared.processes.saturating_sub(1) * slots * TABLE_KB;
        wrong(
            !comparable || shared.tables_kb + saved <= unshared.tables_kb + NOISE_KB,
            format!(
                "sharing shall save {saved} kB, with {} kB of tables against {}",
                shared.tables_kb, unshared.tables_kb
            ),
        )
    })
}

/// The promise of file-tables: one table a slot, everyone's from mmap on.
fn attached_at_mmap(slots: u64, crowd: &Crowd) -> Option<String> {
    let attachments = crowd.processes * slots;
    if crowd.shared_tables != slots {
        return Some(format!("{} shared tables for {slots} slots", crowd.shared_tables));
    }
    if (crowd.attachments_at_mmap, crowd.attachments) != (attachments, attachments) {
        return Some(format!(
            "{} attachments after mmap and {} after touching, not {attachments}",
            crowd.attachments_at_mmap, crowd.attachments
        ));
    }
    if crowd.most_touch_faults != 0 {
        return Some(format!("a process took {} faults on pages that were there", crowd.most_touch_faults));
    }
    (crowd.touched_kb > NOISE_KB).then(|| format!("touching took {} kB of tables", crowd.touched_kb))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNSHARED: Crowd = Crowd {
        processes: 100,
        tables_kb: 5200,
        touched_kb: 400,
        shared_tables: 0,
        attachments_at_mmap: 0,
        attachments: 0,
        least_faults: 512,
        most_touch_faults: 512,
    };
    const SHARED: Crowd = Crowd {
        processes: 100,
        tables_kb: 4804,
        touched_kb: 0,
        shared_tables: 1,
        attachments_at_mmap: 100,
        attachments: 100,
        least_faults: 0,
        most_touch_faults: 0,
    };

    #[test]
    fn figures_that_keep_the_promise_pass() {
        assert_eq!(contradiction(Some("file-tables"), 1, &SHARED, &UNSHARED), None);
        assert_eq!(contradiction(Some("none"), 1, &UNSHARED, &UNSHARED), None);
        assert_eq!(contradiction(None, 1, &UNSHARED, &UNSHARED), None);
    }

    #[test]
    fn each_figure_that_breaks_it_is_found() {
        for broken in [
            Crowd { tables_kb: 5200, ..SHARED },
            Crowd { touched_kb: 400, ..SHARED },
            Crowd { shared_tables: 2, ..SHARED },
            Crowd { shared_tables: 0, ..SHARED },
            Crowd { attachments_at_mmap: 99, ..SHARED },
            Crowd { attachments: 99, ..SHARED },
            Crowd { most_touch_faults: 1, ..SHARED },
        ] {
            assert!(contradiction(Some("file-tables"), 1, &broken, &UNSHARED).is_some(), "{broken:?}");
        }
        // The comparison is worth nothing when those without sharing share.
        let sharing = Crowd { touched_kb: 0, ..UNSHARED };
        assert!(contradiction(Some("file-tables"), 1, &SHARED, &sharing).is_some());
        assert!(contradiction(Some("none"), 1, &SHARED, &UNSHARED).is_some());
    }
}

//! Short forms of the race between a fault and whoever takes its table away, under every protocol.

use anyhow::Result;
use roundtable::initramfs::Initramfs;
use roundtable::run::Parts;

use super::Subject;
use super::boots::{BOOT, Boot, End, Kernels, Script, Talk, Work};
use super::conversations::busybox_init;
use Talk::{Expect, ExpectOneOf};

/// Guests that race: under the cures nothing may be found, by the program or by the kernel's assertions; without one
/// both have to find something.
pub fn boots() -> [Boot; 7] {
    let checked = Subject::Checked;
    [
        race("race-file-lock", &["hugetlb_sharing=file-lock", CHECKER], checked, clean_archive, CLEAN),
        race("race-vma-lock", &["hugetlb_sharing=vma-lock", CHECKER], checked, clean_archive, CLEAN),
        race("race-file-tables", &["hugetlb_sharing=file-tables", CHECKER], checked, clean_archive, CLEAN),
        race("race-base-pages", &[CHECKER], checked, base_archive, CLEAN),
        race("race-regions", &[CHECKER], checked, regions_archive, CLEAN),
        race("race-is-caught", &["hugetlb_sharing=unfenced", CHECKER], checked, long_archive, CAUGHT),
        race("race-is-seen", &["hugetlb_sharing=unfenced"], Subject::Laboratory, corrupt_archive, SEEN),
    ]
}

fn race(
    name: &'static str,
    parameters: &'static [&'static str],
    own: Subject,
    archive: fn(&Parts) -> Result<Initramfs>,
    talk: &'static [Talk],
) -> Boot {
    Boot {
        name,
        parameters,
        kernels: Kernels::Ours,
        own: Some(own),
        limit: 120,
        work: Work::Console(Script { archive, gzip: false, talk, end: End::PowerOff }),
        ..BOOT
    }
}

/// The page-table checker runs beside the race, and panics on what it finds.
const CHECKER: &str = "hugetlb_check=1";

const CLEAN: &[Talk] = &[Expect("race: no corruption"), Expect("race ended with 0")];
/// The invariants that break, as the kernel tells them.
const CAUGHT: &[Talk] = &[
    Expect("Kernel panic - "),
    ExpectOneOf(&["an entry outlived its page", "a table equals the cache", "freed twice", "page table"]),
];
/// What the checker says afterwards is printed only: what corrupted memory may have been a translation or a table that is gone.
const SEEN: &[Talk] = &[Expect("race: FOUND ")];

fn clean_archive(parts: &Parts) -> Result<Initramfs> {
    archive(parts, "race --seconds 5")
}

fn base_archive(parts: &Parts) -> Result<Initramfs> {
    archive(parts, "race --base-pages --seconds 8")
}

fn regions_archive(parts: &Parts) -> Result<Initramfs> {
    archive(parts, "race --regions --base-pages --seconds 8")
}

/// Goes on when the program has found something: the kernel has to as well.
fn long_archive(parts: &Parts) -> Result<Initramfs> {
    archive(parts, "race --seconds 60")
}

fn corrupt_archive(parts: &Parts) -> Result<Initramfs> {
    archive(parts, "race --seconds 30 --until-found")
}

fn archive(parts: &Parts, command: &str) -> Result<Initramfs> {
    let script = format!(
        "#!/bin/busybox sh\nb=/bin/busybox\n$b mkdir -p /proc /sys /tmp\n$b mount -t proc none /proc\n\
         $b mount -t sysfs none /sys\n/bin/{command}\necho race ended with $?\n\
         $b cat /sys/kernel/mm/hugepages/sharing/check\n$b poweroff -f\n"
    );
    let mut initramfs = busybox_init(parts, &script)?;
    initramfs.add_program("/bin/race", &parts.programs.join("race"))?;
    Ok(initramfs)
}

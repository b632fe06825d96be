//! Short forms of the race between a fault and whoever takes its table away, under every protocol.

use anyhow::Result;
use roundtable::initramfs::Initramfs;
use roundtable::run::Parts;

use super::Subject;
use super::boots::{BOOT, Boot, End, Kernels, Script, Talk, Work, busybox_init};
use Talk::Expect;

/// Guests that race: under the cures nothing may be found, by the program or by the kernel's assertions; without one
/// something has to be.
pub fn boots() -> [Boot; 4] {
    let cured = |name, parameters| race(name, parameters, clean_archive, CLEAN);
    [
        cured("race-file-lock", &["hugetlb_sharing=file-lock"]),
        cured("race-vma-lock", &["hugetlb_sharing=vma-lock"]),
        cured("race-file-tables", &["hugetlb_sharing=file-tables"]),
        race("race-unfenced", &["hugetlb_sharing=unfenced"], corrupt_archive, CORRUPT),
    ]
}

fn race(
    name: &'static str,
    parameters: &'static [&'static str],
    archive: fn(&Parts) -> Result<Initramfs>,
    talk: &'static [Talk],
) -> Boot {
    Boot {
        name,
        parameters,
        kernels: Kernels::Ours,
        // With its assertions, and with the protocol that corrupts memory.
        own: Some(Subject::Checked),
        limit: 120,
        work: Work::Console(Script { archive, gzip: false, talk, end: End::PowerOff }),
        ..BOOT
    }
}

const CLEAN: &[Talk] = &[Expect("race: no corruption"), Expect("race ended with 0")];
const CORRUPT: &[Talk] = &[Expect("race: FOUND ")];

fn clean_archive(parts: &Parts) -> Result<Initramfs> {
    archive(parts, "race --seconds 6")
}

fn corrupt_archive(parts: &Parts) -> Result<Initramfs> {
    archive(parts, "race --seconds 30 --until-found")
}

fn archive(parts: &Parts, command: &str) -> Result<Initramfs> {
    let script = format!(
        "#!/bin/busybox sh\nb=/bin/busybox\n$b mkdir -p /proc /tmp\n$b mount -t proc none /proc\n\
         /bin/{command}\necho race ended with $?\n$b poweroff -f\n"
    );
    let mut initramfs = busybox_init(parts, &script)?;
    initramfs.add_program("/bin/race", &parts.programs.join("race"))?;
    Ok(initramfs)
}

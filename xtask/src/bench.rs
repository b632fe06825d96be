//! `cargo xtask bench`: builds what is to be measured and lets the host library measure it.

use anyhow::{Context, Result, bail};
use roundtable::bench::{BenchOptions, Subject};
use roundtable::run::Parts;

use crate::build::{self, BuildOptions};
use crate::{curves, linux, output_folder, profile, setup};

/// Protocols of our kernel.
const PROTOCOLS: [&str; 5] = ["none", "unfenced", "file-lock", "vma-lock", "file-tables"];

/// Runs the benchmark.
pub fn run(options: &BenchOptions) -> Result<i32> {
    let parts = Parts::in_folder(&output_folder());
    if options.from.is_some() {
        return roundtable::bench::run(options, &[], &parts);
    }
    setup::qemu()?;
    setup::host_libc()?;
    build::programs()?;
    let ordinary = output_folder().join("kernel.elf");
    let mut subjects = Vec::new();
    for name in names(options) {
        let (kernel, parameters) = match name.as_str() {
            "linux" => {
                linux::fetch().context("or leave linux out with --protocols")?;
                (output_folder().join("linux/vmlinuz"), Vec::new())
            }
            "unfenced" => {
                build::laboratory()?;
                (build::laboratory_output(), vec!["hugetlb_sharing=unfenced".to_string()])
            }
            name if PROTOCOLS.contains(&name) => {
                build::kernel(&BuildOptions::default(), &ordinary)?;
                (ordinary.clone(), vec![format!("hugetlb_sharing={name}")])
            }
            other => bail!("there is no protocol {other}: {}, linux", PROTOCOLS.join(", ")),
        };
        subjects.push(Subject { name: name.clone(), kernel, parameters });
    }
    if is_of_one(options) {
        let subject =
            subjects.first().context("Debian's kernel does not tell its functions: name another protocol")?;
        return match () {
            () if options.profile => profile::run(options, subject),
            () if options.contention => profile::contention::run(options, subject),
            () => curves::run(options, subject),
        };
    }
    roundtable::bench::run(options, &subjects, &parts)
}

/// Whether one protocol is looked at, not several compared.
fn is_of_one(options: &BenchOptions) -> bool {
    options.profile || options.contention || options.curves
}

/// What to build and to measure: of one protocol the default one, unless others are asked for.
fn names(options: &BenchOptions) -> Vec<&String> {
    let mut names: Vec<_> = options.protocols.iter().collect();
    if is_of_one(options) {
        names.retain(|name| *name != "linux");
        names.sort_by_key(|name| *name != "file-tables");
        names.truncate(1);
    }
    names
}

//! `cargo xtask bench`: builds what is to be measured and lets the host library measure it.

use anyhow::{Context, Result, bail};
use roundtable::bench::{BenchOptions, Subject};
use roundtable::run::Parts;

use crate::build::{self, BuildOptions};
use crate::{contention, curves, linux, output_folder, profile, setup, showcase};

/// Protocols of our kernel.
const PROTOCOLS: [&str; 5] = ["none", "unfenced", "file-lock", "vma-lock", "file-tables"];

/// Runs the benchmark.
pub fn run(options: &BenchOptions) -> Result<i32> {
    let parts = Parts::in_folder(&output_folder());
    if options.programs {
        return showcase::run(options);
    }
    if options.contention {
        return contention::run(options);
    }
    if let (true, Some(printed)) = (options.curves, &options.from) {
        return curves::draw_from(options, printed);
    }
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
    if options.profile || options.curves {
        let subject = subjects.first().context("this is for a kernel of ours: name another protocol")?;
        return if options.curves { curves::run(options, subject) } else { profile::run(options, subject) };
    }
    roundtable::bench::run(options, &subjects, &parts)
}

/// What to build and to measure. A profile is of one protocol, and so are curves: the default one, unless others are asked for.
fn names(options: &BenchOptions) -> Vec<&String> {
    let mut names: Vec<_> = options.protocols.iter().collect();
    if options.profile || options.curves {
        names.retain(|name| *name != "linux");
        names.sort_by_key(|name| *name != "file-tables");
        names.truncate(1);
    }
    names
}

//! `cargo xtask sizes`: what the library adds to a kernel, in bytes of code and data, by architecture.
//!
//! `hosts/size` is a kernel of declarations only, which calls what a kernel calls. It is linked for a bare machine, and what nothing
//! leads to is thrown away, as in a real kernel. What is left is the library, and the parts of `core` and `alloc` that it uses.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use elf::ElfBytes;
use elf::abi::{SHF_ALLOC, SHF_EXECINSTR, SHT_NOBITS};
use elf::endian::AnyEndian;

use crate::step::Step;
use crate::test::report::Report;
use crate::toolchain::Toolchain;
use crate::{root, toolchain};

/// The machines, and how the library may be built for them.
const TARGETS: [&str; 2] = [toolchain::TARGET, "riscv64gc-unknown-none-elf"];
/// For speed, and for size.
const LEVELS: [&str; 2] = ["3", "s"];
/// An empty build takes a minute where `core` is built along.
const LIMIT: Duration = Duration::from_secs(900);

/// Bytes of what is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sizes {
    code: u64,
    /// Constants, and what is written.
    data: u64,
}

/// Builds and measures; 0 when all could be.
pub fn run() -> Result<i32> {
    let mut report = Report::new();
    let mut lines = Vec::new();
    for target in TARGETS {
        let Some(toolchain) = toolchain::for_bare(target) else {
            report.skip(target, "no Rust for it is installed (rustup target add, or Debian's rustc-web, cargo-web and rust-web-src)");
            continue;
        };
        for level in LEVELS {
            let sizes = measure(&toolchain, target, level).with_context(|| target.to_string())?;
            lines.push(format!("{target:<28} {level:>9} {:>10} {:>10}", sizes.code, sizes.data));
            report.pass(&format!("{target}, opt-level {level}"), None);
        }
    }
    report.print(&format!(
        "\n{:<28} {:>9} {:>10} {:>10}\n{}",
        "target",
        "opt-level",
        "code",
        "data",
        lines.join("\n")
    ));
    Ok(report.finish())
}

fn measure(toolchain: &Toolchain, target: &str, level: &str) -> Result<Sizes> {
    let folder = root().join("target/sizes").join(level);
    let mut command = toolchain.cargo_for("build", target);
    command
        .current_dir(root().join("hosts/size"))
        .args(["--locked", "--release", "--target-dir"])
        .arg(&folder);
    command.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", level);
    let flags = "-Crelocation-model=static -Clink-arg=--unresolved-symbols=ignore-all -Clink-arg=--gc-sections -Cstrip=symbols";
    let name = format!("CARGO_TARGET_{}_RUSTFLAGS", target.to_uppercase().replace('-', "_"));
    command.env(name, flags);
    let step = Step::new(&format!("build hosts/size for {target}"), "what the library adds to a kernel");
    step.run(&mut command, LIMIT)?;
    of_elf(&folder.join(target).join("release/roundtable-size"))
}

fn of_elf(path: &PathBuf) -> Result<Sizes> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    let elf = ElfBytes::<AnyEndian>::minimal_parse(&bytes)?;
    let mut sizes = Sizes::default();
    for section in elf.section_headers().context("no sections")? {
        let flags = section.sh_flags;
        match flags & u64::from(SHF_ALLOC) != 0 {
            true if flags & u64::from(SHF_EXECINSTR) != 0 => sizes.code += section.sh_size,
            true if section.sh_type != SHT_NOBITS => sizes.data += section.sh_size,
            _ => {}
        }
    }
    Ok(sizes)
}

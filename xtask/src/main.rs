//! Sets up, builds, runs and tests Roundtable.

mod bench;
mod build;
mod check;
mod compare;
mod contention;
mod curves;
mod debian;
mod hosts;
mod image;
mod licences;
mod linux;
mod profile;
mod programs;
mod selftests;
mod servers;
mod setup;
mod showcase;
mod sizes;
mod soak;
mod stalls;
mod step;
mod test;
mod toolchain;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use roundtable::options::{Kernel, RunOptions};
use roundtable::run::{MACHINE_FAILED, Parts};

/// Sets up, builds, runs and tests Roundtable.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what is missing: the kernel's target, QEMU, what the tests need
    Setup,
    /// Build the kernel (target/roundtable/kernel.elf) and the Linux programs
    Build(build::BuildOptions),
    /// Run the demonstration, or a Linux program, on the kernel in QEMU; the exit status is the program's
    Run(Box<Run>),
    /// Run all tests: on the host, on the kernel in QEMU, and the same on Debian's Linux to compare
    Test(test::TestOptions),
    /// Break the library in each way that it knows, and show which model catches it
    Mutants,
    /// Run the long forms of the tests that look for races, for so long
    Soak(soak::SoakOptions),
    /// Measure how long a call upon many of a thing keeps others waiting: a table, in instructions
    Stalls(stalls::StallOptions),
    /// Measure all protocols and Debian's Linux in the same machine: a table, and a page with plots
    Bench(roundtable::bench::BenchOptions),
    /// Run Debian's programs on both kernels: what works on each, for the table of docs/programs.md
    Programs(programs::ProgramOptions),
    /// Run Linux's own self-tests on both kernels: which pass on each
    Selftests(selftests::SelftestOptions),
    /// Run random sequences of operations on huge pages on both kernels: what comes of each step has to be the same
    Compare(compare::CompareOptions),
    /// Build and boot a kernel that is not ours and hosts the library: a table of what sharing saves there
    Host(hosts::HostOptions),
    /// Check the published crates: packages, features, oldest Rust, public interfaces, miri, ThreadSanitizer
    Check(check::CheckOptions),
    /// Make an image that PCs boot by BIOS and UEFI, or a machine for Firecracker
    Image(image::ImageOptions),
    /// Measure what the library adds to a kernel: bytes of code and data, by architecture
    Sizes,
    /// Check that all dependencies are under permissive licences
    Licences,
}

#[derive(Parser)]
struct Run {
    #[command(flatten)]
    build: build::BuildOptions,
    #[command(flatten)]
    run: RunOptions,
}

fn main() -> ExitCode {
    roundtable::abort_on_panic();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // A job may end with clap's own status, 2.
        Err(error) if error.use_stderr() => {
            let _ = error.print();
            return ExitCode::from(MACHINE_FAILED as u8);
        }
        Err(error) => error.exit(),
    };
    match execute(cli.command) {
        Ok(status) => ExitCode::from(status as u8),
        Err(error) => {
            // Without a terminal or a reader there is nobody to tell.
            let _ = writeln!(io::stderr(), "xtask: {error:#}");
            ExitCode::from(MACHINE_FAILED as u8)
        }
    }
}

fn execute(command: Command) -> Result<i32> {
    match command {
        Command::Setup => setup::all().map(|()| 0),
        Command::Build(options) => {
            build::kernel(&options, &options.output())?;
            build::programs()?;
            build::presets()?;
            Ok(0)
        }
        Command::Run(options) => run(&options),
        Command::Test(options) => test::run(&options),
        Command::Mutants => test::mutants(),
        Command::Stalls(options) => stalls::run(&options),
        Command::Soak(options) => soak::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Programs(options) => programs::run(&options),
        Command::Selftests(options) => selftests::run(&options),
        Command::Compare(options) => compare::run(&options),
        Command::Host(options) => hosts::run(&options),
        Command::Check(options) => check::run(&options),
        Command::Image(options) => image::run(&options),
        Command::Sizes => sizes::run(),
        Command::Licences => licences::check().map(|()| 0),
    }
}

/// What a run is made of.
fn parts(options: &Run) -> Parts {
    Parts {
        kernel: options.build.output(),
        presets: root().join("presets"),
        ..Parts::in_folder(&output_folder())
    }
}

fn run(options: &Run) -> Result<i32> {
    if options.run.list {
        return roundtable::run::run(&options.run, &parts(options));
    }
    setup::qemu()?;
    setup::host_libc()?;
    if needs_busybox(&options.run) {
        setup::busybox()?;
    }
    match options.run.kernel {
        Kernel::Roundtable => build::kernel(&options.build, &options.build.output())?,
        Kernel::Linux => linux::fetch()?,
        Kernel::File(_) => {}
    }
    if options.run.beside_linux {
        linux::fetch()?;
    }
    build::programs()?;
    let parts = parts(options);
    if options.run.program.first().is_some_and(|name| name == build::HOST_COMMAND) {
        build::copy(&build::host_command()?, &parts.programs.join(build::HOST_COMMAND))?;
    }
    roundtable::run::run(&options.run, &parts)
}

/// Whether the program is the host's busybox: the README's first one, which a fresh host does not have.
fn needs_busybox(options: &RunOptions) -> bool {
    let has_own = options.root.is_some() || !options.packages.is_empty();
    !has_own && options.program.first().is_some_and(|name| name == "busybox")
}

/// The workspace's folder.
fn root() -> PathBuf {
    // What cargo says when it runs this comes first: a copied `target/` has a binary that was built elsewhere and counts as fresh.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(package).parent().expect("xtask lies in the workspace").to_path_buf()
}

/// Where the built things go.
fn output_folder() -> PathBuf {
    root().join("target/roundtable")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Box<Run>, clap::Error> {
        // A shell takes its words apart.
        let script = format!("for word in {line}; do echo \"$word\"; done");
        let output = std::process::Command::new("sh").args(["-c", &script]).output().expect("sh starts");
        let words = String::from_utf8(output.stdout).unwrap();
        let cli = Cli::try_parse_from(std::iter::once("xtask").chain(words.lines()))?;
        match cli.command {
            Command::Run(options) => Ok(options),
            _ => panic!("{line}"),
        }
    }

    /// Each line of the README that runs something is understood, and the host gets a busybox for those that run one.
    #[test]
    fn the_readme_says_what_can_be_typed() {
        let mut lines = Vec::new();
        for document in ["README.md", "docs/programs.md"] {
            let text = std::fs::read_to_string(root().join(document)).unwrap();
            let commands =
                text.lines().filter_map(|line| line.strip_prefix("$ ")?.split_once("cargo xtask "));
            lines.extend(commands.map(|(_, line)| line.to_string()));
        }
        let runs: Vec<&String> = lines.iter().filter(|line| line.starts_with("run")).collect();
        assert!(runs.len() > 5, "{lines:?}");
        for line in runs {
            let options = parsed(line).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert_eq!(needs_busybox(&options.run), line.contains("-- busybox"), "{line}");
        }
        assert!(!needs_busybox(&parsed("run --package redis -- busybox").unwrap().run));
        // Each preset has its line.
        for (name, _) in roundtable::preset::Preset::list(&root().join("presets")).unwrap() {
            assert!(lines.iter().any(|line| line.ends_with(&format!("-- {name}"))), "{name}");
        }
    }
}

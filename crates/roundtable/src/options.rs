//! The options of a run, the same for `cargo xtask run` and `roundtable run`.

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::Args;

use crate::network::{Forward, Network};
use crate::size::Size;
use crate::volume::Volume;

/// Which kernel to run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Ours.
    Roundtable,
    /// Debian's Linux.
    Linux,
    /// This file.
    File(PathBuf),
}

fn parse_kernel(text: &str) -> Result<Kernel, String> {
    match text {
        "roundtable" => Ok(Kernel::Roundtable),
        "linux" => Ok(Kernel::Linux),
        path if path.contains('/') => Ok(Kernel::File(path.into())),
        _ => Err("it is 'roundtable', 'linux', or the path of a kernel (with a slash in it)".into()),
    }
}

/// What to run, and on which machine.
#[derive(Args, Clone, Debug)]
pub struct RunOptions {
    /// Number of CPUs
    #[arg(short = 'c', long, value_name = "N", default_value = "2", help_heading = "Machine")]
    pub cpus: NonZeroU32,

    /// Memory, such as 512M or 8G [default: what the huge pages need, and room for the programs]
    #[arg(short, long, value_name = "SIZE", help_heading = "Machine")]
    pub memory: Option<Size>,

    /// Number of memory nodes (NUMA), among which memory and CPUs are divided
    #[arg(long, value_name = "N", default_value = "1", help_heading = "Machine")]
    pub nodes: NonZeroU32,

    /// QEMU's machine type with its settings: pc, q35, microvm, or such as microvm,acpi=off
    #[arg(long, value_name = "TYPE", help_heading = "Machine")]
    pub machine: Option<String>,

    /// The machine's firmware, a file or a name that QEMU knows: bios-microvm.bin (SeaBIOS) in a microvm, which has
    /// qboot without
    #[arg(long, value_name = "FILE", help_heading = "Machine")]
    pub firmware: Option<String>,

    /// Count instructions instead of time, so that runs are alike; only with one CPU
    #[arg(long, help_heading = "Machine")]
    pub icount: bool,

    /// A network card in the guest, which reaches the host at 10.0.2.2 and what the host reaches
    #[arg(long, help_heading = "Machine")]
    pub network: bool,

    /// Lead a port of this machine to one of the guest's; with /udp behind it one of UDP. May be given several times;
    /// --network is part of it
    #[arg(long = "forward", value_name = "[ADDRESS:]HOSTPORT:PORT", help_heading = "Machine")]
    pub forwards: Vec<Forward>,

    /// The kernel to run on: roundtable, linux (Debian's, to compare), or the path of a kernel
    #[arg(
        short, long, value_name = "KERNEL", default_value = "roundtable", value_parser = parse_kernel,
        help_heading = "Machine"
    )]
    pub kernel: Kernel,

    /// Run a preset on Debian's Linux too, in the same machine, and print both kernels' figures as one table
    #[arg(long, conflicts_with = "kernel", help_heading = "Machine")]
    pub beside_linux: bool,

    /// Kernel parameter, such as hugetlb_sharing=vma-lock; may be given several times
    #[arg(short, long = "append", value_name = "PARAMETER", help_heading = "Machine")]
    pub parameters: Vec<String>,

    /// Huge pages of 2 MiB in the pool at boot [default: 0; for the demonstration what it needs]
    #[arg(long, value_name = "N", help_heading = "Huge pages")]
    pub huge_2m: Option<u64>,

    /// Huge pages of 1 GiB in the pool at boot
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Huge pages")]
    pub huge_1g: u64,

    /// Run in this root file system, as it is: a folder (what debootstrap makes), a tarball, an OCI layout, or an
    /// image that docker or podman saved; without a PROGRAM the image's own command runs
    #[arg(long, value_name = "PATH", help_heading = "Job")]
    pub root: Option<PathBuf>,

    /// Put a Debian package into the guest with all that it depends on, fetched by apt and not installed on the
    /// host; may name several
    #[arg(long = "package", value_name = "NAME", num_args = 1.., help_heading = "Job")]
    pub packages: Vec<String>,

    /// Run the job as this user: a name or a number, and a group if you like. With --package one that the packages
    /// do not know is made
    #[arg(short, long, value_name = "USER[:GROUP]", help_heading = "Job")]
    pub user: Option<String>,

    /// Put a file or folder into the guest, at the same path or at GUEST; may be given several times
    #[arg(short, long = "file", value_name = "HOST[:GUEST]", help_heading = "Job")]
    pub files: Vec<String>,

    /// Show a folder of this machine in the guest, where programs read it and, without :ro, write it; may be given
    /// several times. What fsync(2) has confirmed is on this machine's disk
    #[arg(long = "volume", value_name = "HOST:GUEST[:ro]", help_heading = "Job")]
    pub volumes: Vec<Volume>,

    /// Set a variable in the job's environment; may be given several times
    #[arg(short, long = "env", value_name = "NAME=VALUE", help_heading = "Job")]
    pub environment: Vec<String>,

    /// The job's working directory in the guest [default: /, or what the image says]
    #[arg(short, long, visible_alias = "directory", value_name = "PATH", help_heading = "Job")]
    pub workdir: Option<String>,

    /// End the machine after so many seconds, with exit status 124
    #[arg(short, long, value_name = "SECONDS", help_heading = "Job")]
    pub time_limit: Option<u64>,

    /// Show all of the console, the kernel's start and end too
    #[arg(short, long, help_heading = "Job")]
    pub verbose: bool,

    /// Tell what programs ask of the kernel that it has not: system calls, ioctls, socket families, files of /proc
    /// and /sys; as it happens, and in a summary at the end
    #[arg(long, help_heading = "Job")]
    pub missing: bool,

    /// Processes of the demonstration that share one file
    #[arg(long, value_name = "N", default_value = "1000", help_heading = "Demonstration")]
    pub sharers: NonZeroU32,

    /// Size of the file that the demonstration shares
    #[arg(long, value_name = "SIZE", default_value = "1G", help_heading = "Demonstration")]
    pub size: Size,

    /// The demonstration shares a file on tmpfs with pages of 4 KiB, not one of huge pages
    #[arg(long, help_heading = "Demonstration")]
    pub base_pages: bool,

    /// List the presets: what runs by one name, such as postgres
    #[arg(long, help_heading = "Job")]
    pub list: bool,

    /// The program to run as the job, and its arguments: a preset, a path on the host, one of ours, or a name in
    /// the PATH. Without one the demonstration runs: many processes that share one huge-page table
    #[arg(last = true, value_name = "PROGRAM [ARGS]")]
    pub program: Vec<OsString>,
}

/// Files of so many bytes have room in any machine that runs programs.
const USUAL_FILES: u64 = 32 << 20;

impl RunOptions {
    /// Whether the demonstration runs rather than a program of the user's.
    pub fn is_demonstration(&self) -> bool {
        self.program.is_empty() && self.root.is_none() && self.packages.is_empty()
    }

    /// The network, when one was asked for.
    pub fn network(&self) -> Option<Network> {
        let wanted = self.network || !self.forwards.is_empty();
        wanted.then(|| Network { forwards: self.forwards.clone() })
    }

    /// Huge pages of 2 MiB at boot: what was asked for, or what the demonstration's file takes.
    pub fn pages_2m(&self) -> u64 {
        let is_huge = self.is_demonstration() && !self.base_pages;
        let demonstration = if is_huge { self.size.0.div_ceil(2 << 20) } else { 0 };
        self.huge_2m.unwrap_or(demonstration)
    }

    /// Bytes of all huge pages at boot; more than any machine has where that is no number.
    pub fn huge_bytes(&self) -> u64 {
        self.pages_2m().saturating_mul(2 << 20).saturating_add(self.huge_1g.saturating_mul(1 << 30))
    }

    /// The machine's memory: what was asked for, or the huge pages and room for the programs and for files of
    /// so many bytes, which are there twice while they are unpacked.
    pub fn memory(&self, files: u64) -> Size {
        self.memory.unwrap_or_else(|| {
            // Measured: a process of the demonstration takes below 200 KiB.
            let programs =
                if self.is_demonstration() { u64::from(self.sharers.get()) * (256 << 10) } else { 0 };
            // A process with tables of its own has one for every 512 pages.
            let base = match self.is_demonstration() && self.base_pages {
                true => {
                    self.size.0.saturating_add(u64::from(self.sharers.get()).saturating_mul(self.size.0 >> 9))
                }
                false => 0,
            };
            // What is usual in every guest is in that.
            let files = if files > USUAL_FILES { files.saturating_mul(2) } else { 0 };
            let parts = [programs, base, files, Size::gibibytes(1).0];
            let total = parts.into_iter().fold(self.huge_bytes(), u64::saturating_add);
            Size(total.checked_next_multiple_of(Size::mebibytes(256).0).unwrap_or(u64::MAX))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[derive(Parser, Debug)]
    struct Cli {
        #[command(flatten)]
        run: RunOptions,
    }

    fn parse(line: &str) -> Result<RunOptions, clap::Error> {
        Cli::try_parse_from(std::iter::once("run").chain(line.split_whitespace())).map(|cli| cli.run)
    }

    #[test]
    fn the_options_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn without_a_program_the_demonstration_runs() {
        let run = parse("").unwrap();
        assert!(run.is_demonstration());
        assert_eq!((run.cpus.get(), run.sharers.get(), run.pages_2m()), (2, 1000, 512));
        assert_eq!(run.memory(0), Size::mebibytes(2304));
        assert_eq!(parse("--sharers 10000").unwrap().memory(0), Size::mebibytes(4608));
    }

    /// They are refused with a sentence, by the size of the machine.
    #[test]
    fn sizes_that_no_machine_has_are_no_panic() {
        for line in [
            "--size 16777215T",
            "--size 16777215T --base-pages --sharers 4294967295",
            "--huge-2m 18446744073709551615",
            "--huge-1g 18446744073709551615 -- ls",
        ] {
            let run = parse(line).unwrap();
            assert!(run.memory(u64::MAX) >= run.memory(0) && run.memory(0).0 > 1 << 60, "{line}");
        }
    }

    #[test]
    fn everything_behind_the_dashes_is_the_programs() {
        let run = parse("-c 4 --huge-1g 1 -- /bin/ls -c --help").unwrap();
        assert_eq!(run.cpus.get(), 4);
        assert_eq!(run.program, ["/bin/ls", "-c", "--help"]);
        assert_eq!(run.memory(0), Size::gibibytes(2));
        assert_eq!(run.pages_2m(), 0);
    }

    #[test]
    fn a_root_or_packages_are_no_demonstration() {
        let run = parse("--root image.tar").unwrap();
        assert!(!run.is_demonstration() && run.program.is_empty());
        assert_eq!(run.memory(300 << 20), Size::mebibytes(1792));
        let run = parse("--package redis-server redis-tools --user redis -- redis-server").unwrap();
        assert_eq!(run.packages, ["redis-server", "redis-tools"]);
        assert_eq!(run.program, ["redis-server"]);
        assert!(parse("--package").is_err());
    }

    #[test]
    fn a_forwarded_port_brings_a_network() {
        assert_eq!(parse("").unwrap().network(), None);
        assert_eq!(parse("--network").unwrap().network(), Some(Network::default()));
        let run = parse("--forward 5432:5432 --forward 53:53/udp").unwrap();
        assert_eq!(run.network().unwrap().forwards.len(), 2);
    }

    #[test]
    fn a_kernel_is_a_name_or_a_path() {
        assert_eq!(parse("").unwrap().kernel, Kernel::Roundtable);
        assert_eq!(parse("-k linux").unwrap().kernel, Kernel::Linux);
        assert_eq!(parse("-k ./vmlinuz").unwrap().kernel, Kernel::File("./vmlinuz".into()));
        assert!(parse("-k minix").is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["-c 0", "-m 1X", "--sharers 0", "--size big", "ls"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}

//! Kernels that are not ours and host the library: `cargo xtask host`.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use roundtable::machine::QEMU;

use crate::step::Step;
use crate::test::TestOptions;
use crate::test::report::Report;
use crate::toolchain::{self, TARGET, Toolchain};
use crate::{debian, output_folder, root, setup};

/// What to run.
#[derive(Args, Clone, Debug)]
pub struct HostOptions {
    /// The kernel that hosts the library
    pub host: Host,
    /// What it runs on
    #[arg(long, value_name = "ARCH", default_value = "x86-64")]
    pub arch: Arch,
}

/// A kernel that hosts the library.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Host {
    /// Asterinas' OSTD, from the registry
    Ostd,
}

/// What a host runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arch {
    /// A PC of the q35 kind
    #[value(name = "x86-64")]
    X86_64,
    /// QEMU's virt board with OpenSBI, four levels of page tables (Sv48)
    Riscv64,
    /// The same with three levels (Sv39); wants QEMU 8.1, which can take Sv48 away
    Riscv64Sv39,
}

/// What RISC-V is called where OSTD depends on crates for it.
const RISCV: &str = "riscv64imac-unknown-none-elf";
const QEMU_RISCV: &str = "qemu-system-riscv64";
const BY_HAND: &str = "QEMU for RISC-V cannot be installed here: install it by hand, so that `qemu-system-riscv64` is in the PATH";
/// On two idle CPUs it takes ten seconds. With twenty others on them it took 240.
const LIMIT: Duration = Duration::from_secs(900);
/// The machine that an ELF file is for, and 32-bit x86: what QEMU wants of a kernel that boots by multiboot.
const E_MACHINE: u64 = 18;
const EM_386: [u8; 2] = 3u16.to_le_bytes();

impl Arch {
    fn target(self) -> &'static str {
        match self {
            Arch::X86_64 => TARGET,
            Arch::Riscv64 | Arch::Riscv64Sv39 => RISCV,
        }
    }

    /// The name of its test.
    fn test(self) -> &'static str {
        match self {
            Arch::X86_64 => "hosts::ostd",
            Arch::Riscv64 => "hosts::ostd-riscv64",
            Arch::Riscv64Sv39 => "hosts::ostd-riscv64-sv39",
        }
    }

    fn machine(self) -> Command {
        let (program, arguments): (_, &[&str]) = match self {
            // With less memory the ACPI tables lie outside OSTD's linear map.
            Arch::X86_64 => (
                QEMU,
                &[
                    "-M",
                    "q35",
                    "-cpu",
                    "max",
                    "-m",
                    "4G",
                    "-device",
                    "isa-debug-exit,iobase=0xf4,iosize=0x04",
                ],
            ),
            Arch::Riscv64 => (QEMU_RISCV, &["-M", "virt", "-cpu", "rv64", "-m", "2G"]),
            // OSTD takes four levels where there are four, whatever it was built for.
            Arch::Riscv64Sv39 => {
                (QEMU_RISCV, &["-M", "virt", "-cpu", "rv64,sv39=on,sv48=off,sv57=off", "-m", "2G"])
            }
        };
        let mut command = Command::new(program);
        command.args(arguments);
        command
    }

    /// The status with which QEMU ends when the host was content.
    fn success(self) -> i32 {
        match self {
            // What the exit device makes of OSTD's success.
            Arch::X86_64 => 33,
            Arch::Riscv64 | Arch::Riscv64Sv39 => 0,
        }
    }

    /// The compiler, when it and the machine can be had at once; else what is missing.
    fn at_hand(self) -> Result<Toolchain, &'static str> {
        if self == Arch::X86_64 {
            let no_rust = "no Rust for the bare machine is installed";
            return if toolchain::is_at_hand() {
                toolchain::find_or_install().map_err(|_| no_rust)
            } else {
                Err(no_rust)
            };
        }
        let toolchain = toolchain::for_bare(RISCV).ok_or("no Rust for bare RISC-V is installed")?;
        if !debian::has_program(QEMU_RISCV) {
            return Err("QEMU for RISC-V is not installed");
        }
        if self == Arch::Riscv64Sv39 && !can_take_sv48_away() {
            return Err("this QEMU cannot take Sv48 away (8.1 can)");
        }
        Ok(toolchain)
    }

    /// Installs what is missing.
    fn set_up(self) -> Result<Toolchain> {
        if self == Arch::X86_64 {
            setup::qemu()?;
            return toolchain::find_or_install();
        }
        if !debian::has_program(QEMU_RISCV) {
            // The firmware comes with it as a recommendation only.
            let packages = ["qemu-system-misc", "opensbi"];
            debian::install(&packages, "QEMU for RISC-V and its firmware").context(BY_HAND)?;
        }
        ensure!(
            self != Arch::Riscv64Sv39 || can_take_sv48_away(),
            "this QEMU cannot take Sv48 away; 8.1 and later can"
        );
        toolchain::for_bare_or_install(RISCV)
    }
}

/// Whether QEMU knows a CPU of RISC-V without Sv48.
fn can_take_sv48_away() -> bool {
    let output = Command::new(QEMU_RISCV).arg("--version").output();
    let Ok(output) = output else { return false };
    let text = String::from_utf8_lossy(&output.stdout);
    let mut numbers = text
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
        .unwrap_or_default()
        .split('.')
        .map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (8, 1)
}

/// Builds and boots a host, and prints its table.
pub fn run(options: &HostOptions) -> Result<i32> {
    match options.host {
        Host::Ostd => {
            let toolchain = options.arch.set_up()?;
            let (text, result) = boot(options.arch, &build(options.arch, &toolchain)?)?;
            print!("{text}");
            result?;
            Ok(0)
        }
    }
}

/// Runs the host as a test on each architecture that is asked for, where its crates can be had.
pub fn test(options: &TestOptions, report: &mut Report) {
    for arch in Arch::value_variants().iter().filter(|arch| options.wants(arch.test())) {
        report.timed(arch.test(), |report| test_one(*arch, report));
    }
}

fn test_one(arch: Arch, report: &mut Report) {
    let name = arch.test();
    let toolchain = match arch.at_hand() {
        Ok(toolchain) => toolchain,
        Err(missing) => return report.skip(name, missing),
    };
    report.busy_with(name);
    if let Err(error) = fetch(arch, &toolchain) {
        report.skip(name, &format!("OSTD cannot be fetched: {error:#}").replace('\n', " "));
        return;
    }
    let start = Instant::now();
    match build(arch, &toolchain).and_then(|kernel| boot(arch, &kernel)) {
        Ok((_, Ok(()))) => report.pass(name, Some(start.elapsed())),
        Ok((text, Err(error))) => report.fail(name, &format!("{error:#}"), &text),
        Err(error) => report.fail(name, "it does not build or boot", &format!("{error:#}")),
    }
}

/// The folder of OSTD's workspace.
pub fn ostd() -> PathBuf {
    root().join("hosts/ostd")
}

fn cargo(arch: Arch, toolchain: &Toolchain, subcommand: &str) -> Command {
    let mut command = toolchain.cargo_for(subcommand, arch.target());
    // OSTD uses what is not stable yet. In its folder cargo finds the flags that OSTD is linked with.
    command.env("RUSTC_BOOTSTRAP", "1").current_dir(ostd()).arg("--locked");
    command
}

fn fetch(arch: Arch, toolchain: &Toolchain) -> Result<()> {
    let output =
        cargo(arch, toolchain, "fetch").stdin(Stdio::null()).output().context("cargo does not start")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Builds the kernel; where it is.
fn build(arch: Arch, toolchain: &Toolchain) -> Result<PathBuf> {
    // A folder of its own for each compiler: it takes minutes.
    let folder = root().join("target").join(match toolchain {
        Toolchain::Own => "hosts-ostd",
        Toolchain::Debian(_) => "hosts-ostd-debian",
    });
    let mut command = cargo(arch, toolchain, "build");
    command.arg("--target-dir").arg(&folder);
    if arch == Arch::Riscv64Sv39 {
        command.args(["--features", "sv39"]);
    }
    let step = Step::new(
        &format!("build hosts/ostd for {}", arch.target()),
        "the library on Asterinas' OSTD; minutes the first time",
    );
    step.run(&mut command, Duration::from_secs(1800)).context("hosts/ostd does not build")?;
    drop(step);
    let output = output_folder().join(format!("{}.elf", arch.test().replace("::", "-")));
    fs::create_dir_all(output_folder())?;
    fs::copy(folder.join(arch.target()).join("debug/roundtable-ostd"), &output)
        .with_context(|| output.display().to_string())?;
    if arch == Arch::X86_64 {
        let mut file = File::options().write(true).open(&output)?;
        file.seek(SeekFrom::Start(E_MACHINE))?;
        file.write_all(&EM_386)?;
    }
    Ok(output)
}

/// Boots it; what it printed, and whether it was content.
fn boot(arch: Arch, kernel: &Path) -> Result<(String, Result<()>)> {
    let mut child = arch
        .machine()
        .args([
            "-accel",
            "tcg,thread=multi",
            "-smp",
            "2",
            "-display",
            "none",
            "-no-reboot",
            "-monitor",
            "none",
        ])
        .args(["-serial", "stdio", "-kernel"])
        .arg(kernel)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("QEMU does not start")?;
    let mut output = child.stdout.take().expect("piped above");
    let (sender, text) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = output.read_to_end(&mut bytes);
        // Nobody waits any more when the machine was ended.
        let _ = sender.send(());
        (bytes, read)
    });
    let in_time = text.recv_timeout(LIMIT).is_ok();
    if !in_time {
        child.kill()?;
    }
    let status = child.wait()?;
    let (bytes, read) = reader.join().expect("a panic ends the program");
    read.context("QEMU's output")?;
    let text = String::from_utf8_lossy(&bytes).replace('\r', "");
    let result = match status.code() {
        _ if !in_time => Err(anyhow::anyhow!("it did not end within {} s", LIMIT.as_secs())),
        Some(status) if status == arch.success() && text.contains("all is as promised") => Ok(()),
        _ => Err(anyhow::anyhow!("it failed: {status}")),
    };
    Ok((text, result))
}

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
use crate::test::report::Report;
use crate::toolchain::{self, TARGET};
use crate::{output_folder, root, setup};

/// What to run.
#[derive(Args, Clone, Debug)]
pub struct HostOptions {
    /// The kernel that hosts the library
    pub host: Host,
}

/// A kernel that hosts the library.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Host {
    /// Asterinas' OSTD, from the registry
    Ostd,
}

/// What QEMU's exit device makes of OSTD's success.
const SUCCESS: i32 = 33;
/// On two idle CPUs it takes ten seconds. With twenty others on them it took 240.
const LIMIT: Duration = Duration::from_secs(900);
/// The machine that an ELF file is for, and 32-bit x86: what QEMU wants of a kernel that boots by multiboot.
const E_MACHINE: u64 = 18;
const EM_386: [u8; 2] = 3u16.to_le_bytes();

/// Builds and boots a host, and prints its table.
pub fn run(options: &HostOptions) -> Result<i32> {
    match options.host {
        Host::Ostd => {
            setup::qemu()?;
            let toolchain = toolchain::find_or_install()?;
            let (text, result) = boot(&build(&toolchain)?)?;
            print!("{text}");
            result?;
            Ok(0)
        }
    }
}

/// Runs the host as a test, where its crates can be had.
pub fn test(report: &mut Report) -> Result<()> {
    const NAME: &str = "hosts::ostd";
    if !toolchain::is_at_hand() {
        report.skip(NAME, "no Rust for the bare machine is installed");
        return Ok(());
    }
    let toolchain = toolchain::find_or_install()?;
    report.busy_with(NAME);
    if let Err(error) = fetch(&toolchain) {
        report.skip(NAME, &format!("OSTD cannot be fetched: {error:#}").replace('\n', " "));
        return Ok(());
    }
    let start = Instant::now();
    match build(&toolchain).and_then(|kernel| boot(&kernel)) {
        Ok((_, Ok(()))) => report.pass(NAME, Some(start.elapsed())),
        Ok((text, Err(error))) => report.fail(NAME, &format!("{error:#}"), &text),
        Err(error) => report.fail(NAME, "it does not build or boot", &format!("{error:#}")),
    }
    Ok(())
}

/// The folder of OSTD's workspace.
pub fn ostd() -> PathBuf {
    root().join("hosts/ostd")
}

fn cargo(toolchain: &toolchain::Toolchain, subcommand: &str) -> Command {
    let mut command = toolchain.cargo(subcommand);
    // OSTD uses what is not stable yet. In its folder cargo finds the flags that OSTD is linked with.
    command.env("RUSTC_BOOTSTRAP", "1").current_dir(ostd()).arg("--locked");
    command
}

fn fetch(toolchain: &toolchain::Toolchain) -> Result<()> {
    let output = cargo(toolchain, "fetch").stdin(Stdio::null()).output().context("cargo does not start")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Builds the kernel; where it is.
fn build(toolchain: &toolchain::Toolchain) -> Result<PathBuf> {
    // A folder of its own for each compiler: it takes minutes.
    let folder = root().join("target").join(match toolchain {
        toolchain::Toolchain::Own => "hosts-ostd",
        toolchain::Toolchain::Debian(_) => "hosts-ostd-debian",
    });
    let mut command = cargo(toolchain, "build");
    command.arg("--target-dir").arg(&folder);
    let step = Step::new("build hosts/ostd", "the library on Asterinas' OSTD; minutes the first time");
    step.run(&mut command, Duration::from_secs(1800)).context("hosts/ostd does not build")?;
    drop(step);
    let output = output_folder().join("host-ostd.elf");
    fs::create_dir_all(output_folder())?;
    fs::copy(folder.join(TARGET).join("debug/roundtable-ostd"), &output)
        .with_context(|| output.display().to_string())?;
    let mut file = File::options().write(true).open(&output)?;
    file.seek(SeekFrom::Start(E_MACHINE))?;
    file.write_all(&EM_386)?;
    Ok(output)
}

/// Boots it; what it printed, and whether it was content.
fn boot(kernel: &Path) -> Result<(String, Result<()>)> {
    let mut child = Command::new(QEMU)
        // With less memory the ACPI tables lie outside OSTD's linear map.
        .args(["-accel", "tcg,thread=multi", "-M", "q35", "-cpu", "max", "-smp", "2", "-m", "4G"])
        .args(["-display", "none", "-no-reboot", "-monitor", "none", "-serial", "stdio"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04", "-kernel"])
        .arg(kernel)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("{QEMU} does not start"))?;
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
        Some(SUCCESS) if text.contains("all is as promised") => Ok(()),
        _ => Err(anyhow::anyhow!("it failed: {status}")),
    };
    Ok((text, result))
}

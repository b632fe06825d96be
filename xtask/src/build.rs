//! Builds the kernel and the Linux programs into target/roundtable.

use std::collections::BTreeSet;
use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use cargo_metadata::{Message, MetadataCommand};
use clap::Args;

use crate::toolchain::{self, TARGET};
use crate::{output_folder, root, setup};

/// How the kernel is built.
#[derive(Args, Clone, Debug, Default)]
pub struct BuildOptions {
    /// Optimise the kernel; the default
    #[arg(long, help_heading = "Kernel build")]
    pub release: bool,

    /// Optimise the kernel and keep its debug assertions and checkers, as the tests do
    #[arg(long, conflicts_with = "release", help_heading = "Kernel build")]
    pub checked: bool,

    /// Build the kernel for a debugger
    #[arg(long, conflicts_with_all = ["release", "checked"], help_heading = "Kernel build")]
    pub debug: bool,

    /// Build the kernel with the protocol that corrupts memory, to see it do so (kernel-lab.elf)
    #[arg(long, help_heading = "Kernel build")]
    pub lab: bool,

    /// Features of the kernel to build with
    #[arg(long, value_name = "LIST", help_heading = "Kernel build")]
    pub features: Option<String>,
}

impl BuildOptions {
    /// The tests' kernel. It has the protocol that fails: a third kernel for the few tests of that would cost another build.
    pub fn checked() -> BuildOptions {
        BuildOptions { checked: true, lab: true, ..BuildOptions::default() }
    }

    /// Where the built kernel goes: `kernel.elf` is never a laboratory's.
    pub fn output(&self) -> PathBuf {
        output_folder().join(if self.lab { "kernel-lab.elf" } else { "kernel.elf" })
    }

    /// Cargo's profile and the folder that it builds into.
    fn profile(&self) -> (&'static str, &'static str) {
        match (self.checked, self.debug) {
            (true, _) => ("checked", "checked"),
            (_, true) => ("dev", "debug"),
            _ => ("release", "release"),
        }
    }
}

/// Where [`laboratory`] leaves its kernel.
pub fn laboratory_output() -> PathBuf {
    output_folder().join("kernel-unfenced.elf")
}

/// Builds the kernel as it is shipped, but with the protocol that corrupts memory: without assertions, so that programs come to see
/// what it does.
pub fn laboratory() -> Result<()> {
    kernel(&BuildOptions { lab: true, ..BuildOptions::default() }, &laboratory_output())
}

/// Builds the kernel and leaves it at `output`.
pub fn kernel(options: &BuildOptions, output: &Path) -> Result<()> {
    let toolchain = toolchain::find_or_install()?;
    let (profile, folder) = options.profile();
    // A folder of its own: another compiler in the same one would rebuild the host's programs every time.
    let target_folder = root().join("target/kernel");
    let mut features: Vec<&str> = options.features.iter().map(String::as_str).collect();
    if options.lab {
        features.push("lab");
    }
    if options.checked {
        features.push("lockdep");
    }
    let mut command = toolchain.cargo("build");
    command.args(["--package", "roundtable-kernel", "--profile", profile]);
    command.arg("--target-dir").arg(&target_folder);
    if !features.is_empty() {
        command.args(["--features", &features.join(",")]);
    }
    run(&mut command, "the kernel does not build")?;
    copy(&target_folder.join(TARGET).join(folder).join("roundtable-kernel"), output)
}

/// Builds the Linux programs, static, and leaves them in `target/roundtable/programs`; gives their names.
pub fn programs() -> Result<BTreeSet<String>> {
    setup::host_libc()?;
    let folder = output_folder().join("programs");
    let mut names = BTreeSet::new();
    for path in build_programs(static_cargo("build").arg("--bins"))? {
        let name = file_name(&path)?;
        copy(&path, &folder.join(&name))?;
        names.insert(name);
    }
    // What only the tests start stays: a test that runs `cargo xtask run` comes here while others boot with it.
    let is_helper = |name: &str| {
        [".new", "-non-pie", "-dynamic"].iter().any(|end| name.ends_with(end)) || name == HOST_COMMAND
    };
    for entry in fs::read_dir(&folder)?.flatten() {
        if entry.file_name().to_str().is_none_or(|name| !names.contains(name) && !is_helper(name)) {
            // Another may just have removed it.
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
    }
    Ok(names)
}

/// Puts the presets beside the programs, where the host command looks for them.
pub fn presets() -> Result<()> {
    let folder = output_folder().join("presets");
    if folder.is_dir() {
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    for entry in fs::read_dir(root().join("presets"))?.flatten() {
        copy(&entry.path(), &folder.join(entry.file_name()))?;
    }
    Ok(())
}

/// Builds the host command, which is a Linux program as others are.
pub fn host_command() -> Result<PathBuf> {
    let mut command = toolchain::own_cargo("build");
    // This program's package as well: then it is made of what this program is made of, with the same features, and that is built.
    command.args(["--package", "roundtable", "--package", "xtask", "--bin", HOST_COMMAND]);
    run(&mut command, "the host command does not build")?;
    Ok(root().join("target/debug").join(HOST_COMMAND))
}

/// Builds the plugin of QEMU that profiles.
pub fn profile_plugin() -> Result<PathBuf> {
    let mut command = toolchain::own_cargo("build");
    command.args(["--package", "profile-plugin", "--target-dir"]).arg(root().join("target"));
    run(&mut command, "the plugin of QEMU does not build")?;
    Ok(root().join("target/debug/libprofile_plugin.so"))
}

/// The name of the host command.
pub const HOST_COMMAND: &str = "roundtable";

/// Builds what the tests start besides the static programs: the host command, and some programs in every other kind that a kernel has to
/// load; adds their names.
pub fn helpers_of_tests(names: &mut BTreeSet<String>) -> Result<()> {
    let folder = output_folder().join("programs");
    let mut keep = |path: &Path, kind: &str| -> Result<()> {
        let name = format!("{}{kind}", file_name(path)?);
        copy(path, &folder.join(&name))?;
        names.insert(name);
        Ok(())
    };
    keep(&host_command()?, "")?;
    for name in programs_of_every_kind()? {
        // The flags are for the program alone: what it is made of is built already, as a part of the static programs or of the host's
        // tests, and serves for either kind.
        let fixed = "-Crelocation-model=static";
        for path in build_programs(static_cargo("rustc").args(["--bin", &name, "--", fixed]))? {
            keep(&path, "-non-pie")?;
        }
        for (kind, flags) in [("-dynamic", &[][..]), ("-dynamic-non-pie", &[fixed])] {
            let mut command = programs_cargo("rustc");
            command.args(["--bin", &name, "--", "-Cstrip=debuginfo"]).args(flags);
            for path in build_programs(&mut command)? {
                keep(&path, kind)?;
            }
        }
    }
    Ok(())
}

/// A cargo command that builds some of the Linux programs, as the host's programs are built.
fn programs_cargo(subcommand: &str) -> Command {
    let mut command = toolchain::own_cargo(subcommand);
    command.args(["--package", "roundtable-programs", "--message-format=json-render-diagnostics"]);
    command
}

/// A cargo command that builds some of the Linux programs static.
fn static_cargo(subcommand: &str) -> Command {
    let mut command = programs_cargo(subcommand);
    // With a target named, the flags are not for build scripts and macros.
    command
        .args(["--target", "x86_64-unknown-linux-gnu", "--target-dir"])
        .arg(root().join("target/programs"));
    command.args(["--profile", "programs"]).env("RUSTFLAGS", "-Ctarget-feature=+crt-static");
    command
}

/// Runs such a command; gives the programs that it leaves.
fn build_programs(command: &mut Command) -> Result<Vec<PathBuf>> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cargo does not start")?;
    let messages = BufReader::new(child.stdout.take().expect("piped above"));
    let mut paths = Vec::new();
    for message in Message::parse_stream(messages) {
        if let Message::CompilerArtifact(artifact) = message.context("cargo's messages")? {
            paths.extend(artifact.executable.map(PathBuf::from));
        }
    }
    if !child.wait()?.success() {
        bail!("the Linux programs do not build");
    }
    Ok(paths)
}

/// The programs that `programs/Cargo.toml` lists under `package.metadata.roundtable.every-kind`.
fn programs_of_every_kind() -> Result<Vec<String>> {
    let metadata = MetadataCommand::new().current_dir(root()).no_deps().exec().context("cargo metadata")?;
    let package = metadata.packages.iter().find(|package| package.name.as_str() == "roundtable-programs");
    let list =
        package.and_then(|package| package.metadata.pointer("/roundtable/every-kind")?.as_array().cloned());
    Ok(list.unwrap_or_default().iter().filter_map(|name| name.as_str().map(str::to_string)).collect())
}

fn file_name(path: &Path) -> Result<String> {
    Ok(path.file_name().and_then(|name| name.to_str()).context("a program without a name")?.to_string())
}

fn run(command: &mut Command, failure: &str) -> Result<()> {
    let status = command.status().context("cargo does not start")?;
    if !status.success() {
        bail!("{failure}");
    }
    Ok(())
}

/// Puts a built file in its place in one go, so that nobody sees half of it.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("a place without a folder")?;
    fs::create_dir_all(folder)?;
    // Two who copy at once do not write into one file.
    let half = to.with_extension(format!("{}.new", std::process::id()));
    fs::copy(from, &half).with_context(|| from.display().to_string())?;
    fs::rename(&half, to).with_context(|| to.display().to_string())
}

//! Rust for the bare machine: rustup's ready-made target, or Debian's compiler and its library sources.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::debian;
use crate::step::Step;

/// What the kernel is built for.
pub const TARGET: &str = "x86_64-unknown-none";
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
const BY_HAND: &str = "no Rust for the kernel can be installed here: run `rustup target add x86_64-unknown-none` by hand where rustup can download, \
    or install Debian's rustc-web, cargo-web and rust-web-src";

/// A Rust that can build the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// The one that built this program; it has the target.
    Own,
    /// Debian's packages; the core library is built along.
    Debian(Linker),
}

/// What links for the bare machine when the compiler brings nothing along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Linker {
    /// LLVM's, as rustc calls it: another toolchain's rust-lld.
    RustLld(PathBuf),
    /// GNU's, part of every host that links.
    Gnu,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Toolchain::Own => f.write_str("the host's toolchain"),
            Toolchain::Debian(Linker::RustLld(_)) => f.write_str("Debian's packages, linked by rust-lld"),
            Toolchain::Debian(Linker::Gnu) => f.write_str("Debian's packages, linked by GNU ld"),
        }
    }
}

/// Which Rust builds the kernel; installs one when there is none. `ROUNDTABLE_TOOLCHAIN` may ask for `own` or
/// `debian`, to try both ways on one machine.
pub fn find_or_install() -> Result<Toolchain> {
    let wish = std::env::var("ROUNDTABLE_TOOLCHAIN").ok();
    match wish.as_deref() {
        None | Some("") => {}
        Some("own") => {
            if !own_has_target() {
                rustup_target_add().context(BY_HAND)?;
            }
            return Ok(Toolchain::Own);
        }
        Some("debian") => return debian_toolchain(),
        Some(other) => bail!("ROUNDTABLE_TOOLCHAIN is {other}; it may be own or debian"),
    }
    if own_has_target() {
        return Ok(Toolchain::Own);
    }
    if debian_is_installed() {
        return debian_toolchain();
    }
    if debian::has_program("rustup") {
        match rustup_target_add() {
            Ok(()) => return Ok(Toolchain::Own),
            Err(error) => {
                eprintln!("xtask: rustup has no {TARGET} to give here, so Debian's Rust is used ({error:#})")
            }
        }
    }
    debian_toolchain()
}

/// Whether a Rust that can build for the bare machine is installed.
pub fn is_at_hand() -> bool {
    own_has_target() || debian_is_installed()
}

/// Whether the toolchain of the PATH has the target's libraries.
pub fn own_has_target() -> bool {
    own_has(TARGET)
}

fn own_has(target: &str) -> bool {
    sysroot("rustc").is_some_and(|root| root.join("lib/rustlib").join(target).join("lib").is_dir())
}

/// A Rust that is installed and can build for a bare machine of any architecture. It links with rust-lld, since GNU's linker of
/// the host knows the host's architecture only.
pub fn for_bare(target: &str) -> Option<Toolchain> {
    if own_has(target) {
        return Some(Toolchain::Own);
    }
    let linker = find_linker();
    (debian_is_installed() && matches!(linker, Linker::RustLld(_))).then_some(Toolchain::Debian(linker))
}

/// The same; installs Debian's when there is none.
pub fn for_bare_or_install(target: &str) -> Result<Toolchain> {
    if let Some(toolchain) = for_bare(target) {
        return Ok(toolchain);
    }
    match debian_toolchain()? {
        Toolchain::Debian(Linker::Gnu) => {
            bail!(
                "there is no linker for {target}: LLVM's is needed, which rustup's toolchains bring along as rust-lld"
            )
        }
        toolchain => Ok(toolchain),
    }
}

fn sysroot(rustc: &str) -> Option<PathBuf> {
    let output = Command::new(rustc).args(["--print", "sysroot"]).stderr(Stdio::null()).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(path.trim()))
}

fn rustup_target_add() -> Result<()> {
    let step = Step::new(&format!("rustup target add {TARGET}"), "the core library for the kernel");
    let mut command = Command::new("rustup");
    // Without a network rustup would try for minutes.
    command.args(["target", "add", TARGET]).env("RUSTUP_MAX_RETRIES", "0");
    let result = step.run(&mut command, Duration::from_secs(120));
    if let Err(error) = result {
        let text = format!("{error:#}");
        let line = text.lines().rev().find(|line| line.contains("error")).unwrap_or(&text);
        bail!("{}", line.trim_start_matches([' ', '|']).trim());
    }
    Ok(())
}

fn debian_is_installed() -> bool {
    debian::are_installed(&DEBIAN_PACKAGES) && Path::new("/usr/bin/cargo").is_file()
}

fn debian_toolchain() -> Result<Toolchain> {
    if !debian_is_installed() {
        debian::install(&DEBIAN_PACKAGES, "Rust that can build the core library for the kernel")
            .context(BY_HAND)?;
    }
    Ok(Toolchain::Debian(find_linker()))
}

fn find_linker() -> Linker {
    let lld = sysroot("rustc")
        .map(|root| root.join("lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld"))
        .filter(|path| path.is_file());
    lld.map_or(Linker::Gnu, Linker::RustLld)
}

impl Toolchain {
    /// A cargo command for the kernel with what this toolchain needs.
    pub fn cargo(&self, subcommand: &str) -> Command {
        self.cargo_for(subcommand, TARGET)
    }

    /// The same for another bare machine.
    pub fn cargo_for(&self, subcommand: &str, target: &str) -> Command {
        let mut command = match self {
            Toolchain::Own => own_cargo(subcommand),
            Toolchain::Debian(linker) => {
                let mut command = Command::new("/usr/bin/cargo");
                command.arg(subcommand);
                clean(&mut command);
                for name in ["RUSTUP_TOOLCHAIN", "RUSTC", "RUSTDOC", "CARGO", "LD_LIBRARY_PATH"] {
                    command.env_remove(name);
                }
                command.env("RUSTC", "/usr/bin/rustc");
                // Building core along is the one thing here that a stable cargo refuses; our code has no such wishes.
                command.env("RUSTC_BOOTSTRAP", "1").args([
                    "-Zbuild-std=core,alloc,compiler_builtins",
                    "-Zbuild-std-features=compiler-builtins-mem",
                ]);
                let name = format!("CARGO_TARGET_{}_LINKER", target.to_uppercase().replace('-', "_"));
                match linker {
                    Linker::RustLld(path) => {
                        command.env(name, path);
                    }
                    Linker::Gnu => {
                        command.env(name, "ld");
                        let flavor = format!(r#"target.{target}.rustflags=["-Clinker-flavor=ld"]"#);
                        command.args(["--config", &flavor]);
                    }
                }
                command
            }
        };
        // Who reads the host's crates while they are built has a compiler of its own.
        command.env_remove("RUSTC_WORKSPACE_WRAPPER").args(["--target", target]);
        command
    }
}

/// The cargo that built this program, with the user's flags for other things taken away.
pub fn own_cargo(subcommand: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg(subcommand);
    clean(&mut command);
    command
}

fn clean(command: &mut Command) {
    // Flags that the user has set for other programs do not fit a bare machine or a static program.
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR"] {
        command.env_remove(name);
    }
    command.current_dir(crate::root());
}

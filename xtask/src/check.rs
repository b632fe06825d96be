//! `cargo xtask check`: what must hold of the published crates, and takes too long, or needs too much, for each run of the tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use cargo_metadata::{Metadata, MetadataCommand, Package};
use clap::{Args, ValueEnum};

use crate::root;
use crate::test::report::Report;
use crate::toolchain::{TARGET, own_cargo, own_has_target};

/// The crates that others can take, in the order in which they would be published.
pub const PUBLISHED: [&str; 4] = ["summary-tree", "filetables", "hugetlb", "hugetlb-sim"];
/// Files that each of them has in its package. The licences' texts are links to those of the workspace.
const IN_A_PACKAGE: [&str; 5] = ["Cargo.toml", "LICENSE-APACHE", "LICENSE-MIT", "README.md", "src/lib.rs"];

/// What to check.
#[derive(Args, Clone, Debug)]
pub struct CheckOptions {
    /// Only these
    #[arg(value_name = "PART", required_unless_present = "all")]
    parts: Vec<Part>,

    /// All of them
    #[arg(long, conflicts_with = "parts")]
    all: bool,

    /// Write the public interfaces down as they are now, in the place of holding them against what was written
    #[arg(long)]
    bless: bool,
}

/// A part of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// What is in the packages, and whether they could be published
    Publish,
    /// Each set of features of the libraries
    Features,
    /// The oldest Rust that they are said to build with
    Msrv,
    /// The public interfaces, item by item
    Api,
    /// The libraries' own tests under miri
    Miri,
    /// The simulated machine under ThreadSanitizer
    ThreadSanitizer,
}

/// Runs the parts that are asked for; 0 when all are well.
pub fn run(options: &CheckOptions) -> Result<i32> {
    let metadata = MetadataCommand::new()
        .current_dir(root())
        .no_deps()
        .other_options(vec!["--locked".to_string()])
        .exec()
        .context("cargo metadata")?;
    let parts = if options.all { Part::value_variants() } else { &options.parts };
    let mut report = Report::new();
    for part in parts {
        match part {
            Part::Publish => publish(&mut report)?,
            Part::Features => features(&metadata, &mut report)?,
            Part::Msrv => msrv(&metadata, &mut report)?,
            Part::Api => api(options.bless, &mut report)?,
            Part::Miri => miri(&mut report)?,
            Part::ThreadSanitizer => thread_sanitizer(&mut report)?,
        }
    }
    Ok(report.finish())
}

/// Runs a command as a check of that name; whether it was content.
fn checked(report: &mut Report, name: &str, command: &mut Command) -> Result<Option<String>> {
    report.busy_with(name);
    let start = Instant::now();
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("{command:?} does not start"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        report.pass(name, Some(start.elapsed()));
        return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    report.fail(name, &format!("it ended with {}", output.status), &errors);
    Ok(None)
}

/// A cargo command with `-p` for each published crate.
fn cargo_for_all(subcommand: &str) -> Command {
    let mut command = own_cargo(subcommand);
    command.args(PUBLISHED.iter().flat_map(|name| ["-p", name]));
    command
}

fn publish(report: &mut Report) -> Result<()> {
    for name in PUBLISHED {
        let check = format!("publish::files of {name}");
        let mut command = own_cargo("package");
        command.args(["--list", "--allow-dirty", "--locked", "-p", name]);
        let output = command.output().context("cargo does not start")?;
        let files = String::from_utf8_lossy(&output.stdout);
        let wrong = wrong_files(&files.lines().collect::<Vec<_>>());
        match output.status.success() {
            false => {
                report.fail(&check, "cargo does not list them", &String::from_utf8_lossy(&output.stderr))
            }
            true if wrong.is_empty() => report.pass(&check, None),
            true => report.fail(&check, &wrong.join(", "), &files),
        }
    }
    // It builds each package from what is in it, on the packages of the others.
    forget_unpacked()?;
    let mut command = cargo_for_all("publish");
    command.args(["--dry-run", "--allow-dirty", "--locked", "--target-dir"]).arg(folder("publish"));
    let name = "publish::dry run";
    report.busy_with(name);
    let start = Instant::now();
    let output = command.stdin(Stdio::null()).output().context("cargo does not start")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        report.pass(name, Some(start.elapsed()));
    } else if errors.contains("failed to download") || errors.contains("Could not resolve host") {
        report.skip(name, "the registry is out of reach");
    } else {
        report.fail(name, &format!("it ended with {}", output.status), &errors);
    }
    Ok(())
}

/// Cargo keeps what it has unpacked by name and version, and takes it again though the package has changed since: those that it made
/// itself, in a folder for a registry, are removed.
fn forget_unpacked() -> Result<()> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let Some(home) = home else { return Ok(()) };
    let entries = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten();
    let is_ours = |name: &str| {
        let version = PUBLISHED.iter().find_map(|own| name.strip_prefix(own)?.strip_prefix('-'));
        version.is_some_and(|version| version.starts_with(|c: char| c.is_ascii_digit()))
    };
    let registries = ["src", "cache"].into_iter().flat_map(|kind| entries(home.join("registry").join(kind)));
    for registry in registries {
        // Others have the name of a host in front of the dash.
        if !registry.file_name().as_encoded_bytes().starts_with(b"-") {
            continue;
        }
        for entry in entries(registry.path()) {
            let path = entry.path();
            if !entry.file_name().to_str().is_some_and(is_ours) {
                continue;
            }
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.with_context(|| format!("{} cannot be removed", path.display()))?;
        }
    }
    Ok(())
}

/// What is missing in a package, and what does not belong there.
fn wrong_files(files: &[&str]) -> Vec<String> {
    let missing =
        IN_A_PACKAGE.iter().filter(|file| !files.contains(file)).map(|file| format!("{file} is missing"));
    let made_by_cargo = [".cargo_vcs_info.json", "Cargo.lock", "Cargo.toml.orig"];
    let belongs = |file: &str| {
        IN_A_PACKAGE.contains(&file)
            || made_by_cargo.contains(&file)
            || (["src/", "tests/", "examples/"].iter().any(|folder| file.starts_with(folder))
                && file.ends_with(".rs"))
    };
    let strange =
        files.iter().filter(|file| !belongs(file)).map(|file| format!("{file} does not belong there"));
    missing.chain(strange).collect()
}

/// Where such builds go: their flags must not make the ordinary ones build anew.
fn folder(name: &str) -> PathBuf {
    root().join("target/check").join(name)
}

/// Every set of features, for the host and for the bare machine.
fn features(metadata: &Metadata, report: &mut Report) -> Result<()> {
    for package in published(metadata) {
        let is_bare = package.name.as_str() != "hugetlb-sim";
        for set in powerset(&package.features) {
            let bare = Some(TARGET).filter(|_| is_bare && own_has_target());
            for target in std::iter::once(None).chain(bare.map(Some)) {
                let mut command = own_cargo("check");
                command.args([
                    "--locked",
                    "--lib",
                    "--no-default-features",
                    "-p",
                    &package.name,
                    "--features",
                    &set,
                ]);
                command.args(target.iter().flat_map(|target| ["--target", target]));
                command.env("RUSTFLAGS", "-Dwarnings").arg("--target-dir").arg(folder("features"));
                let name = format!("features::{} [{set}] {}", package.name, target.unwrap_or("host"));
                checked(report, &name, &mut command)?;
            }
        }
    }
    Ok(())
}

/// All sets of a package's features but the default one, which is none of its own.
fn powerset(features: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let names: Vec<&String> = features.keys().filter(|name| *name != "default").collect();
    let set = |bits: usize| {
        let chosen = names.iter().enumerate().filter(|(index, _)| bits >> index & 1 == 1);
        chosen.map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(",")
    };
    (0..1 << names.len()).map(set).collect()
}

fn published(metadata: &Metadata) -> impl Iterator<Item = &Package> {
    metadata.packages.iter().filter(|package| PUBLISHED.contains(&package.name.as_str()))
}

/// Builds with the oldest Rust that `rust-version` names, where rustup has it.
fn msrv(metadata: &Metadata, report: &mut Report) -> Result<()> {
    for package in published(metadata) {
        let name = format!("msrv::{}", package.name);
        let Some(version) = &package.rust_version else {
            report.fail(&name, "it has no rust-version", "");
            continue;
        };
        // What cargo of another version is told of this one's compiler does not concern it.
        let mut command = own_cargo("check");
        let toolchain = format!("{}.{}", version.major, version.minor);
        let Some(rustc) = rustc_of(&toolchain) else {
            report.skip(&name, &format!("no Rust {toolchain} is installed"));
            continue;
        };
        command.env("RUSTC", rustc).args(["--locked", "--all-features", "--lib", "-p", &package.name]);
        command.arg("--target-dir").arg(folder("msrv"));
        checked(report, &format!("{name} {toolchain}"), &mut command)?;
    }
    Ok(())
}

/// The compiler of that version, be it that of the PATH or another one of rustup's.
fn rustc_of(version: &str) -> Option<PathBuf> {
    let is_it = |rustc: &PathBuf| {
        let output = Command::new(rustc).arg("--version").stderr(Stdio::null()).output();
        output.is_ok_and(|output| {
            String::from_utf8_lossy(&output.stdout).starts_with(&format!("rustc {version}."))
        })
    };
    let of_rustup = std::env::var_os("RUSTUP_HOME").map(PathBuf::from);
    let of_rustup = of_rustup.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".rustup")));
    let toolchains = of_rustup.and_then(|home| fs::read_dir(home.join("toolchains")).ok());
    let others = toolchains.into_iter().flatten().flatten().map(|entry| entry.path().join("bin/rustc"));
    std::iter::once(PathBuf::from("rustc")).chain(others).chain([PathBuf::from("/usr/bin/rustc")]).find(is_it)
}

/// Holds the public items against those that were written down.
fn api(bless: bool, report: &mut Report) -> Result<()> {
    for name in PUBLISHED {
        let check = format!("api::{name}");
        report.busy_with(&check);
        let mut command = own_cargo("rustdoc");
        // The form is not stable yet; our code is.
        command.env("RUSTC_BOOTSTRAP", "1").args(["--locked", "--lib", "-p", name]);
        command.arg("--target-dir").arg(folder("api"));
        command.args(["--", "-Zunstable-options", "--output-format", "json", "--cap-lints", "allow"]);
        let output = command.stdin(Stdio::null()).output().context("cargo does not start")?;
        ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let json = folder("api").join("doc").join(format!("{}.json", name.replace('-', "_")));
        let items = public_api::Builder::from_rustdoc_json(&json)
            .omit_blanket_impls(true)
            .omit_auto_trait_impls(true)
            .omit_auto_derived_impls(true)
            .build();
        let items = match items {
            Ok(items) => items,
            Err(error) => {
                report.skip(
                    &check,
                    &format!("this Rust's documentation is of another form: {error}").replace('\n', " "),
                );
                continue;
            }
        };
        let is: Vec<String> = items.items().map(|item| item.to_string()).collect();
        let golden = root().join("xtask/api").join(format!("{name}.txt"));
        if bless {
            fs::write(&golden, is.join("\n") + "\n").with_context(|| golden.display().to_string())?;
        }
        let was = fs::read_to_string(&golden).unwrap_or_default();
        let changes = changes(&was.lines().collect::<Vec<_>>(), &is);
        match changes.is_empty() {
            true => report.pass(&check, None),
            false => report.fail(
                &check,
                "the interface has changed; cargo xtask check api --bless, and CHANGELOG.md",
                &changes,
            ),
        }
    }
    Ok(())
}

/// Lines that are gone, with `-`, and lines that are new, with `+`.
fn changes(was: &[&str], is: &[String]) -> String {
    let gone =
        was.iter().filter(|line| !is.iter().any(|other| other == *line)).map(|line| format!("-{line}\n"));
    let new = is.iter().filter(|line| !was.contains(&line.as_str())).map(|line| format!("+{line}\n"));
    gone.chain(new).collect()
}

/// The unit tests of the libraries on an interpreter that knows what Rust does not define.
fn miri(report: &mut Report) -> Result<()> {
    let has = Command::new("cargo").args(["+nightly", "miri", "--version"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        report.skip("miri", "it is not installed (rustup component add miri rust-src --toolchain nightly)");
        return Ok(());
    }
    for name in ["summary-tree", "filetables", "hugetlb"] {
        let mut command = Command::new("cargo");
        command.current_dir(root()).args(["+nightly", "miri", "test", "--locked", "--lib", "-p", name]);
        command.arg("--target-dir").arg(folder("miri")).env("PROPTEST_CASES", "4");
        checked(report, &format!("miri::{name}"), &mut command)?;
    }
    Ok(())
}

/// The tests of threads as CPUs, with a standard library that is watched too.
fn thread_sanitizer(report: &mut Report) -> Result<()> {
    let name = "thread sanitizer";
    let sysroot = Command::new("rustc").args(["+nightly", "--print", "sysroot"]).output();
    let source = sysroot.ok().filter(|output| output.status.success()).map(|output| {
        PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()).join("lib/rustlib/src/rust/library")
    });
    if !source.is_some_and(|source| source.is_dir()) {
        let reason = "the standard library has to be built for it, and its source is not installed \
                      (rustup component add rust-src --toolchain nightly)";
        report.skip(name, reason);
        return Ok(());
    }
    let mut command = Command::new("cargo");
    command.current_dir(root()).args(["+nightly", "test", "--locked", "-Zbuild-std", "-p", "hugetlb-sim"]);
    command.args(["--target", "x86_64-unknown-linux-gnu", "--test", "races", "--target-dir"]);
    command.arg(folder("thread-sanitizer")).env("RUSTFLAGS", "-Zsanitizer=thread");
    checked(report, name, &mut command)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_set_of_features_comes_once() {
        let features = |names: &[&str]| names.iter().map(|name| (name.to_string(), Vec::new())).collect();
        assert_eq!(powerset(&features(&[])), [""]);
        assert_eq!(powerset(&features(&["a", "b", "default"])), ["", "a", "b", "a,b"]);
    }

    #[test]
    fn a_package_has_its_papers_and_nothing_strange() {
        let mut files = IN_A_PACKAGE.to_vec();
        files.extend(["Cargo.lock", "src/a/b.rs", "examples/c.rs"]);
        assert!(wrong_files(&files).is_empty());
        files.push("src/notes.txt");
        files.remove(1);
        assert_eq!(wrong_files(&files), ["LICENSE-APACHE is missing", "src/notes.txt does not belong there"]);
    }

    #[test]
    fn what_goes_and_what_comes_is_told() {
        assert_eq!(changes(&["a", "b"], &["b".to_string(), "c".to_string()]), "-a\n+c\n");
        assert_eq!(changes(&["a"], &["a".to_string()]), "");
    }
}

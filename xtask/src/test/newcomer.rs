//! What a newcomer runs first, as the README has it and in short forms: the presets of servers, and a root file system of Debian.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use roundtable::packages;
use roundtable::preset::Preset;
use serde_json::json;

use super::report::Report;
use super::{Bench, Subject, TestOptions};

/// Seconds that a run may take, on a busy host.
const LIMIT: u32 = 240;

/// One test.
struct Case {
    name: &'static str,
    /// The preset; none for the root file system.
    preset: Option<&'static str>,
    /// Variables that make the preset a short one.
    environment: &'static [&'static str],
    /// What the run prints.
    expected: &'static [&'static str],
}

impl Case {
    /// Gives the reason when its packages are not to be had.
    fn run(&self, subject: Subject, scratch: &Path) -> Result<Option<String>> {
        let names = match self.preset {
            Some(preset) => {
                Preset::read(&crate::root().join("presets").join(preset).with_extension("toml"))?.packages
            }
            None => DEBIAN.map(str::to_string).to_vec(),
        };
        let tarballs = match packages::tarballs(&names, &scratch.join("packages")) {
            Ok(tarballs) => tarballs,
            Err(error) if error.is::<packages::OutOfReach>() => {
                return Ok(Some(format!("the packages are not to be had: {error:#}").replace('\n', " ")));
            }
            Err(error) => return Err(error),
        };
        let image = tempfile::tempdir_in(scratch)?;
        let mut words: Vec<String> = self.environment.iter().map(|one| format!("--env={one}")).collect();
        match self.preset {
            Some(preset) => words.extend(["--".into(), preset.into()]),
            None => {
                save_image(&tarballs, image.path())?;
                words.push(format!("--root={}", image.path().display()));
            }
        }
        check(subject, &words, self.expected).map(|()| None)
    }
}

const CASES: &[Case] = &[
    Case {
        name: "postgres",
        preset: Some("postgres"),
        environment: &["CLIENTS=4", "SCALE=1", "FILL_FACTOR=100", "TRANSACTIONS=40", "SHARED_BUFFERS=64MB"],
        expected: &["== initdb", "4 clients, huge pages on", "4 clients, huge pages off", "TPS"],
    },
    Case {
        name: "redis",
        preset: Some("redis"),
        environment: &["CLIENTS=4", "REQUESTS=200"],
        expected: &["== requests from the clients", "requests a second", "LRANGE_100"],
    },
    Case {
        name: "debian",
        preset: None,
        environment: &[],
        expected: &["user 1 in /var by a variable", "Debian GNU/Linux 12", "600 files at least"],
    },
];

/// What Debian calls essential, as far as a person would miss it.
const DEBIAN: [&str; 14] = [
    "bash",
    "bsdutils",
    "coreutils",
    "dash",
    "debianutils",
    "diffutils",
    "findutils",
    "grep",
    "gzip",
    "hostname",
    "login",
    "perl-base",
    "sed",
    "util-linux",
];

/// The command of the image, which runs as the image says.
const SCRIPT: &str = r#"set -e
echo "user $(id -u) in $(pwd) $HOW"
. /etc/os-release; echo "$PRETTY_NAME"
stat -c '%A %u %g' /bin/su | grep -qx -e '-rwsr-xr-x 0 0'
perl -e 'print join(",", map { $_ * $_ } 1 .. 5), "\n"' | grep -qx '1,4,9,16,25'
[ "$(find /usr -type f | wc -l)" -ge 600 ] && echo "600 files at least""#;

/// Runs those that are asked for on one kernel.
pub fn run(bench: &Bench, subject: Subject, options: &TestOptions, report: &mut Report) {
    for case in CASES {
        let name = format!("newcomer::{}", case.name);
        bench.test(&name, subject, options, report, || case.run(subject, &bench.parts.scratch));
    }
}

/// An image as `docker save` and `podman save` unpack to, with a layer for each package.
fn save_image(tarballs: &[PathBuf], folder: &Path) -> Result<()> {
    let mut layers = Vec::new();
    for (number, tarball) in tarballs.iter().enumerate() {
        let layer = format!("{number}.tar");
        fs::hard_link(tarball, folder.join(&layer)).with_context(|| tarball.display().to_string())?;
        layers.push(layer);
    }
    let config = json!({ "config": {
        "User": "1:1",
        "Env": ["HOW=by a variable", "PATH=/usr/local/bin:/usr/bin:/bin"],
        "WorkingDir": "/var",
        "Cmd": ["/bin/bash", "-c", SCRIPT],
    } });
    fs::write(folder.join("config.json"), config.to_string())?;
    let manifest = json!([{ "Config": "config.json", "Layers": layers }]);
    fs::write(folder.join("manifest.json"), manifest.to_string())?;
    Ok(())
}

/// Runs the command as a person does, in a pipe.
fn check(subject: Subject, words: &[String], expected: &[&str]) -> Result<()> {
    let kernel = if subject == Subject::Linux { "linux" } else { "roundtable" };
    let output = Command::new(std::env::current_exe()?)
        .args(["run", "--kernel", kernel, &format!("--time-limit={LIMIT}")])
        .args(words)
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let all = || format!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}\n{}", output.status, all());
    for wanted in expected {
        ensure!(text.contains(wanted), "no {wanted:?}\n{}", all());
    }
    Ok(())
}

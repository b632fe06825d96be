//! `cargo xtask programs`: runs Debian's programs on both kernels and writes the table of docs/programs.md.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser};
use roundtable::options::{Kernel, RunOptions};
use roundtable::preset::{Preset, Step};
use roundtable::run::{self, Parts};
use serde::Deserialize;

use crate::build::{self, BuildOptions};
use crate::{linux, output_folder, root, setup};

/// The list of guests and programs.
const LIST: &str = "xtask/programs.toml";
/// Where the table goes.
const PAGE: &str = "docs/programs.md";
/// The lines of the page between which the table is.
const BEGIN: &str = "<!-- begin of the table: cargo xtask programs --write -->";
const END: &str = "<!-- end of the table -->";
/// What each guest has besides what its programs need, and the checks themselves.
const BASE: [&str; 5] = ["coreutils", "grep", "sed", "procps", "util-linux"];

/// Which programs to run, and where.
#[derive(Args, Clone, Debug)]
pub struct ProgramOptions {
    #[command(flatten)]
    build: BuildOptions,

    /// Only programs, or guests, with this in their name
    #[arg(short, long, value_name = "NAME")]
    only: Option<String>,

    /// Only on this kernel: roundtable or linux
    #[arg(short, long, value_name = "KERNEL")]
    kernel: Option<String>,

    /// Put what was found into the table of docs/programs.md; what was not run stays as it is there
    #[arg(long)]
    write: bool,

    /// Give each program so many times its time, on a host that is busy
    #[arg(long, value_name = "FACTOR", default_value_t = 1)]
    patience: u32,

    /// Build nothing: take what was built before
    #[arg(long)]
    no_build: bool,

    /// List the programs, and run none
    #[arg(long)]
    list: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    guest: Vec<Guest>,
}

/// One machine.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Guest {
    name: String,
    packages: Vec<String>,
    memory: String,
    huge_2m: Option<u64>,
    program: Vec<Program>,
}

/// What is run in it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Program {
    name: String,
    version: String,
    what: String,
    run: String,
    expect: String,
    #[serde(default = "a_minute")]
    seconds: u32,
}

fn a_minute() -> u32 {
    60
}

/// A program's line in the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Row {
    version: String,
    what: String,
    linux: String,
    ours: String,
}

/// Runs the programs; 0 when ours did all that Linux did.
pub fn run(options: &ProgramOptions) -> Result<i32> {
    let guests = chosen(options)?;
    if options.list {
        let names: Vec<_> = guests.iter().flat_map(|guest| &guest.program).map(|p| p.name.as_str()).collect();
        println!("{}", names.join("\n"));
        return Ok(0);
    }
    let kernels = match options.kernel.as_deref() {
        None => vec![Kernel::Roundtable, Kernel::Linux],
        Some("roundtable") => vec![Kernel::Roundtable],
        Some("linux") => vec![Kernel::Linux],
        Some(other) => bail!("there is no kernel {other}: roundtable, linux"),
    };
    setup::qemu()?;
    setup::host_libc()?;
    if !options.no_build {
        build::programs()?;
    }
    let mut parts = Parts::in_folder(&output_folder());
    parts.busybox = Some(setup::busybox()?);
    if kernels.contains(&Kernel::Roundtable) {
        parts.kernel = options.build.output();
        if !options.no_build {
            build::kernel(&options.build, &parts.kernel)?;
        }
    }
    if kernels.contains(&Kernel::Linux) {
        linux::fetch()?;
        parts.linux = Some(output_folder().join("linux/vmlinuz"));
    }
    let page = root().join(PAGE);
    let mut rows = BTreeMap::new();
    for guest in &guests {
        for kernel in &kernels {
            boot(guest, kernel, options.patience, &parts, &mut rows)?;
        }
        if options.write {
            // After each guest: whoever ends it keeps what was found.
            write(&page, &rows)?;
        }
    }
    let mut failed = 0;
    for (name, row) in &rows {
        println!("{name:24} {:16} linux: {:28} ours: {}", row.version, row.linux, row.ours);
        failed += i32::from(row.ours != "works" && (row.linux == "works" || row.linux.is_empty()));
    }
    println!("{} programs, {failed} failed on ours alone", rows.len());
    Ok(i32::from(failed > 0))
}

/// What the options leave of the list.
fn chosen(options: &ProgramOptions) -> Result<Vec<Guest>> {
    let path = root().join(LIST);
    let read = || anyhow::Ok(toml::from_str::<List>(&fs::read_to_string(&path)?)?.guest);
    let mut guests = read().with_context(|| path.display().to_string())?;
    if let Some(only) = &options.only {
        for guest in guests.iter_mut().filter(|guest| !guest.name.contains(only.as_str())) {
            guest.program.retain(|program| program.name.contains(only.as_str()));
        }
        guests.retain(|guest| !guest.program.is_empty());
        ensure!(!guests.is_empty(), "no program is called {only}: --list names them");
    }
    Ok(guests)
}

/// Runs a guest's programs on one kernel.
fn boot(
    guest: &Guest,
    kernel: &Kernel,
    patience: u32,
    parts: &Parts,
    rows: &mut BTreeMap<String, Row>,
) -> Result<()> {
    let name = if *kernel == Kernel::Linux { "Linux" } else { "Roundtable" };
    eprintln!("xtask: {} on {name}", guest.name);
    let preset = preset(guest, patience);
    let mut options = preset.apply(&defaults()?, &parts.programs)?;
    options.kernel = kernel.clone();
    if *kernel == Kernel::Linux {
        // On a busy host its check of the emulated timer fails, which is not what is asked.
        options.parameters.push("no_timer_check".into());
    }
    let seconds: u32 = guest.program.iter().map(|program| program.seconds).sum();
    options.time_limit = Some(u64::from((300 + seconds) * patience));
    let (status, figures) = run::run_for_figures(&options, parts)?;
    for program in &guest.program {
        let row = rows.entry(program.name.clone()).or_default();
        row.what = program.what.clone();
        let result = match figures.value(&program.name, "result") {
            Some(result) => result.to_string(),
            None => format!("the machine ended before (status {status})"),
        };
        if let Some(version) = figures.value(&program.name, "version") {
            row.version = version.to_string();
        }
        *(if *kernel == Kernel::Linux { &mut row.linux } else { &mut row.ours }) = result;
    }
    Ok(())
}

/// A run without options.
fn defaults() -> Result<RunOptions> {
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: RunOptions,
    }
    Ok(Line::try_parse_from(["run"])?.run)
}

/// A preset that runs a guest's programs, whatever becomes of each.
fn preset(guest: &Guest, patience: u32) -> Preset {
    let mut script = String::from(TRY);
    for program in &guest.program {
        let end = "END_OF_THE_PROGRAM";
        let (name, run, version) = (quoted(&program.name), program.run.trim_end(), quoted(&program.version));
        let (expect, seconds) = (quoted(&program.expect), program.seconds * patience);
        // Writing to a string does not fail.
        let _ = writeln!(
            script,
            "cat >/tmp/script <<'{end}'\n{run}\n{end}\ntry {name} {version} {expect} {seconds}"
        );
    }
    let packages = BASE.iter().map(|name| name.to_string()).chain(guest.packages.iter().cloned());
    Preset {
        about: guest.name.clone(),
        packages: packages.collect(),
        programs: Vec::new(),
        user: None,
        workdir: Some("/tmp".into()),
        memory: Some(guest.memory.clone()),
        huge_2m: guest.huge_2m,
        environment: BTreeMap::new(),
        steps: vec![Step { name: guest.name.clone(), run: script }],
    }
}

/// Runs `/tmp/script` as the program `$1`, whose version `$2` prints; the output must have `$3`, within `$4` seconds.
const TRY: &str = r#"
export HOME=/root LC_ALL=C.UTF-8
mkdir -p /root /tmp/work
try() {
    figure "$1" version "$(sh -c "$2" 2>&1 | head -n 1)"
    place=$(mktemp -d /tmp/work/XXXXXX)
    start=$(cut -d' ' -f1 /proc/uptime)
    status=0
    # Without a terminal: a shell with job control would stop in the background of one.
    (cd "$place" && exec setsid -w timeout -k 5 "$4" sh -e /tmp/script) >/tmp/output 2>&1 </dev/null || status=$?
    # What it has left behind: all but the first process and this shell.
    kill -9 -1 2>/dev/null || true
    if [ $status = 124 ] || [ $status = 137 ]; then result="not done after $4 s"
    elif [ $status != 0 ]; then result="failed, status $status"
    elif ! grep -qaF -e "$3" /tmp/output; then result="the output is another"
    else result=works; fi
    figure "$1" result "$result"
    echo "-- $1: $result ($start to $(cut -d' ' -f1 /proc/uptime) s)"
    [ "$result" = works ] || { echo "-- output of $1:"; tail -n 25 /tmp/output | cut -c 1-300; echo "--"; }
    rm -rf "$place"
}
"#;

/// A word for the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Puts rows into the page's table, in the place of those of the same name.
fn write(page: &Path, rows: &BTreeMap<String, Row>) -> Result<()> {
    let text = fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let (head, rest) = text.split_once(BEGIN).context("the page has no place for the table")?;
    let (old, tail) = rest.split_once(END).context("the page has no end of the table")?;
    let mut all = parse(old);
    for (name, new) in rows {
        let row = all.entry(name.clone()).or_default();
        let keep = |old: &mut String, new: &str| {
            if !new.is_empty() {
                *old = new.into();
            }
        };
        keep(&mut row.version, &new.version);
        keep(&mut row.what, &new.what);
        keep(&mut row.linux, &new.linux);
        keep(&mut row.ours, &new.ours);
    }
    let path: PathBuf = page.to_path_buf();
    fs::write(&path, format!("{head}{BEGIN}\n{}{END}{tail}", table(&all)))
        .with_context(|| path.display().to_string())
}

fn table(rows: &BTreeMap<String, Row>) -> String {
    let mut out = String::from(
        "| program | version | what was run | Linux | ours |\n| --- | --- | --- | --- | --- |\n",
    );
    let clean = |text: &str| text.replace('|', "\\|");
    for (name, row) in rows {
        let cells = [name, &row.version, &row.what, &row.linux, &row.ours].map(|cell| clean(cell));
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    }
    out
}

fn parse(table: &str) -> BTreeMap<String, Row> {
    let rows = table.lines().skip_while(|line| !line.starts_with("| ---")).skip(1);
    rows.filter_map(|line| {
        let line = line.replace("\\|", "\u{1}");
        let cells: Vec<String> = line.split('|').map(|cell| cell.trim().replace('\u{1}', "|")).collect();
        let [_, name, version, what, linux, ours, _] = cells.try_into().ok()?;
        Some((name, Row { version, what, linux, ours }))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_long_and_its_names_are_unique() {
        let options = ProgramOptions {
            build: BuildOptions::default(),
            only: None,
            kernel: None,
            write: false,
            no_build: true,
            patience: 1,
            list: true,
        };
        let guests = chosen(&options).unwrap();
        let mut names: Vec<_> = guests.iter().flat_map(|g| &g.program).map(|p| p.name.clone()).collect();
        assert!(names.len() >= 40);
        names.sort();
        names.dedup();
        let count: usize = guests.iter().map(|guest| guest.program.len()).sum();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn what_was_not_run_stays_in_the_table() {
        let row = |ours: &str| Row {
            version: "1".into(),
            what: "a | b".into(),
            linux: "works".into(),
            ours: ours.into(),
        };
        let old = BTreeMap::from([("x".to_string(), row("works")), ("y".to_string(), row("failed"))]);
        assert_eq!(parse(&table(&old)), old);
        let page = tempfile::NamedTempFile::new().unwrap();
        fs::write(page.path(), format!("head\n{BEGIN}\n{}{END}\ntail\n", table(&old))).unwrap();
        let new = BTreeMap::from([("y".to_string(), Row { linux: String::new(), ..row("works") })]);
        write(page.path(), &new).unwrap();
        let text = fs::read_to_string(page.path()).unwrap();
        assert!(text.starts_with("head\n") && text.ends_with("\ntail\n"));
        let all = parse(&text);
        assert_eq!((all["x"].clone(), all["y"].clone()), (row("works"), row("works")));
    }

    #[test]
    fn a_guest_is_a_script_that_tries_each_program() {
        let program = Program {
            name: "it's".into(),
            version: "echo 1".into(),
            what: "w".into(),
            run: "echo 'a b'".into(),
            expect: "a b".into(),
            seconds: 5,
        };
        let guest = Guest {
            name: "g".into(),
            packages: vec!["p".into()],
            memory: "1G".into(),
            huge_2m: None,
            program: vec![program],
        };
        let preset = preset(&guest, 2);
        assert!(preset.steps[0].run.contains("echo 'a b'\nEND"));
        assert!(preset.steps[0].run.contains(r"try 'it'\''s' 'echo 1' 'a b' 10"));
        assert!(preset.packages.contains(&"p".to_string()) && preset.packages.contains(&"grep".to_string()));
    }
}

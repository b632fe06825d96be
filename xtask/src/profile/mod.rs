//! `cargo xtask bench --profile`: where the instructions of the benchmark's operations go.
//!
//! The program `latency` runs alone, in a machine of one CPU whose clock counts instructions, and marks its operations. A plugin of
//! QEMU's counts what the machine executes between the marks. The result is a table of the kernel's functions for each operation,
//! and a flame graph.

mod flame;
mod symbols;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guest_link::Ending;
use guest_link::record::Operation;
use roundtable::bench::{BenchOptions, Subject};
use roundtable::run::Parts;
use roundtable::signals::Signals;
use roundtable::size::Size;

use crate::build;
use crate::soak::guest::{Boot, End};
use symbols::Symbols;

/// How long the program may say nothing, and how long it may take, on a busy machine.
const SILENCE: Duration = Duration::from_secs(300);
const LIMIT: Duration = Duration::from_secs(900);
/// Functions of each operation that are printed.
const SHOWN: usize = 30;

/// Instructions by call stack: the functions from the outermost on.
type Stacks = BTreeMap<Vec<String>, u64>;

/// Profiles the operations on a kernel of ours.
pub fn run(options: &BenchOptions, subject: &Subject) -> Result<i32> {
    let plugin = build::profile_plugin()?;
    let parts = Parts::in_folder(&crate::output_folder());
    let raw = tempfile::NamedTempFile::new_in(&parts.scratch)?;
    let sharers = options.sharers.unwrap_or(1).max(1).to_string();
    let words = ["latency", "--parts", "path,basics,cost", "--runs", "3", "--cost-sharers", &sharers];
    let boot = Boot {
        kernel: subject.kernel.clone(),
        cpus: 1,
        memory: Size::gibibytes(3),
        icount: true,
        parameters: subject.parameters.clone(),
        program: words.map(str::to_string).to_vec(),
        qemu: vec!["-plugin".into(), format!("{},out={}", plugin.display(), raw.path().display()).into()],
        files: Vec::new(),
        silence: SILENCE,
        limit: LIMIT,
    };
    let result = boot.run(&parts, &Signals::catch()?, &parts.scratch.join("logs/profile.log"), |_| ())?;
    ensure!(result.end == End::Program(Ending::Code(0)), "the guest ended with {:?}", result.end);
    let symbols = Symbols::of(&subject.kernel)?;
    let profiles = read(&std::fs::read_to_string(raw.path())?, &symbols)?;
    ensure!(!profiles.is_empty(), "the program has marked nothing");
    for operation in Operation::ALL {
        let name = operation.name();
        let Some(stacks) = profiles.get(&(operation as usize)) else { continue };
        let graph = options.out.join(format!("profile-{}.svg", file_name(name)));
        write(&graph, &flame::draw(&format!("{name}, {}", subject.name), stacks))?;
        print!("{}", table(name, stacks, operation.turns()));
        println!("  {}\n", graph.display());
    }
    Ok(0)
}

fn write(path: &PathBuf, text: &str) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    std::fs::write(path, text).with_context(|| path.display().to_string())
}

/// Reads what the plugin wrote: the stacks of each operation.
fn read(text: &str, symbols: &Symbols) -> Result<BTreeMap<usize, Stacks>> {
    let mut profiles: BTreeMap<usize, Stacks> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let (Some(number), Some(places), Some(count)) = (words.next(), words.next(), words.next()) else {
            anyhow::bail!("the plugin wrote {line:?}");
        };
        let address = |text| u64::from_str_radix(text, 16);
        let mut stack: Vec<String> = Vec::new();
        for place in places.split(';') {
            let name = match address(place)? {
                0 => "user space",
                address => symbols.name(address),
            };
            // The block that ran is in the innermost function, or in one that this has jumped to.
            if stack.last().is_none_or(|last| last != name) {
                stack.push(name.to_string());
            }
        }
        *profiles.entry(usize::from_str_radix(number, 16)?).or_default().entry(stack).or_default() +=
            count.parse::<u64>()?;
    }
    Ok(profiles)
}

/// A name in letters that need no quotes in a shell.
pub fn file_name(name: &str) -> String {
    let words = name.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}

/// The functions that an operation spends most in, for each of the `turns` that were counted together.
fn table(name: &str, stacks: &Stacks, turns: u64) -> String {
    let total = stacks.values().sum::<u64>() / turns;
    let mut functions: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (stack, count) in stacks {
        if let Some(innermost) = stack.last() {
            functions.entry(innermost).or_default().0 += count;
        }
        // Once, however often it stands in the stack.
        for function in stack.iter().map(String::as_str).collect::<BTreeSet<_>>() {
            functions.entry(function).or_default().1 += count;
        }
    }
    let for_each = |(own, all): (u64, u64)| (own / turns, all / turns);
    let rows = functions.into_iter().map(|(function, counts)| (function, for_each(counts)));
    let mut rows: Vec<_> = rows.filter(|(_, (own, _))| *own > 0).collect();
    rows.sort_by_key(|&(_, (own, _))| std::cmp::Reverse(own));
    let mut out = format!("{name}: {total} instructions\n       own  with callees  function\n");
    for (function, (own, all)) in rows.iter().take(SHOWN) {
        out += &format!("{own:>10} {all:>13}  {function}\n");
    }
    let rest: u64 = rows.iter().skip(SHOWN).map(|(_, (own, _))| own).sum();
    if rest > 0 {
        out += &format!("{rest:>10} {:>13}  {} others\n", "", rows.len() - SHOWN);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_stacks_and_a_table() {
        let symbols = Symbols::from_list([(0x1000, "outer"), (0x2000, "inner")]);
        let profiles = read("5 1000;1010 7\n5 1000;2000;2008 30\n5 1000;1020 3\n6 0 9\n", &symbols).unwrap();
        assert_eq!(profiles[&6], Stacks::from([(vec!["user space".to_string()], 9)]));
        let outer = vec!["outer".to_string()];
        let inner = vec!["outer".to_string(), "inner".to_string()];
        assert_eq!(profiles[&5], Stacks::from([(outer, 10), (inner, 30)]));
        let table = table("fork", &profiles[&5], 1);
        assert!(table.starts_with("fork: 40 instructions\n"), "{table}");
        assert!(
            table.contains("        30            30  inner\n        10            40  outer\n"),
            "{table}"
        );
        let each = super::table("fork", &profiles[&5], 4);
        assert!(each.starts_with("fork: 10 instructions\n"), "{each}");
        assert!(read("5 zz 1\n", &symbols).is_err());
    }

    #[test]
    fn names_become_names_of_files() {
        assert_eq!(file_name("system call (getppid)"), "system-call-getppid");
        assert_eq!(file_name("punching 64 MiB"), "punching-64-MiB");
    }
}

//! The modules of the library stand on a ladder: each uses those below it only, so there are no circles.
//!
//! The ladder is in ARCHITECTURE.md. This test reads the sources, and finds what each module names of others.

mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use sources::{Module, modules_of};

/// The folder of a crate, by what cargo says at run time.
fn crate_folder(name: &str) -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests");
    Path::new(&here).parent().expect("crates have a folder").join(name)
}

/// The rungs of a crate in ARCHITECTURE.md, the lowest first: the lines of the block that begins with the crate's name, each
/// with its modules before the colon.
fn ladder(architecture: &str, name: &str) -> Vec<Vec<String>> {
    let start = format!("```text\n{name}\n");
    let block = architecture.split_once(&start).and_then(|(_, rest)| rest.split_once("```"));
    let (block, _) = block.unwrap_or_else(|| panic!("ARCHITECTURE.md has no ladder of {name}"));
    let rung = |line: &str| {
        let (modules, _) = line.split_once(':').unwrap_or_else(|| panic!("a rung has no colon: {line}"));
        modules.split_whitespace().map(String::from).collect()
    };
    block.lines().map(rung).collect()
}

/// What is wrong with the modules of a crate.
fn faults(rungs: &[Vec<String>], modules: &BTreeMap<String, Module>) -> Vec<String> {
    let rung = |name: &str| rungs.iter().position(|rung| rung.iter().any(|module| module == name));
    let mut faults = Vec::new();
    for (name, module) in modules {
        let Some(at) = rung(name) else {
            faults.push(format!("{name} stands on no rung"));
            continue;
        };
        for (used, file) in &module.uses {
            if rung(used).is_some_and(|below| below >= at) {
                faults.push(format!("{name} uses {used}, which is not below it, in {file}"));
            }
        }
    }
    let unknown = rungs.iter().flatten().filter(|name| !modules.contains_key(*name));
    faults.extend(unknown.map(|name| format!("there is no module {name}")));
    faults
}

#[test]
fn each_module_uses_those_below_it_only() {
    let path = crate_folder("../ARCHITECTURE.md");
    let architecture = std::fs::read_to_string(path).expect("ARCHITECTURE.md");
    for name in ["filetables", "hugetlb"] {
        let modules = modules_of(&crate_folder(name).join("src"));
        let uses: usize = modules.values().map(|module| module.uses.len()).sum();
        assert!(modules.len() > 10 && uses > 30, "{name}: {} modules, {uses} uses", modules.len());
        let faults = faults(&ladder(&architecture, name), &modules);
        assert!(faults.is_empty(), "{name}:\n{}", faults.join("\n"));
    }
}

#[test]
fn a_step_up_and_a_circle_are_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("lib.rs", "mod low; mod high; mod pair; pub use high::Top;");
    write("low.rs", "use core::fmt;\n#[cfg(test)] mod tests { use crate::high::Top; }");
    write("high/mod.rs", "mod inner; use crate::low; pub struct Top;");
    write("high/inner.rs", "use super::Top; use crate::{low::{A, B}, pair};");
    write("pair.rs", "fn f() { let _ = super::low::X; }");
    let rungs = |text: &str| -> Vec<Vec<String>> {
        text.split('/').map(|rung| rung.split_whitespace().map(String::from).collect()).collect()
    };
    let found = |text: &str| faults(&rungs(text), &modules_of(folder.path()));
    assert_eq!(found("low/pair/high"), Vec::<String>::new());
    assert_eq!(found("low/pair high"), ["high uses pair, which is not below it, in high/inner.rs"]);
    assert_eq!(found("pair/low/high"), ["pair uses low, which is not below it, in pair.rs"]);
    assert_eq!(found("low/pair/high other"), ["there is no module other"]);
    // By its name at the top of the crate, too.
    write("low.rs", "fn f() -> crate::Top { crate::Top }");
    assert_eq!(found("low/pair/high"), ["low uses high, which is not below it, in low.rs"]);
}

/// The modules of the protocols, of the lines of `protocol.rs`.
fn protocols(source: &str) -> Vec<(String, String)> {
    let line = |line: &str| {
        let (_, rest) = line.split_once(" in ")?;
        let (module, _) = rest.split_once(',')?;
        line.contains(" = \"").then(|| (module.to_string(), line.to_string()))
    };
    source.lines().filter_map(line).collect()
}

#[test]
fn protocols_do_not_name_each_other() {
    let sources = crate_folder("hugetlb").join("src");
    let list = protocols(&std::fs::read_to_string(sources.join("protocol.rs")).expect("the list"));
    assert_eq!(list.len(), 5, "{list:?}");
    let names: BTreeSet<&str> = list.iter().map(|(module, _)| module.as_str()).collect();
    for (file, words) in sources::words_of(&sources) {
        // The mutants and the counters have words of their own.
        let owner = names.iter().find(|name| file == format!("sharing/{name}.rs"));
        for word in words.iter().filter(|word| names.contains(word.as_str()) && **word != "none") {
            let is_own = owner.is_some_and(|owner| owner == word) || file == "protocol.rs";
            assert!(is_own, "{file} names the protocol {word}");
        }
    }
}

/// Long: it runs cargo once for each protocol. `cargo test -p hugetlb-sim --test ladder -- --ignored`
#[test]
#[ignore = "runs cargo for each protocol"]
fn a_protocol_is_deleted_by_its_file_and_one_line() {
    let copy = tempfile::tempdir().expect("a folder");
    let crates = copy.path().join("crates");
    for name in ["filetables", "hugetlb", "summary-tree"] {
        sources::copy(&crate_folder(name), &crates.join(name));
    }
    let root = crate_folder("..");
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).expect("the workspace");
    let (_, shared) = manifest.split_once("[workspace.package]").expect("what members have in common");
    let workspace =
        format!("[workspace]\nresolver = \"3\"\nmembers = [\"crates/*\"]\n[workspace.package]{shared}");
    std::fs::write(copy.path().join("Cargo.toml"), workspace).unwrap();
    std::fs::copy(root.join("Cargo.lock"), copy.path().join("Cargo.lock")).unwrap();
    let sources = crates.join("hugetlb/src");
    let list = std::fs::read_to_string(sources.join("protocol.rs")).unwrap();
    for (module, line) in protocols(&list) {
        let file = sources.join("sharing").join(format!("{module}.rs"));
        let text = std::fs::read(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        std::fs::write(sources.join("protocol.rs"), list.replace(&line, "")).unwrap();
        let status = Command::new(env!("CARGO"))
            .args(["check", "--offline", "-p", "hugetlb", "--lib", "--features", "lab"])
            .current_dir(copy.path())
            .env("CARGO_TARGET_DIR", copy.path().join("target"))
            .status()
            .expect("cargo runs");
        assert!(status.success(), "without {module}");
        std::fs::write(&file, text).unwrap();
    }
}

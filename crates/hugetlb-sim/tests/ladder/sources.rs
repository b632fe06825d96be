//! What the modules of a crate name of each other, found in their sources.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;

/// A module at the top of a crate, with all below it.
#[derive(Default, Debug)]
pub struct Module {
    /// The other modules at the top that it names, with the file where.
    pub uses: BTreeSet<(String, String)>,
}

/// Calls `visit` with each source file of a folder: its path below the folder, and its text.
fn each_file(folder: &Path, below: &str, visit: &mut impl FnMut(&str, &str)) {
    let mut entries: Vec<_> =
        std::fs::read_dir(folder).expect("a folder").map(|entry| entry.unwrap()).collect();
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        let name = entry.file_name().into_string().expect("a name in UTF-8");
        let path = format!("{below}{name}");
        if entry.file_type().unwrap().is_dir() {
            each_file(&entry.path(), &format!("{path}/"), visit);
        } else if name.ends_with(".rs") && !is_of_tests(&path) {
            visit(&path, &std::fs::read_to_string(entry.path()).unwrap());
        }
    }
}

fn is_of_tests(path: &str) -> bool {
    path.split('/').any(|part| ["tests", "tests.rs", "testing.rs"].contains(&part))
}

/// Copies the files of a folder.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.unwrap();
        let place = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &place);
        } else {
            std::fs::copy(entry.path(), place).unwrap();
        }
    }
}

/// The tokens of a source file that are not of tests, groups opened.
fn tokens(text: &str) -> Vec<String> {
    let file = syn::parse_file(text).expect("a source file");
    let is_test = |attributes: &[syn::Attribute]| {
        attributes.iter().any(|attribute| attribute.to_token_stream().to_string().contains("cfg (test)"))
    };
    let mut flat = Vec::new();
    for item in file.items {
        if !matches!(&item, syn::Item::Mod(module) if is_test(&module.attrs)) {
            flatten(item.to_token_stream(), &mut flat);
        }
    }
    flat
}

fn flatten(stream: TokenStream, flat: &mut Vec<String>) {
    for token in stream {
        match token {
            TokenTree::Group(group) => {
                flat.push("{".into());
                flatten(group.stream(), flat);
                flat.push("}".into());
            }
            TokenTree::Literal(_) => flat.push("literal".into()),
            other => flat.push(other.to_string()),
        }
    }
}

/// The words of each file.
pub fn words_of(folder: &Path) -> Vec<(String, BTreeSet<String>)> {
    let mut files = Vec::new();
    each_file(folder, "", &mut |path, text| {
        files.push((path.to_string(), tokens(text).into_iter().collect()));
    });
    files
}

/// The modules at the top of a crate whose sources are in the folder.
pub fn modules_of(folder: &Path) -> BTreeMap<String, Module> {
    let mut files = Vec::new();
    each_file(folder, "", &mut |path, text| files.push((path.to_string(), tokens(text))));
    let top = |path: &str| path.split('/').next().unwrap_or(path).trim_end_matches(".rs").to_string();
    let mut modules: BTreeMap<String, Module> = files
        .iter()
        .map(|(path, _)| (top(path), Module::default()))
        .filter(|(name, _)| name != "lib")
        .collect();
    // What the crate's page shows under another name than its module's.
    let mut shown: BTreeMap<String, String> = BTreeMap::new();
    for (_, tokens) in files.iter().filter(|(path, _)| path == "lib.rs") {
        for (at, word) in tokens.iter().enumerate().filter(|(_, word)| *word == "use") {
            let module = tokens.get(at + 1).cloned().unwrap_or_default();
            let names = tokens[at..].iter().skip(2).take_while(|word| *word != ";");
            shown.extend(names.map(|name| (name.clone(), module.clone())));
            let _ = word;
        }
    }
    for (path, tokens) in &files {
        let own = top(path);
        let Some(module) = modules.get_mut(&own) else { continue };
        // How many times `super` leads from the file's module to the top.
        let depth = path.split('/').count() - usize::from(path.ends_with("/mod.rs"));
        for name in names_at_top(tokens, depth) {
            let name = shown.get(&name).cloned().unwrap_or(name);
            if name != own {
                module.uses.insert((name, path.clone()));
            }
        }
    }
    // Names that are of no module are macros, and the crates that the page shows.
    let known: BTreeSet<String> = modules.keys().cloned().collect();
    modules.values_mut().for_each(|module| module.uses.retain(|(name, _)| known.contains(name)));
    modules
}

/// What tokens name of the crate's top: behind `crate::`, and behind as many `super::` as lead there.
fn names_at_top(tokens: &[String], depth: usize) -> Vec<String> {
    let is = |at: usize, word: &str| tokens.get(at).is_some_and(|token| token == word);
    let is_path = |at: usize| is(at, ":") && is(at + 1, ":");
    let mut names = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let mut behind = None;
        // `$crate` is in macros, which others expand.
        if is(at, "crate") && is_path(at + 1) && (at == 0 || !is(at - 1, "$")) {
            behind = Some(at + 3);
        } else if is(at, "super") && (at == 0 || !is(at - 1, ":")) {
            let mut next = at;
            let mut steps = 0;
            while is(next, "super") && is_path(next + 1) {
                (next, steps) = (next + 3, steps + 1);
            }
            if steps == depth {
                behind = Some(next);
            }
        }
        match behind {
            // A list: the first word of each of its members.
            Some(start) if is(start, "{") => {
                let mut level = 0;
                for (number, token) in tokens.iter().enumerate().skip(start) {
                    match token.as_str() {
                        "{" => level += 1,
                        "}" => level -= 1,
                        _ if level == 1 && (is(number - 1, "{") || is(number - 1, ",")) => {
                            names.push(token.clone());
                        }
                        _ => {}
                    }
                    if level == 0 {
                        break;
                    }
                }
            }
            Some(start) => names.extend(tokens.get(start).cloned()),
            None => {}
        }
        at += 1;
    }
    names
}

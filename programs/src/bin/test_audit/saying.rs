//! What the audit says: its JSON, and what of it a test expects.

use std::process::Command;

use serde_json::Value;

/// Runs the audit and gives what it says, as JSON, with advice for the little that these tests take.
pub fn audit() -> Value {
    audit_worth("0")
}

/// The same with advice for what saves so much.
pub fn audit_worth(size: &str) -> Value {
    let output = command(&["audit", "--json", "--all", "--worth", size]).output().expect("roundtable starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("ROUNDTABLE").unwrap_or("/bin/roundtable".into()));
    command.args(arguments);
    command
}

/// What an audit says of one file on huge pages.
#[track_caller]
pub fn file_of<'a>(report: &'a Value, list: &str, name: &str) -> &'a Value {
    let files = report[list].as_array().expect("a list of files");
    files.iter().find(|file| file["name"] == name).unwrap_or_else(|| panic!("no {name} in {files:?}"))
}

/// Expects these slots of a file and no others.
#[track_caller]
pub fn expect(file: &Value, expected: &[(&str, u64)]) {
    let seen = file["slots"].as_object().expect("slots");
    let expected: serde_json::Map<String, Value> =
        expected.iter().map(|(verdict, count)| (verdict.to_string(), Value::from(*count))).collect();
    assert_eq!(seen, &expected, "{file}");
}

/// What it advises about a file.
pub fn advice_of<'a>(report: &'a Value, name: &str) -> Vec<&'a Value> {
    let all = report["advice"].as_array().expect("a list of advice");
    all.iter().filter(|advice| advice["subject"]["file"] == name).collect()
}

/// The one advice of a kind about a file.
#[track_caller]
pub fn advice<'a>(report: &'a Value, name: &str, id: &str) -> &'a Value {
    let all = advice_of(report, name);
    all.iter().find(|advice| advice["id"] == id).unwrap_or_else(|| panic!("no {id} in {all:?}"))
}

/// What it says of all files of this name: there may be several.
pub fn files_of<'a>(report: &'a Value, list: &str, name: &str) -> Vec<&'a Value> {
    let files = report[list].as_array().expect("a list of files");
    files.iter().filter(|file| file["name"] == name).collect()
}

/// The slots of each of these files, in an order of their own.
pub fn slots_of(files: &[&Value]) -> Vec<String> {
    let mut slots: Vec<String> = files.iter().map(|file| file["slots"].to_string()).collect();
    slots.sort();
    slots
}

/// The audit for people.
pub fn table() -> String {
    let output = command(&["audit", "--all"]).output().expect("roundtable starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

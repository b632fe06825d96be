//! The three outputs of recordings, word for word. UPDATE_EXPECT=1 writes them anew.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use expect_test::expect_file;

use crate::recordings::{folder, with_nodes};

/// What the program prints about a recording.
fn printed(name: &str, format: &[&str]) -> String {
    printed_of(&folder(name), format)
}

fn printed_of(root: &Path, format: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_roundtable"))
        .args(["audit", "--all", "--root"])
        .arg(root)
        .args(format)
        .output()
        .expect("roundtable starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("all output is UTF-8")
}

/// Reads and bytes depend on which thread meets a device first; and each time has its own.
fn without_work(text: &str) -> String {
    let names = ["reads\"", "bytes_read\"", "at_seconds\"", "milliseconds\"", "is_root\""];
    let without = |line: &str| match line.split_once(": ") {
        Some((name, number)) if names.iter().any(|known| name.ends_with(known)) => {
            format!("{name}: 0{}\n", if number.ends_with(',') { "," } else { "" })
        }
        _ if ["roundtable_audit_timestamp_seconds ", "roundtable_audit_duration_seconds "]
            .iter()
            .any(|name| line.starts_with(name)) =>
        {
            String::new()
        }
        _ => format!("{line}\n"),
    };
    text.lines().map(without).collect()
}

#[test]
fn tables() {
    expect_file!["../recordings/database.txt"].assert_eq(&printed("database", &[]));
    expect_file!["../recordings/hostile.txt"].assert_eq(&printed("hostile", &[]));
}

#[test]
fn json() {
    let text = printed("database", &["--json"]);
    expect_file!["../recordings/database.json"].assert_eq(&without_work(&text));
    let text = printed("hostile", &["--json"]);
    expect_file!["../recordings/hostile.json"].assert_eq(&without_work(&text));
}

#[test]
fn prometheus() {
    expect_file!["../recordings/database.prom"]
        .assert_eq(&without_work(&printed("database", &["--prometheus"])));
    expect_file!["../recordings/hostile.prom"]
        .assert_eq(&without_work(&printed("hostile", &["--prometheus"])));
}

/// The examples for operators that anybody can make again are what the program prints now.
#[test]
fn the_page_for_operators_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let document = std::fs::read_to_string(root.join("docs/operators.md")).unwrap();
    let bin = Path::new(env!("CARGO_BIN_EXE_roundtable")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let (mut made, mut examples) = (String::new(), 0);
    let mut blocks = document.split("```console\n$ ");
    made += blocks.next().unwrap();
    for block in blocks {
        let (command, rest) = block.split_once('\n').unwrap();
        let (output, rest) = rest.split_once("```").unwrap();
        let mut output = output.to_string();
        if command.starts_with("roundtable plan") || command.contains("--root ") {
            let run = Command::new("sh").args(["-c", command]).current_dir(&root).env("PATH", &path).output();
            output = String::from_utf8(run.expect("sh starts").stdout).unwrap();
            examples += 1;
        }
        made += &format!("```console\n$ {command}\n{output}```{rest}");
    }
    assert!(examples >= 11, "{examples}");
    expect_file!["../../../../docs/operators.md"].assert_eq(&made);
}

/// Of each recorded situation the page has the question with its source and the answer; and of all advice the source.
#[test]
fn the_page_for_operators_names_its_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(root.join("../../docs/operators.md")).unwrap();
    let mut recorded = BTreeSet::new();
    for section in document.split("\n### ").skip(1) {
        let (_, behind) = section.split_once("[The question](https://").expect("a link to the question");
        let (_, behind) = behind.split_once("--root crates/roundtable/tests/recordings/questions/").unwrap();
        recorded.insert(behind.lines().next().unwrap().to_string());
    }
    let folders = std::fs::read_dir(root.join("tests/recordings/questions")).unwrap().flatten();
    let folders: BTreeSet<String> = folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert!(recorded.len() >= 8);
    assert_eq!(recorded, folders);
    let sources = std::fs::read_to_string(root.join("src/audit/advice/sources.rs")).unwrap();
    let urls: Vec<&str> = sources.split('"').filter(|part| part.starts_with("https://")).collect();
    assert!(urls.len() > 10);
    for url in urls {
        assert!(document.contains(url), "{url}");
    }
}

/// Every field of the JSON output stands in its documentation, and nothing else does: what is added or
/// renamed is written down, and what changes its meaning raises the number.
#[test]
fn the_shape_of_the_json_is_documented() {
    let (mut fields, mut empty) = (BTreeSet::new(), BTreeSet::new());
    let nodes = with_nodes();
    for root in [folder("database"), folder("hostile"), nodes.path().to_path_buf()] {
        let value: serde_json::Value = serde_json::from_str(&printed_of(&root, &["--json"])).unwrap();
        assert_eq!(value["schema"], roundtable::audit::report::SCHEMA);
        walk(&value, "", &mut fields, &mut empty);
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/audit-json.md");
    let document = std::fs::read_to_string(path).unwrap();
    assert!(document.contains(&format!("Schema {}", roundtable::audit::report::SCHEMA)));
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let documented: BTreeSet<String> = rows.map(|(field, _)| field.to_string()).collect();
    fields.extend(empty.into_iter().filter(|field| documented.contains(field)));
    assert_eq!(fields, documented);
}

/// The paths of all fields: `huge[].slots{}` for lists and maps by kind.
fn walk(value: &serde_json::Value, path: &str, fields: &mut BTreeSet<String>, empty: &mut BTreeSet<String>) {
    match value {
        // Its keys are values: verdicts.
        serde_json::Value::Object(_) if path.ends_with("[].slots") => drop(fields.insert(path.to_string())),
        serde_json::Value::Object(map) => {
            for (name, value) in map {
                let dot = if path.is_empty() { "" } else { "." };
                // Both lists have the same form.
                let path = format!("{path}{dot}{name}");
                walk(value, &path.replacen("base[]", "huge[]", 1), fields, empty);
            }
        }
        serde_json::Value::Array(list) => {
            match list.iter().any(|value| !value.is_object()) {
                true => drop(fields.insert(path.to_string())),
                // What would be in it another one tells, or it is a list of texts.
                false if list.is_empty() => drop(empty.insert(path.to_string())),
                false => {}
            }
            list.iter().for_each(|value| walk(value, &format!("{path}[]"), fields, empty));
        }
        _ if path.ends_with("[]") => {}
        _ => drop(fields.insert(path.to_string())),
    }
}

//! The dashboard and the alerts ask for metrics, labels and values that the audit writes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use roundtable::output::prometheus::text;

use crate::exposition::parse;
use crate::recordings::{audited, folder, with_nodes};

/// The values of each label of each metric, of all that an audit can write.
type Known = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// Labels that Prometheus adds.
const ADDED: [&str; 2] = ["instance", "job"];

fn known() -> Known {
    let mut known = Known::new();
    let nodes = with_nodes();
    let mut freeing = audited(nodes.path());
    freeing.advice[0].frees = 2 << 20;
    for report in [audited(&folder("database")), audited(&folder("hostile")), freeing] {
        for (name, metric) in parse(&text(&report)).unwrap() {
            let labels = known.entry(name).or_default();
            for (label, value) in metric.samples.into_iter().flat_map(|(labels, _)| labels) {
                labels.entry(label).or_default().insert(value);
            }
        }
    }
    // No recording has these: a mapping of one's own, files and segments that nobody maps.
    let holds = known.get_mut("roundtable_pool_held_pages").unwrap().get_mut("hold").unwrap();
    holds.extend(["private", "file", "descriptor", "segment", "mount"].map(String::from));
    known
}

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
    fs::read_to_string(path).unwrap()
}

/// The metrics that a text names, each with what stands behind it.
fn named(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.match_indices("roundtable_").map(|(at, _)| {
        let rest = &text[at..];
        rest.split_at(rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len()))
    })
}

/// What is wrong with an expression; how many metrics it names.
fn check(known: &Known, expression: &str) -> Result<usize, String> {
    let mut count = 0;
    for (name, rest) in named(expression) {
        count += 1;
        let labels = known.get(name).ok_or(format!("no metric {name}"))?;
        let Some(selector) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) else { continue };
        for part in selector.0.split(',') {
            let (label, values) = part.split_once('=').ok_or(format!("{part} in {expression}"))?;
            let values = values.trim_start_matches('~').trim_matches('"');
            if ADDED.contains(&label) {
                continue;
            }
            let there = labels.get(label).ok_or(format!("{name} has no label {label}"))?;
            for value in values.split('|') {
                if !there.contains(value) {
                    return Err(format!("{label} of {name} is never {value}"));
                }
            }
        }
    }
    Ok(count)
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let known = known();
    let board: serde_json::Value = serde_json::from_str(&document("grafana.json")).unwrap();
    let panels = board["panels"].as_array().unwrap();
    let mut asked = BTreeSet::new();
    for panel in panels {
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{}", panel["title"]);
        for target in targets {
            let expression = target["expr"].as_str().unwrap();
            assert!(check(&known, expression).unwrap() > 0, "{expression}");
            asked.extend(named(expression).map(|(name, _)| name.to_string()));
            // A legend names labels of the metric, which an aggregation keeps only where it says so.
            for label in target["legendFormat"].as_str().unwrap().split("{{").skip(1) {
                let label = label.split_once("}}").unwrap().0;
                let (name, _) = named(expression).next().unwrap();
                assert!(ADDED.contains(&label) || known[name].contains_key(label), "{label} of {name}");
                if let Some((_, by)) = expression.split_once("sum by (") {
                    let kept = by.split_once(')').unwrap().0;
                    assert!(
                        kept.split(", ").any(|one| one == label),
                        "{label} is summed away in {expression}"
                    );
                }
            }
        }
    }
    let variable = board["templating"]["list"][1]["query"]["query"].as_str().unwrap();
    assert_eq!(check(&known, variable), Ok(1));
    // The three questions and what to do have a panel each.
    for name in ["program_page_table_bytes", "pool_held_pages", "advice_saving_bytes", "advice_freed_bytes"] {
        assert!(asked.contains(&format!("roundtable_{name}")), "{name}");
    }
}

#[test]
fn the_alerts_ask_for_what_there_is() {
    let page = document("operators.md");
    let rules = page.split_once("```yaml\n").unwrap().1.split_once("```").unwrap().0;
    let known = known();
    let mut count = 0;
    for expression in rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")) {
        count += check(&known, expression).unwrap();
    }
    assert!(count >= 4, "{rules}");
}

/// The check itself refuses what is not there.
#[test]
fn what_is_not_there_is_refused() {
    let known = known();
    for expression in [
        "roundtable_page_table_bytes",
        "roundtable_pool_pages{pool=\"1\"}",
        "roundtable_pool_pages{state=~\"total|used\"}",
    ] {
        assert!(check(&known, expression).is_err(), "{expression}");
    }
    assert_eq!(check(&known, "sum(roundtable_pool_pages{state=\"free\"})"), Ok(1));
}

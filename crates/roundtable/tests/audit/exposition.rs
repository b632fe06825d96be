//! A strict reader of Prometheus' text format 0.0.4: more is refused than Prometheus itself refuses.
//!
//! Its rules are those of the format's specification and of the naming conventions. Crates that read the
//! format either leave out what they do not understand, where this one has to fail, or are not under a
//! permissive licence.

use std::collections::{BTreeMap, BTreeSet};

/// Labels, sorted by name.
pub type Labels = BTreeMap<String, String>;

/// A metric with all its samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metric {
    pub help: Option<String>,
    pub kind: Option<String>,
    pub samples: Vec<(Labels, f64)>,
}

/// Reads a whole text; what is wrong with it, with the line.
pub fn parse(text: &str) -> Result<BTreeMap<String, Metric>, String> {
    if !text.ends_with('\n') {
        return Err("the last line does not end".into());
    }
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    let mut open: Option<String> = None;
    for line in text.strip_suffix('\n').expect("checked above").split('\n') {
        one(line, &mut metrics, &mut open).map_err(|error| format!("{error}: {line}"))?;
    }
    for (name, metric) in &metrics {
        if metric.help.is_none() || metric.kind.is_none() || metric.samples.is_empty() {
            return Err(format!("{name} lacks HELP, TYPE or samples"));
        }
        conventions(name, metric)?;
    }
    Ok(metrics)
}

fn one(line: &str, metrics: &mut BTreeMap<String, Metric>, open: &mut Option<String>) -> Result<(), String> {
    let is_comment = line.starts_with('#');
    let (name, rest) = if is_comment {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        let ["#", "HELP" | "TYPE", name, _] = words[..] else { return Err("neither HELP nor TYPE".into()) };
        (name, line)
    } else {
        line.split_at(line.find(['{', ' ']).ok_or("no value")?)
    };
    if !is_name(name, true) {
        return Err(format!("{name:?} is no name"));
    }
    // All lines of a metric stand together.
    if open.as_deref() != Some(name) && metrics.contains_key(name) {
        return Err(format!("{name} stands in two places"));
    }
    *open = Some(name.to_string());
    let metric = metrics.entry(name.to_string()).or_default();
    if is_comment {
        if !metric.samples.is_empty() {
            return Err("behind samples".into());
        }
        let text = line.splitn(4, ' ').last().expect("four words");
        let (place, text) = if line.starts_with("# HELP") {
            (&mut metric.help, unescape(text, false)?)
        } else if ["counter", "gauge", "histogram", "summary", "untyped"].contains(&text) {
            (&mut metric.kind, text.to_string())
        } else {
            return Err("no such type".into());
        };
        return if place.replace(text).is_some() { Err("twice".into()) } else { Ok(()) };
    }
    let (labels, value) = labels(rest)?;
    let value = value.strip_prefix(' ').ok_or("no blank before the value")?;
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte)) {
        return Err("no number".into());
    }
    if metric.samples.iter().any(|(other, _)| *other == labels) {
        return Err("a series twice".into());
    }
    metric.samples.push((labels, value.parse().map_err(|_| "no number")?));
    Ok(())
}

fn labels(text: &str) -> Result<(Labels, &str), String> {
    let mut labels = Labels::new();
    let Some(mut text) = text.strip_prefix('{') else { return Ok((labels, text)) };
    loop {
        let (name, rest) = text.split_once("=\"").ok_or("a label without a value")?;
        if !is_name(name, false) || name.starts_with("__") {
            return Err(format!("{name:?} is no label's name"));
        }
        let mut end = None;
        let mut is_escaped = false;
        for (at, byte) in rest.bytes().enumerate() {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' => is_escaped = true,
                b'"' => {
                    end = Some(at);
                    break;
                }
                _ => {}
            }
        }
        let end = end.ok_or("a label's value does not end")?;
        let value = unescape(&rest[..end], true)?;
        if value.is_empty() {
            return Err(format!("{name} is empty, which is the same as not there"));
        }
        if labels.insert(name.to_string(), value).is_some() {
            return Err(format!("{name} twice in a sample"));
        }
        text = &rest[end + 1..];
        if let Some(rest) = text.strip_prefix('}') {
            return Ok((labels, rest));
        }
        text = text.strip_prefix(',').ok_or("labels without a comma")?;
    }
}

fn unescape(text: &str, in_label: bool) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, (c == '\\').then(|| chars.next())) {
            ('\\', Some(Some('\\'))) => out.push('\\'),
            ('\\', Some(Some('n'))) => out.push('\n'),
            ('\\', Some(Some('"'))) if in_label => out.push('"'),
            ('\\', other) => return Err(format!("no such escape: {other:?}")),
            (c, _) => out.push(c),
        }
    }
    Ok(out)
}

fn is_name(name: &str, with_colon: bool) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || with_colon && byte == b':')
        && name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit())
}

/// https://prometheus.io/docs/practices/naming/, as `promtool check metrics` holds it against a text.
fn conventions(name: &str, metric: &Metric) -> Result<(), String> {
    let is_counter = metric.kind.as_deref() == Some("counter");
    let labels: BTreeSet<&String> = metric.samples.iter().flat_map(|(labels, _)| labels.keys()).collect();
    let wrong = [
        (!name.starts_with("roundtable_"), "does not begin with the application's name"),
        (name.bytes().any(|byte| byte.is_ascii_uppercase() || byte == b':'), "has capitals or colons"),
        (is_counter != name.ends_with("_total"), "ends in _total and is no counter, or the other way round"),
        (name.contains("gauge") || name.contains("counter"), "has its type in its name"),
        (
            ["kib", "mib", "gib", "kb", "mb", "gb", "kilobytes"]
                .iter()
                .any(|unit| name.split('_').any(|word| word == *unit)),
            "is not in the base unit",
        ),
        (name.contains("_bytes") && !name.ends_with("_bytes"), "has its unit in the middle"),
        (
            name.ends_with("_info") && metric.samples.iter().any(|(_, value)| *value != 1.0),
            "is information and not 1",
        ),
        (
            labels.iter().any(|label| label.as_str() == "le" || label.as_str() == "quantile"),
            "has a reserved label",
        ),
    ];
    match wrong.iter().find(|(is_wrong, _)| *is_wrong) {
        Some((_, what)) => Err(format!("{name} {what}")),
        None => Ok(()),
    }
}

const GOOD: &str = "# HELP roundtable_a_bytes All of it.\n# TYPE roundtable_a_bytes \
    gauge\nroundtable_a_bytes{file=\"a\\\\b\\\"c\\nd}\",n=\"1\"} 5\nroundtable_a_bytes 6\n";

#[test]
fn what_is_right_is_read() {
    let metrics = parse(GOOD).unwrap();
    let samples = &metrics["roundtable_a_bytes"].samples;
    assert_eq!((samples[0].0["file"].as_str(), samples[0].1), ("a\\b\"c\nd}", 5.0));
    assert_eq!(samples[1], (Labels::new(), 6.0));
}

#[test]
fn what_is_wrong_is_refused() {
    let head = "# HELP roundtable_a x\n# TYPE roundtable_a gauge\n";
    for wrong in [
        "",
        "roundtable_a 1\n",
        "# TYPE roundtable_a gauge\nroundtable_a 1\n",
        "# HELP roundtable_a x\n# HELP roundtable_a x\n# TYPE roundtable_a gauge\nroundtable_a 1\n",
        "# HELP roundtable_a x\nroundtable_a 1\n# TYPE roundtable_a gauge\n",
        "# HELP a x\n# TYPE a gauge\na 1\n",
        "# HELP roundtable_a x\n# TYPE roundtable_a counter\nroundtable_a 1\n",
        "# HELP roundtable_a_total x\n# TYPE roundtable_a_total gauge\nroundtable_a_total 1\n",
        "# HELP roundtable_a_kb x\n# TYPE roundtable_a_kb gauge\nroundtable_a_kb 1\n",
        "# HELP roundtable_a_info x\n# TYPE roundtable_a_info gauge\nroundtable_a_info 2\n",
        &(head.to_string() + "roundtable_a 1"),
        &(head.to_string() + "roundtable_a 1\n\n"),
        &(head.to_string() + "roundtable_a x\n"),
        &(head.to_string() + "roundtable_a 1\nroundtable_a 2\n"),
        &(head.to_string() + "roundtable_a{b=\"1\",b=\"2\"} 1\n"),
        &(head.to_string() + "roundtable_a{b=\"\"} 1\n"),
        &(head.to_string() + "roundtable_a{b=\"\\t\"} 1\n"),
        &(head.to_string() + "roundtable_a{b=\"a\"c\"} 1\n"),
        &(head.to_string() + "roundtable_a{b=\"a\nc\"} 1\n"),
        &(head.to_string() + "roundtable_a{1b=\"a\"} 1\n"),
        &(head.to_string() + "roundtable_a 1\n" + GOOD + "roundtable_a{b=\"a\"} 1\n"),
    ] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}

//! The Prometheus output against a strict reader of the format, whatever files are called.

use proptest::prelude::*;
use roundtable::output::prometheus::text;

use crate::exposition::parse;
use crate::recordings::{audited, folder};

#[test]
fn recordings_give_what_a_strict_reader_takes() {
    for name in ["database", "hostile"] {
        let report = audited(&folder(name));
        let metrics = parse(&text(&report)).unwrap();
        let mut names: Vec<&str> = metrics["roundtable_file_processes"]
            .samples
            .iter()
            .map(|(labels, _)| labels["file"].as_str())
            .collect();
        let mut expected: Vec<&str> =
            report.huge.iter().chain(&report.base).map(|file| file.name.as_str()).collect();
        names.sort_unstable();
        expected.sort_unstable();
        assert_eq!(names, expected);
        let slots: f64 = metrics["roundtable_file_slots"].samples.iter().map(|(_, value)| value).sum();
        assert_eq!(slots as u64, report.huge.iter().flat_map(|file| file.slots.values()).sum::<u64>());
    }
}

/// Each IPC namespace counts its segments from 0, all on one device.
#[test]
fn segments_of_two_namespaces_are_two_series() {
    let mut report = audited(&folder("hostile"));
    let mut file = report.huge[0].clone();
    file.ipc_namespace = 4026531839;
    let mut other = file.clone();
    other.ipc_namespace = 4026532000;
    report.huge = vec![file, other];
    let metrics = parse(&text(&report)).unwrap();
    assert_eq!(metrics["roundtable_file_size_bytes"].samples.len(), 2 + report.base.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// A label's value comes out of the reader as it went in.
    #[test]
    fn any_name_is_carried_over(name in "[\\PC\\n\\\\\" ={},#\r\u{1b}]{1,40}") {
        let mut report = audited(&folder("hostile"));
        report.huge.truncate(1);
        report.base.clear();
        report.huge[0].name = name.clone();
        let metrics = parse(&text(&report)).unwrap();
        prop_assert_eq!(&metrics["roundtable_file_size_bytes"].samples[0].0["file"], &name);
    }
}

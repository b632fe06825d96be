//! The Prometheus output against a strict reader of the format, whatever files are called.

use proptest::prelude::*;
use roundtable::output::prometheus::{stable, text};

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
        let files = report.huge.iter().chain(&report.base);
        let mut expected: Vec<String> = files.map(|file| stable(&file.name)).collect();
        names.sort_unstable();
        expected.sort_unstable();
        assert_eq!(names, expected);
        let slots: f64 = metrics["roundtable_file_slots"].samples.iter().map(|(_, value)| value).sum();
        assert_eq!(slots as u64, report.huge.iter().flat_map(|file| file.slots.values()).sum::<u64>());
    }
}

/// What changes at each start of a program is in no label: the series go on.
#[test]
fn a_program_that_is_started_again_keeps_its_series() {
    let report = audited(&folder("hostile"));
    let mut again = report.clone();
    for file in again.huge.iter_mut().chain(&mut again.base) {
        file.inode += 1000;
        file.ipc_namespace += 1;
        file.some_pids.iter_mut().for_each(|pid| *pid += 7);
    }
    assert_eq!(text(&report), text(&again));
    for (name, expected) in [
        ("SysV segment 32768 (key 0x0000002a)", "SysV segment (key 0x0000002a)"),
        ("/dev/hugepages/spdk_pid93map_12", "/dev/hugepages/spdk_pid*map_*"),
        ("/dev/shm/PostgreSQL.3141592", "/dev/shm/PostgreSQL.*"),
        ("memfd sga1", "memfd sga*"),
        ("memfd a/b1/2c", "memfd a/b*/*c"),
        ("anonymous memory", "anonymous memory"),
    ] {
        assert_eq!(stable(name), expected);
    }
    // Two of one name are one series, with the sum.
    let mut two = report.clone();
    two.huge = vec![report.huge[0].clone(), report.huge[0].clone()];
    let metrics = parse(&text(&two)).unwrap();
    let samples = &metrics["roundtable_file_size_bytes"].samples;
    assert_eq!(samples.len(), 1 + report.base.len());
    assert_eq!(samples[0].1, 2.0 * report.huge[0].size as f64);
}

/// Anybody may make any number of files of huge pages, of any names, and of no page.
#[test]
fn very_many_files_are_few_series() {
    let few = audited(&folder("database"));
    let mut many = few.clone();
    let letters = |number: usize| format!("{number:b}").replace('0', "a").replace('1', "b");
    many.huge = (0..3000)
        .map(|number| {
            let mut file = few.huge[0].clone();
            file.name = format!("memfd {}", letters(number));
            file.bytes.now = if number == 2500 { 1 << 40 } else { number as u64 };
            file
        })
        .collect();
    many.advice = (0..3000)
        .map(|number| {
            let mut advice = few.advice[0].clone();
            (advice.gain, advice.subject.file) = (1 + number as u64, letters(number));
            advice
        })
        .collect();
    let text = text(&many);
    assert!(text.lines().count() < 2000, "{} lines", text.lines().count());
    let metrics = parse(&text).unwrap();
    let samples = &metrics["roundtable_file_page_table_bytes"].samples;
    let now = || samples.iter().filter(|(labels, _)| labels["state"] == "now");
    assert!(now().any(|(labels, value)| labels["file"] == format!("memfd {}", letters(2500))
        && *value == (1u64 << 40) as f64));
    let sum: f64 = now().map(|(_, value)| value).sum();
    let files = many.huge.iter().chain(&many.base);
    assert_eq!(sum as u64, files.map(|file| file.bytes.now).sum::<u64>(), "the others are summed");
    let saving = &metrics["roundtable_advice_saving_bytes"].samples;
    assert_eq!((saving.len(), saving.iter().map(|(_, value)| value).sum::<f64>()), (51, 4_501_500.0));
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
        prop_assert_eq!(&metrics["roundtable_file_size_bytes"].samples[0].0["file"], &stable(&name));
    }
}

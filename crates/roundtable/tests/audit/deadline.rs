//! One bound for the whole run: once it is past, what is still done does not grow with the host. The end
//! comes after a number of questions and not at a time, and work is counted, so nothing here depends on how
//! fast the machine is.

use std::fs;

use roundtable::audit::deadline::Deadline;
use roundtable::audit::report::Report;
use roundtable::audit::source::Source;
use roundtable::audit::{LookOptions, audit_until};
use roundtable::size::Size;

use crate::recordings::folder;
use crate::scale::of_processes;

/// The most that is read for one process, over both looks and all answers, with what is asked about its control groups.
const READS: u64 = 16;
/// What is read of the host itself.
const HOSTS: u64 = 300;

/// An audit that ends when it has asked so often; and how many files it has read.
fn audited(root: &std::path::Path, times: u64) -> Result<(Report, u64), String> {
    let source = Source::recorded(root);
    let options = LookOptions { seconds: 2, all: false, min_processes: 2, worth: Size(0), root: None };
    let report = audit_until(Deadline::when_asked(times), &source, &options, false);
    report.map(|report| (report, source.counts().0)).map_err(|error| format!("{error:#}"))
}

#[test]
fn after_the_end_no_work_grows_with_the_host() {
    let host = of_processes(2000);
    // A unit, and so a control group, for each.
    for end in [5, 100, 1000, 3000] {
        let (report, reads) = audited(host.path(), end).unwrap();
        assert!(reads <= end * READS + HOSTS, "{reads} reads after {end} questions");
        let seen = &report.seen;
        assert!(seen.looked_into + seen.processes <= end + 4, "{end}: {seen:?}");
        assert_eq!(seen.processes + seen.skipped, 2000, "{end}: those that were not looked at are counted");
    }
    // Enough of them: it sees all.
    let (report, _) = audited(host.path(), 1_000_000).unwrap();
    assert_eq!((report.seen.looked_into, report.seen.skipped), (2000, 0));
}

/// One process that has very much memory: the walk over its pages is left in the middle, and it is then not
/// looked into, but seen.
#[test]
fn a_run_that_ends_at_any_moment_gives_an_answer() {
    let whole = audited(&folder("database"), 1_000_000).unwrap().0;
    for end in 1..200 {
        let (report, _) = audited(&folder("database"), end).unwrap();
        assert_eq!(report.seen.processes + report.seen.skipped, whole.seen.processes, "{end}");
        assert_eq!(report.seen.vanished, 0, "{end}: nobody has ended");
        assert!(report.seen.looked_into <= report.seen.mapping);
        let text = roundtable::output::table::text(
            &report,
            roundtable::output::table::Extent { top: 10, width: Some(80) },
        );
        assert_eq!(text.contains("no time for"), report.seen.skipped > 0, "{text}");
    }
}

#[test]
fn no_time_at_all_is_said_and_not_taken_for_an_empty_host() {
    let error = audited(&folder("database"), 0).unwrap_err();
    assert!(error.contains("no time to look at any of 24 processes"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    fs::create_dir(empty.path().join("proc")).unwrap();
    let error = audited(empty.path(), 0).unwrap_err();
    assert!(error.contains("no process is in sight"), "{error}");
}

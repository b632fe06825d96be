//! The forms of the audit's output.

use roundtable_programs::child::Child;
use roundtable_programs::huge::GIB;
use roundtable_programs::mem::{RW, SHARED};
use roundtable_programs::sys;

use crate::saying::command;
use crate::scene::{FEW, PLACE, filled, map_at, stays, touch};

pub fn output_formats() {
    let (file, name) = filled(GIB, FEW);
    let _sharers: Vec<Child> = (0..2)
        .map(|_| {
            stays(|| {
                map_at(PLACE, GIB, RW, SHARED, &file);
                touch(PLACE, FEW);
            })
        })
        .collect();
    let path = format!("/tmp/audit-{}.prom", sys::pid());
    let status = command(&["audit", "--prometheus", "--output", &path]).status().expect("roundtable starts");
    assert!(status.success());
    let text = std::fs::read_to_string(&path).expect("the file");
    std::fs::remove_file(&path).unwrap();
    // The number would make new series at each start.
    let stable = name.replace(&sys::pid().to_string(), "*");
    let shared =
        text.lines().find(|line| line.starts_with("roundtable_file_slots{") && line.contains(&stable));
    assert!(shared.is_some_and(|line| line.contains("verdict=\"shared\"") && line.ends_with(" 2")), "{text}");
    let table = command(&["audit"]).output().expect("roundtable starts");
    assert!(String::from_utf8_lossy(&table.stdout).contains(&name));
}

//! What the audit sees where it may not see all.

use roundtable_programs::huge::GIB;
use roundtable_programs::mem::{RW, SHARED};
use serde_json::Value;

use crate::saying::command;
use crate::scene::{FEW, PLACE, filled, map_at, stays, touch};

/// As nobody, the audit works and says what it does not see.
pub fn another_user_sees_less() {
    use std::os::unix::process::CommandExt;
    let (file, name) = filled(GIB, FEW);
    let _roots = stays(|| {
        map_at(PLACE, GIB, RW, SHARED, &file);
        touch(PLACE, FEW);
    });
    let output = command(&["audit", "--json"]).uid(65534).gid(65534).output().expect("roundtable starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(report["seen"]["unreadable"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["seen"]["kpagecount"], false);
    assert!(report["huge"].as_array().unwrap().iter().all(|file| file["name"] != name), "{report}");
    assert!(report["check"]["vm_pte_all"].as_u64().unwrap() > 0);
    let text = command(&["audit"]).uid(65534).gid(65534).output().expect("roundtable starts");
    assert!(String::from_utf8_lossy(&text.stdout).contains("run as root to see them"));
}

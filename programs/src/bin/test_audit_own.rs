//! `roundtable audit` on our own kernel: it says that tables belong to the file, and the kernel's own counters agree.

#[path = "test_audit/saying.rs"]
#[allow(dead_code)]
mod saying;
#[path = "test_audit/scene.rs"]
#[allow(dead_code)]
mod scene;

use roundtable_programs::harness::skip;
use roundtable_programs::huge::{GIB, HUGE};
use roundtable_programs::mem::{PRIVATE, R, RW, SHARED};
use roundtable_programs::{sharing, tests};

use saying::{audit, expect, file_of, table};
use scene::{FEW, PLACE, expect_faults, faults_of_a_new_one, filled, map_at, stays, touch};

tests! { tables_belong_to_the_file: 120 }

fn tables_belong_to_the_file() {
    if sharing::protocol().as_deref() != Some("file-tables") {
        skip("tables do not belong to files here");
    }
    let (file, name) = filled(GIB, FEW);
    let elsewhere = PLACE + 4 * GIB + HUGE;
    let _sharers = [
        stays(|| {
            map_at(PLACE, GIB, RW, SHARED, &file);
            touch(PLACE, FEW);
        }),
        stays(|| map_at(PLACE, GIB, RW, SHARED, &file)),
        // Neither congruent with the others nor of their protection; in two slots, of which the second has no page.
        stays(|| map_at(elsewhere, GIB, R, SHARED, &file)),
        stays(|| {
            map_at(PLACE, GIB, RW, PRIVATE, &file);
            touch(PLACE, FEW);
        }),
    ];
    let report = audit();
    assert_eq!(report["kernel"]["protocol"], "file-tables");
    assert!(report["kernel"]["findings"].as_array().unwrap().is_empty(), "Linux's bugs are not ours");
    let seen = file_of(&report, "huge", &name);
    expect(seen, &[("file_owned", 3), ("private", 1), ("untouched", 1)]);
    // One for the first two, one for the part elsewhere, and the private one.
    assert_eq!(seen["tables"]["now"]["pmd"], 3, "{seen}");
    let text = table();
    assert!(text.contains("tables belong to the file") && text.contains(&name), "{text}");
    expect_faults(faults_of_a_new_one(|| map_at(elsewhere, GIB, R, SHARED, &file), elsewhere, FEW), 0);
}

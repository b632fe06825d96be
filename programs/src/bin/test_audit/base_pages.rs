//! Shared memory on pages of 4 KiB that would be better off on huge ones.

use roundtable_programs::child::Child;
use roundtable_programs::mem::{ANON, FIXED, Map, RW, SHARED, mmap};

use crate::saying::audit;
use crate::scene::{PLACE, stays};

pub fn shared_memory_on_base_pages() {
    const LENGTH: usize = 96 << 20;
    let flags = SHARED | ANON | FIXED;
    let map =
        mmap(PLACE, LENGTH, RW, flags, -1, 0).map(|address| Map { address, length: LENGTH }).expect("mmap");
    let _sharers: Vec<Child> =
        (0..4).map(|_| stays(|| (0..LENGTH).step_by(4096).for_each(|at| map.set(at, 1)))).collect();
    let report = audit();
    let files = report["base"].as_array().unwrap();
    let seen = files
        .iter()
        .find(|file| file["size"] == LENGTH && file["name"] == "anonymous memory")
        .expect("the memory");
    // Four children; the parent maps it too, and has touched nothing.
    assert_eq!(seen["processes"], 5);
    assert_eq!(seen["tables"]["now"]["pte"], 4 * 48, "{seen}");
    assert_eq!((&seen["tables"]["huge"]["pte"], &seen["tables"]["huge"]["pmd"]), (&0.into(), &4.into()));
    assert!(seen["cures"].to_string().contains("vm.nr_hugepages=48"), "{seen}");
    let check = &report["check"];
    let (estimate, kernel) = (check["estimate"].as_f64().unwrap(), check["vm_pte"].as_f64().unwrap());
    assert!((estimate / kernel - 1.0).abs() < 0.05, "{check}");
}

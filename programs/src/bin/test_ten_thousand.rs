//! The main job at its full size: 10,000 processes that share 1 GiB, within 4 GiB of memory.

use std::process::Command;

use roundtable_programs::leak::Baseline;
use roundtable_programs::tests;

tests! { sharers: 560 }

fn sharers() {
    let before = Baseline::take();
    let status = Command::new("/bin/sharers")
        .args(["--processes", "10000", "--bytes", "1G", "--mount", "/mnt/huge"])
        .status()
        .expect("/bin/sharers");
    assert!(status.success(), "{status}");
    before.check();
}

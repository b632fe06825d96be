//! Allocations that fail on purpose, in kernels that are built to be checked.

use crate::file::Fd;
use crate::harness;

/// `/proc/self/task/TID/fail-nth`, open.
pub struct Injector(Fd);

impl Injector {
    /// Skips the test on a kernel that has none.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Injector {
        // SAFETY: takes nothing.
        let tid = unsafe { libc::gettid() };
        match Fd::open(&format!("/proc/self/task/{tid}/fail-nth"), libc::O_RDWR) {
            Ok(file) => Injector(file),
            Err(_) => harness::skip("this kernel has no /proc/self/fail-nth"),
        }
    }

    /// The `nth` allocation from now on fails.
    pub fn arm(&self, nth: u32) {
        // Disarmed, the call itself cannot fail for want of memory.
        self.0.write_at(nth.to_string().as_bytes(), 0).expect("fail-nth");
    }

    /// Ends it; how many allocations were left to go, 0 when one has failed.
    pub fn disarm(&self) -> u32 {
        let mut text = [0; 16];
        // Reading allocates nothing that can fail.
        let length = self.0.read_at(&mut text, 0).expect("fail-nth");
        let left = std::str::from_utf8(&text[..length]).unwrap().trim().parse().expect("a number");
        // The write can be what fails: then it is over, too.
        let _ = self.0.write_at(b"0", 0);
        left
    }
}

//! A CPU with a queue, its idle thread, and interrupts from others.

use loom::sync::{Condvar, Mutex};

use crate::sched::beacon::{Beacon, IDLE_RANK};

/// The rank of the threads here.
const BUSY_RANK: u32 = 1;

/// One CPU.
pub struct Cpu {
    beacon: Beacon,
    /// Threads that wait to run: how many.
    queue: Mutex<usize>,
    /// An interrupt is pending. The CPU keeps interrupts off but while it halts.
    interrupt: Mutex<bool>,
    came: Condvar,
}

impl Cpu {
    /// A CPU that runs a thread.
    pub fn new() -> Self {
        let cpu = Cpu {
            beacon: Beacon::new(),
            queue: Mutex::new(0),
            interrupt: Mutex::new(false),
            came: Condvar::new(),
        };
        cpu.beacon.note_running(BUSY_RANK);
        cpu
    }

    /// Another CPU queues a thread here, as `queue::enqueue` does.
    pub fn enqueue(&self) {
        {
            let mut queue = self.queue.lock().unwrap();
            *queue += 1;
            self.beacon.count_in();
        }
        if BUSY_RANK < self.beacon.rank_of_running() {
            self.beacon.request();
            *self.interrupt.lock().unwrap() = true;
            self.came.notify_one();
        }
    }

    fn take(&self) -> bool {
        let mut queue = self.queue.lock().unwrap();
        if *queue == 0 {
            return false;
        }
        *queue -= 1;
        self.beacon.count_out();
        true
    }

    /// The CPU's running thread has gone to sleep: it runs what is queued, and idles, until it has run so many threads.
    pub fn run(&self, wanted: usize) {
        let mut ran = 0;
        while ran < wanted {
            // As `switch::schedule` and `idle::enter_idle` do.
            self.beacon.clear_request();
            if self.take() {
                self.beacon.note_running(BUSY_RANK);
                ran += 1;
                continue;
            }
            if self.beacon.running() != IDLE_RANK {
                self.beacon.note_running(IDLE_RANK);
            }
            if !self.beacon.may_halt() {
                continue;
            }
            let mut interrupt = self.interrupt.lock().unwrap();
            while !*interrupt {
                interrupt = self.came.wait(interrupt).unwrap();
            }
            *interrupt = false;
        }
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

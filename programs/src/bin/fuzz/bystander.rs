//! A process of another user, who has nothing to do with the actors: it must keep what it has, and answer.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use roundtable_programs::child::{self, Child};
use roundtable_programs::fault;
use roundtable_programs::huge::HUGE;
use roundtable_programs::mem::{self, ANON, Map, PRIVATE, RW, SHARED};
use roundtable_programs::sys::PAGE;

/// Its user.
const USER: u32 = 1000;
/// Base pages that it keeps.
const PAGES: usize = 256;
/// Huge pages that it keeps; it has as many again reserved.
const HUGE_PAGES: usize = 2;

/// The watcher's side.
pub struct Bystander {
    child: Child,
    question: std::io::PipeWriter,
    answer: std::io::PipeReader,
    pub longest: Duration,
}

const WELL: u8 = b'w';

impl Bystander {
    pub fn start() -> Bystander {
        let (mut asked, question) = std::io::pipe().expect("pipe");
        let (answer, mut told) = std::io::pipe().expect("pipe");
        let (theirs, ours) = (question.as_raw_fd(), answer.as_raw_fd());
        let child = child::fork(move || {
            // SAFETY: takes integers; the descriptors are this copy's.
            unsafe {
                libc::close(theirs);
                libc::close(ours);
                libc::setgroups(0, std::ptr::null());
                libc::setgid(USER);
                libc::setuid(USER);
            }
            let mut belongings = Belongings::new();
            let mut byte = [0];
            while asked.read_exact(&mut byte).is_ok() {
                let text = belongings.look(byte[0]).err().unwrap_or_default();
                let mut reply = vec![if text.is_empty() { WELL } else { b'!' }];
                reply.extend(text.as_bytes());
                if told.write_all(&reply).is_err() {
                    break;
                }
            }
        });
        Bystander { child, question, answer, longest: Duration::ZERO }
    }

    pub fn pid(&self) -> i32 {
        self.child.pid
    }

    /// Asks it; `b'e'` at the end of a round, when it uses its reservation, else `b'?'`.
    pub fn ask(&mut self, what: u8, limit: Duration) -> Result<(), String> {
        let start = Instant::now();
        self.question.write_all(&[what]).map_err(|error| format!("bystander-gone: {error}"))?;
        let mut poll = libc::pollfd { fd: self.answer.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the entry lives through the call.
        let ready = unsafe { libc::poll(&mut poll, 1, limit.as_millis() as i32) };
        if ready <= 0 {
            let state = roundtable_programs::procfs::state(self.child.pid);
            return Err(format!(
                "bystander-late: no answer in {} s; its state is {state:?}",
                limit.as_secs()
            ));
        }
        let mut bytes = [0; 256];
        let read = self.answer.read(&mut bytes);
        self.longest = self.longest.max(start.elapsed());
        match read {
            Ok(read) if bytes[..read].first() == Some(&WELL) => Ok(()),
            Ok(read @ 1..) => Err(format!("bystander-robbed: {}", String::from_utf8_lossy(&bytes[1..read]))),
            _ => Err("bystander-gone: it was killed".to_string()),
        }
    }

    /// Ends it.
    pub fn end(self) {
        self.child.end();
    }
}

/// What the bystander has.
struct Belongings {
    pages: Map,
    huge: Map,
    reserved: Map,
    asked: u64,
}

impl Belongings {
    fn new() -> Belongings {
        let map = |length, flags| Map::new(length, RW, flags | ANON, -1, 0).expect("the bystander's memory");
        let belongings = Belongings {
            pages: map(PAGES * PAGE, PRIVATE),
            huge: map(HUGE_PAGES * HUGE, SHARED | libc::MAP_HUGETLB),
            reserved: map(HUGE_PAGES * HUGE, PRIVATE | libc::MAP_HUGETLB),
            asked: 0,
        };
        for word in 0..PAGES * PAGE / 512 {
            belongings.pages.set_u64(word * 512, word as u64);
        }
        for word in 0..HUGE_PAGES * HUGE / 4096 {
            belongings.huge.set_u64(word * 4096, !(word as u64));
        }
        belongings
    }

    fn look(&mut self, what: u8) -> Result<(), String> {
        self.asked += 1;
        for word in 0..PAGES * PAGE / 512 {
            let found = self.pages.get_u64(word * 512);
            if found != word as u64 {
                return Err(format!("byte {:#x} of its memory reads {found:#x}", word * 512));
            }
        }
        for word in 0..HUGE_PAGES * HUGE / 4096 {
            let found = self.huge.get_u64(word * 4096);
            if found != !(word as u64) {
                return Err(format!("byte {:#x} of its huge pages reads {found:#x}", word * 4096));
            }
        }
        if what == b'e' {
            self.use_promise()?;
        }
        Ok(())
    }

    /// Touches what is reserved: that it is there was promised. Then has it promised again.
    fn use_promise(&mut self) -> Result<(), String> {
        for page in 0..HUGE_PAGES {
            let at = self.reserved.address + page * HUGE;
            match fault::load(at) {
                Ok(0) => {}
                Ok(word) => return Err(format!("a fresh huge page reads {word:#x}")),
                Err(fault) => return Err(format!("a reserved huge page gives signal {}", fault.signal)),
            }
            fault::store(at, self.asked)
                .map_err(|fault| format!("a huge page gives signal {}", fault.signal))?;
        }
        let length = self.reserved.length;
        mem::munmap(self.reserved.address, length).map_err(|error| format!("munmap: {error}"))?;
        let fresh = mem::mmap(
            self.reserved.address,
            length,
            RW,
            PRIVATE | ANON | libc::MAP_HUGETLB | libc::MAP_FIXED,
            -1,
            0,
        );
        fresh.map(drop).map_err(|error| format!("no huge pages to reserve after a round: {error}"))
    }
}

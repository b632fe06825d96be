//! What operations cost while so many processes share the file's table.

use std::time::Duration;

use guest_link::profile::marked;
use guest_link::record::{Operation, Record};
use roundtable_programs::child::waitpid;
use roundtable_programs::huge::{GIB, HUGE};
use roundtable_programs::mem::{R, RW, mprotect};
use roundtable_programs::shared::Shared;

use crate::crew::Crew;
use crate::stage::{BATCH, CUT, LENGTH, PAGES, PUNCHED, Stage, summary, time, touch};

/// Operations that leave the others' tables alone are measured so many times more often.
const CHEAP: usize = 3;

/// Not recorded, before those that are: an emulator translates code when it first comes to it.
const WARM_UP: usize = 2;

/// How long an operation takes, which is marked for `cargo xtask bench --profile`.
fn time_of(operation: Operation, run: impl FnOnce()) -> Duration {
    time(|| marked(operation, run))
}

/// Measures all operations; the acting process is a sharer too.
pub fn measure(stage: &Stage, crew: &Crew, runs: usize) -> Result<(), String> {
    let say = |operation: Operation, mut times: Vec<Duration>| {
        times.drain(..WARM_UP);
        let (runs, (median, least)) = (times.len() as u32, summary(times));
        stage.say(&Record::Cost { operation, sharers: crew.count() as u32 + 1, runs, median, least });
    };
    let mine = stage.address(0, 0);
    let mut times = Vec::new();
    for _ in 0..WARM_UP + runs {
        stage.fill(PUNCHED, BATCH);
        touch(mine, PAGES);
        crew.touch()?;
        times.push(time_of(Operation::Punch, || stage.punch(PUNCHED, BATCH)));
    }
    say(Operation::Punch, std::mem::take(&mut times));
    stage.fill(PUNCHED, BATCH);
    for _ in 0..WARM_UP + runs {
        touch(mine, PAGES);
        crew.touch()?;
        let cut = || stage.file.truncate((CUT * HUGE) as u64).expect("ftruncate");
        times.push(time_of(Operation::Truncate, cut));
        stage.file.truncate(LENGTH).expect("ftruncate");
        stage.fill(CUT, BATCH);
    }
    say(Operation::Truncate, std::mem::take(&mut times));
    touch(mine, PAGES);
    crew.touch()?;
    for _ in 0..WARM_UP + runs * CHEAP {
        times.push(time_of(Operation::Mprotect, || mprotect(mine, GIB, R).expect("mprotect")));
        touch(mine, PAGES);
        mprotect(mine, GIB, RW).expect("mprotect");
        touch(mine, PAGES);
    }
    say(Operation::Mprotect, std::mem::take(&mut times));
    for _ in 0..WARM_UP + runs * CHEAP {
        times.push(time_of(Operation::Attach, || {
            stage.map(1, 0, GIB);
            touch(stage.address(1, 0), PAGES);
        }));
        stage.unmap(1);
    }
    say(Operation::Attach, std::mem::take(&mut times));
    for _ in 0..WARM_UP + runs * CHEAP {
        stage.map(1, 0, GIB);
        touch(stage.address(1, 0), PAGES);
        times.push(time_of(Operation::Detach, || stage.unmap(1)));
    }
    say(Operation::Detach, std::mem::take(&mut times));
    let mut all = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..WARM_UP + runs * CHEAP {
        let life = life(stage)?;
        all.iter_mut().zip(life).for_each(|(times, time)| times.push(time));
    }
    let [fork, start, exit] = all;
    say(Operation::Fork, fork);
    say(Operation::Start, start);
    say(Operation::Exit, exit);
    Ok(())
}

/// One more sharer: how long its fork, its start and its exit take.
fn life(stage: &Stage) -> Result<[Duration; 3], String> {
    const READY: usize = 0;
    const GO: usize = 1;
    let control = Shared::new();
    let mut forked = Duration::ZERO;
    let mut child = 0;
    let started = time_of(Operation::Start, || {
        forked = time_of(Operation::Fork, || {
            // SAFETY: this process has one thread, and the child makes system calls and touches memory only.
            child = unsafe { libc::fork() };
        });
        if child == 0 {
            touch(stage.address(0, 0), PAGES);
            control.add(READY);
            control.wait(GO, 1);
            // SAFETY: ends the process; the parent's values must not be dropped here.
            unsafe { libc::_exit(0) }
        }
        if child > 0 {
            control.wait(READY, 1);
        }
    });
    if child < 0 {
        return Err(format!("fork: {}", std::io::Error::last_os_error()));
    }
    let ended = time_of(Operation::Exit, || {
        control.set(GO, 1);
        let _ = waitpid(child, 0);
    });
    Ok([forked, started, ended])
}

//! The processes of a sequence, of which one at a time does a step.

use std::fmt::Write;
use std::time::Duration;

use roundtable_programs::cgroup::Group;
use roundtable_programs::child;
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, Counters, HUGE, HugeFs, counters};
use roundtable_programs::mem::{ANON, Map, RW, SHARED};
use roundtable_programs::rng::Rng;
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{PAGE, check};

use super::actor::Actor;
use super::step::{ACTORS, LARGE, Step};

/// Huge pages that a sequence finds free and promised to nobody.
const POOL: u64 = 24;
/// The word that counts answers; those behind it count the steps of each process.
const ANSWERS: usize = 0;
/// Room for an answer.
const ROOM: usize = 16 * PAGE;

/// Where the world says what is to be done, and a process what came of it.
struct Board {
    words: Shared,
    /// The step.
    step: Map,
    /// The answer, behind its length.
    answer: Map,
}

impl Board {
    fn answer(&self, text: &str) {
        let length = text.len().min(ROOM - 8);
        self.answer.set_u64(0, length as u64);
        // SAFETY: the room is there, and nobody else uses it now.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), (self.answer.address + 8) as *mut u8, length) };
        self.words.add(ANSWERS);
    }

    fn step(&self) -> Step {
        // SAFETY: the world, a process of the same program, has written one.
        unsafe { (self.step.address as *const Step).read() }
    }
}

/// What the pool had before a sequence that is not the sequence's.
struct Before {
    promised: u64,
    used: u64,
}

impl Before {
    fn prepare() -> Before {
        huge::set_overcommit(0);
        let now = counters();
        let (promised, used) = (now.reserved, now.total - now.free);
        assert_eq!(huge::set_pool(POOL + promised + used), POOL + promised + used, "no memory for the pool");
        Before { promised, used }
    }

    /// The pool as this sequence sees it.
    fn pool(&self) -> String {
        let Counters { total, free, reserved, surplus } = counters();
        let number = |value: u64, less: u64| value as i64 - less as i64;
        format!(
            "{} {} {} {surplus}",
            number(total, self.promised + self.used),
            number(free, self.promised),
            number(reserved, self.promised)
        )
    }
}

/// Runs the sequence of a seed and prints what was seen.
pub fn run(seed: u64, steps: u64, trace: bool, even: bool) {
    // SAFETY: takes integers.
    unsafe {
        check(libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)).expect("PR_SET_CHILD_SUBREAPER");
        // Huge pages that come by themselves are another subject.
        check(libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0)).expect("PR_SET_THP_DISABLE");
    }
    let before = Before::prepare();
    let text = {
        let group = Group::new("+hugetlb");
        let minimum = if even { "size=16M" } else { "min_size=4M,size=16M" };
        let systems = ["", "size=16M", minimum].map(HugeFs::mount);
        let memfd = Fd::memfd("seeds", libc::MFD_HUGETLB | libc::MFD_ALLOW_SEALING).expect("memfd_create");
        let files = [systems[0].file(), systems[0].file(), systems[1].file(), systems[2].file(), memfd];
        files[0].truncate(8 * HUGE as u64).expect("ftruncate");
        files[LARGE].truncate(512 * HUGE as u64).expect("ftruncate");
        let text = play(seed, steps, &before, &files, &group);
        drop(files);
        text
    };
    let left = counters().reserved as i64 - before.promised as i64;
    let end = format!("end | {}\n", before.pool());
    if trace {
        print!("trace {seed} {left}\n{text}{end}");
    } else {
        println!("seed {seed} {:016x} {left}", hash(&(text + &end)));
    }
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A process that lives: its number, and which process made it, unless that has ended.
#[derive(Clone, Copy)]
struct Living {
    pid: i32,
    parent: Option<usize>,
}

fn play(seed: u64, steps: u64, before: &Before, files: &[Fd], group: &Group) -> String {
    let shared = |length| Map::new(length, RW, SHARED | ANON, -1, 0).expect("shared memory");
    let board = Board { words: Shared::new(), step: shared(PAGE), answer: shared(ROOM) };
    let mut rng = Rng::new(seed);
    let first = child::fork(|| {
        group.attach(0).expect("cgroup.procs");
        live(0, 0, &board, Actor { files, group, others: before.promised + before.used, uffd: None });
    });
    let mut all = [None; ACTORS];
    all[0] = Some(Living { pid: first.release(), parent: None });
    let mut text = String::new();
    for number in 1..=steps {
        let living: Vec<usize> = (0..ACTORS).filter(|actor| all[*actor].is_some()).collect();
        let actor = living[rng.below(living.len())];
        let free = (0..ACTORS).find(|actor| all[*actor].is_none());
        let step = Step::draw(&mut rng, number, actor, free);
        let mut answer = ask(&board, actor, step);
        match step {
            Step::Fork { to } => {
                if let Ok(pid) = answer.parse() {
                    all[to] = Some(Living { pid, parent: Some(actor) });
                    answer = "forked".into();
                }
            }
            Step::Exit => end(&board, actor, &mut all),
            _ => {}
        }
        _ = writeln!(text, "{number} {actor} {step:?} = {answer} | {}", before.pool());
    }
    for actor in (0..ACTORS).rev() {
        if all[actor].is_some() {
            ask(&board, actor, Step::Exit);
            end(&board, actor, &mut all);
        }
    }
    text
}

/// Has a process do a step; gives what it says.
fn ask(board: &Board, actor: usize, step: Step) -> String {
    // SAFETY: a step has room in a page, and no process looks there now.
    unsafe { (board.step.address as *mut Step).write(step) };
    let answers = board.words.get(ANSWERS);
    board.words.add(1 + actor);
    let answered = board.words.wait_for(ANSWERS, answers + 1, Duration::from_secs(60));
    assert!(answered, "process {actor} does not come back from {step:?}");
    let length = board.answer.get_u64(0) as usize;
    // SAFETY: the process has written so much, and writes no more before it is asked again.
    let bytes = unsafe { std::slice::from_raw_parts((board.answer.address + 8) as *const u8, length) };
    String::from_utf8_lossy(bytes).into_owned()
}

/// A process has said that it ends: whoever is its parent waits for that, for its memory goes with it.
fn end(board: &Board, actor: usize, all: &mut [Option<Living>; ACTORS]) {
    let Some(ended) = all[actor].take() else { return };
    // Its children are the world's now, which is a subreaper.
    all.iter_mut()
        .flatten()
        .filter(|other| other.parent == Some(actor))
        .for_each(|other| other.parent = None);
    match ended.parent {
        Some(parent) => _ = ask(board, parent, Step::Reap { pid: ended.pid }),
        None => _ = child::waitpid(ended.pid, 0).expect("waitpid"),
    }
}

/// A process's life. Of the steps with its number `done` were for another one, before.
fn live(mut me: usize, mut done: u32, board: &Board, mut own: Actor<'_>) {
    loop {
        // However long the others take.
        board.words.wait_without_limit(1 + me, done + 1);
        done += 1;
        match board.step() {
            Step::Exit => {
                board.answer("ends");
                // SAFETY: ends the process.
                unsafe { libc::_exit(0) };
            }
            Step::Reap { pid } => {
                child::waitpid(pid, 0).expect("waitpid");
                board.answer("0");
            }
            Step::Fork { to } => {
                // Before there is somebody who could be asked for a step.
                let begun = board.words.get(1 + to);
                // SAFETY: this process has one thread.
                match unsafe { libc::fork() } {
                    0 => {
                        // What it has inherited is of its parent's memory.
                        own.uffd = None;
                        me = to;
                        done = begun;
                    }
                    -1 => board.answer(&format!("{:?}", roundtable_programs::Errno::last())),
                    pid => board.answer(&pid.to_string()),
                }
            }
            step => {
                let answer = own.run(step);
                board.answer(&answer);
            }
        }
    }
}

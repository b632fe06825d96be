//! One cast: the processes that race one way for a while, round by round.

use std::time::{Duration, Instant};

use roundtable_programs::child::{End, waitpid};
use roundtable_programs::file::Fd;
use roundtable_programs::huge;

use roundtable_programs::rng::Rng;
use roundtable_programs::sys::{faults, settles};

use crate::Scene;
use crate::actor::Actor;
use crate::board::{Board, Count, Finding, Kind, Step};
use crate::options::Shape;
use crate::scale::{page_size, slot_size};
use crate::stamp::ANCHOR;
use crate::victim::Victim;
use crate::view::Ground;
use crate::ways::{Way, come_and_go};

/// Processes that have nothing to do with the files.
const VICTIMS: u32 = 2;
/// How long somebody may take to come to a stop: longer than any system call that works.
const PATIENCE: Duration = Duration::from_secs(30);
/// How a process ends that could not be set up.
const NOT_SET_UP: i32 = 2;

/// What a cast plays.
#[derive(Clone, Copy, Debug)]
pub struct Plot {
    pub way: Way,
    pub shape: Shape,
    /// Whether a further sharer comes and goes, and punches holes, meanwhile: see [`come_and_go`].
    pub in_company: bool,
    /// Whether the files are mapped in regions that the processes attach.
    pub in_regions: bool,
    /// Whether bystanders use anonymous memory too: a kernel that frees what it finds in a corrupted table of it may die of
    /// that before anybody has looked.
    pub anonymous: bool,
    pub until_found: bool,
}

/// What a cast came to.
pub struct Outcome {
    pub plot: Plot,
    pub rounds: u32,
    pub board: Board,
    /// When the first corruption was seen, since the cast began.
    pub first: Option<Duration>,
}

impl Outcome {
    pub fn corruptions(&self) -> u32 {
        Kind::ALL.into_iter().map(|kind| self.board.found(kind)).sum()
    }
}

struct Cast<'a> {
    scene: &'a Scene,
    plot: Plot,
    board: Board,
    pids: Vec<i32>,
    /// Threads that arrive at each step.
    actors: u32,
}

/// Why a cast is over before its time.
enum Broken {
    /// Somebody is dead or hung: found and reported.
    Corrupt,
    NotSetUp,
}

/// Lets a cast run for a while.
pub fn run(scene: &Scene, plot: Plot, time: Duration, seed: u64) -> Result<Outcome, String> {
    let grounds = &scene.grounds;
    grounds
        .iter()
        .try_for_each(|ground| empty(&ground.file))
        .map_err(|error| format!("fallocate: {}", error.desc()))?;
    grounds.iter().try_for_each(Ground::renew).map_err(|error| format!("a region: {}", error.desc()))?;
    let before = huge::counters();
    let start = Instant::now();
    let mut cast = Cast { scene, plot, board: Board::new(), pids: Vec::new(), actors: 0 };
    let mut rounds = 0;
    let mut first = None;
    let mut rng = Rng::new(seed);
    let arrived = cast.board.begin(Step::Pause);
    cast.start(&mut rng)?;
    let mut state = cast.gather(arrived);
    while state.is_ok() && start.elapsed() < time {
        state = cast.round(&mut rng, rounds);
        rounds += 1;
        if cast.board.found_any() {
            first.get_or_insert_with(|| start.elapsed());
            if plot.until_found {
                cast.freeze();
                return Ok(Outcome { plot, rounds, board: cast.board, first });
            }
        }
    }
    if let Err(Broken::NotSetUp) = state {
        return Err("a process could not be set up".to_string());
    }
    cast.finish(state.is_err());
    cast.take_pages_back();
    if !settles(Duration::from_secs(3), || huge::counters() == before) {
        let now = huge::counters();
        eprintln!("race: the pool was {before:?} and is {now:?}");
        let difference = before.free.abs_diff(now.free) + before.reserved.abs_diff(now.reserved);
        cast.find(Kind::Counters, difference, 0);
    }
    if cast.board.found_any() {
        first.get_or_insert_with(|| start.elapsed());
    }
    Ok(Outcome { plot, rounds, board: cast.board, first })
}

impl Cast<'_> {
    fn find(&self, kind: Kind, seen: u64, expected: u64) {
        self.board.report(Finding { kind, process: u32::MAX, file: 0, index: 0, seen, expected });
    }

    fn start(&mut self, rng: &mut Rng) -> Result<(), String> {
        let Shape { processes, threads } = self.plot.shape;
        let processes = processes as u32;
        for number in 0..processes {
            let disturbs = self.plot.way.is_done_by(number, self.plot.in_regions);
            let seed = rng.draw();
            self.fork(threads as u32 + u32::from(disturbs), |cast| cast.live(number, disturbs, seed))?;
        }
        if self.plot.in_company {
            let seed = rng.draw();
            self.fork(1, |cast| {
                let Some(actor) = cast.actor(processes) else { return false };
                let mut rng = Rng::new(seed);
                actor.play(|| come_and_go(&actor, &mut rng), false);
                true
            })?;
        }
        for number in 0..VICTIMS {
            let seed = rng.draw();
            self.fork(1, |cast| {
                let scene = cast.scene;
                let number = processes + 1 + number;
                let actor = Actor::outside(number, cast.plot, &cast.board, &scene.sitter);
                Victim::new(&actor, &scene.canary, cast.plot.anonymous).live(Rng::new(seed));
                true
            })?;
        }
        Ok(())
    }

    /// Forks a process that does `run` and ends well if that was true.
    fn fork(&mut self, threads: u32, run: impl FnOnce(&Cast) -> bool) -> Result<(), String> {
        // SAFETY: this process has one thread.
        match unsafe { libc::fork() } {
            -1 => {
                let error = std::io::Error::last_os_error();
                self.finish(true);
                Err(format!("fork: {error}"))
            }
            0 => {
                let fine = run(self);
                self.board.add(Count::Faults, faults().0);
                // SAFETY: ends the process; nothing of the parent's may run twice.
                unsafe { libc::_exit(if fine { 0 } else { NOT_SET_UP }) }
            }
            pid => {
                self.pids.push(pid);
                self.actors += threads;
                Ok(())
            }
        }
    }

    /// A process with all files mapped.
    fn actor(&self, number: u32) -> Option<Actor<'_>> {
        let scene = self.scene;
        let actor = Actor::new(number, self.plot, &self.board, &scene.grounds, &scene.sitter);
        actor.inspect_err(|error| eprintln!("race: mmap of a file: {}", error.desc())).ok()
    }

    fn live(&self, number: u32, disturbs: bool, seed: u64) -> bool {
        let Some(actor) = self.actor(number) else { return false };
        let mut rng = Rng::new(seed);
        std::thread::scope(|scope| {
            for _ in 1..self.plot.shape.threads {
                let rng = Rng::new(rng.draw());
                scope.spawn(|| actor.fault(rng, false));
            }
            if disturbs {
                let rng = Rng::new(rng.draw());
                scope.spawn(|| actor.disturb(rng));
            }
            actor.fault(rng, true);
        });
        true
    }

    /// All run for a while, stand still, one writes, all compare; then the files are emptied, so that the next round has
    /// pages to fault in whatever the way does.
    fn round(&self, rng: &mut Rng, round: u32) -> Result<(), Broken> {
        self.board.begin(Step::Run);
        let end = Instant::now() + Duration::from_millis(40 + rng.below(100) as u64);
        while Instant::now() < end && !(self.plot.until_found && self.board.found_any()) {
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.board.found_any() && self.plot.until_found {
            return Ok(());
        }
        self.step(Step::Pause)?;
        self.board.set_writer(round % self.plot.shape.processes as u32);
        self.step(Step::Write)?;
        self.step(Step::Compare)?;
        self.take_pages_back();
        Ok(())
    }

    fn step(&self, step: Step) -> Result<(), Broken> {
        let arrived = self.board.begin(step);
        self.gather(arrived)
    }

    fn gather(&self, arrived: u32) -> Result<(), Broken> {
        let mut broken = None;
        let complete = self.board.gather(arrived, self.actors, PATIENCE, || {
            broken = self.pids.iter().find_map(|&pid| self.look_after(pid));
            broken.is_none()
        });
        match (complete, broken) {
            (true, _) => Ok(()),
            (false, Some(broken)) => Err(broken),
            (false, None) => {
                self.find(Kind::Hung, 0, 0);
                Err(Broken::Corrupt)
            }
        }
    }

    /// Whether a process ended before its time. It is not reaped.
    fn look_after(&self, pid: i32) -> Option<Broken> {
        // SAFETY: a siginfo of zeros is valid, and the call fills it.
        let info = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            let result = libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, flags);
            if result != 0 || info.si_pid() == 0 {
                return None;
            }
            info
        };
        // SAFETY: waitid filled it in for an ended child.
        let status = unsafe { info.si_status() };
        if info.si_code == libc::CLD_EXITED && status == NOT_SET_UP {
            return Some(Broken::NotSetUp);
        }
        self.find(Kind::Killed, status as u64, 0);
        Some(Broken::Corrupt)
    }

    /// Stops all processes where they are: taking tables down that hold somebody else's entries is what kernels die of.
    fn freeze(&self) {
        for &pid in &self.pids {
            // SAFETY: takes integers; the child was not waited for.
            unsafe { libc::kill(pid, libc::SIGSTOP) };
        }
    }

    fn finish(&mut self, by_force: bool) {
        self.board.begin(Step::Stop);
        let pids = std::mem::take(&mut self.pids);
        if by_force {
            for &pid in &pids {
                // SAFETY: takes integers; the child was not waited for.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
        let deadline = Instant::now() + PATIENCE;
        for pid in pids {
            let mut end = None;
            let gone = settles(deadline.saturating_duration_since(Instant::now()), || {
                match waitpid(pid, libc::WNOHANG) {
                    Ok((0, _)) => false,
                    Ok((_, how)) => {
                        end = Some(how);
                        true
                    }
                    Err(_) => true,
                }
            });
            match end {
                _ if !gone => self.find(Kind::Hung, 0, 0),
                Some(End::Signal(signal)) if !by_force => self.find(Kind::Killed, signal as u64, 0),
                _ => {}
            }
        }
    }

    fn take_pages_back(&self) {
        for ground in &self.scene.grounds {
            if let Err(error) = empty(&ground.file) {
                eprintln!("race: a file cannot be emptied: {}", error.desc());
            }
        }
    }
}

/// Takes all pages out of a file, but for the anchor.
fn empty(file: &Fd) -> Result<(), roundtable_programs::Errno> {
    let (anchor, behind) = ((ANCHOR * page_size()) as u64, ((ANCHOR + 1) * page_size()) as u64);
    file.fallocate(0, anchor, page_size() as u64)?;
    file.punch(0, anchor)?;
    file.punch(behind, slot_size() as u64 - behind)
}
